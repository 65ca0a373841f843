//! What happened since the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::HsmError;

/// Counted by the thread that owns the TPM, read by whoever asks.
#[derive(Default)]
pub(crate) struct Counters {
    operations: AtomicU64,
    failures: AtomicU64,
    tampered: AtomicU64,
    resets: AtomicU64,
    reconnects: AtomicU64,
    latency_microseconds: AtomicU64,
}

impl Counters {
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn tampered(&self) -> u64 {
        self.tampered.load(Ordering::Relaxed)
    }

    pub(crate) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Of the last success; zero stands for none so far.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match self.latency_microseconds.load(Ordering::Relaxed) {
            0 => None,
            microseconds => Some(Duration::from_micros(microseconds)),
        }
    }

    pub(crate) fn add_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what an attempt ran into, whether or not it was made again.
    pub(crate) fn add_incident(&self, error: &HsmError) {
        if matches!(error, HsmError::Tampered) {
            self.tampered.fetch_add(1, Ordering::Relaxed);
        } else if matches!(error, HsmError::TpmReset) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one operation by its outcome.
    pub(crate) fn add_operation(&self, failed: bool, took: Duration) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.add_failure();
        } else {
            let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.latency_microseconds
                .store(microseconds.max(1), Ordering::Relaxed);
        }
    }
}
