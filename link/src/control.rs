//! What the handles of a link share with its driver.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use channel::Admission;
use futures::task::AtomicWaker;

/// Shared between one driver, its pump, and all handles.
#[derive(Default)]
pub(crate) struct Control {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    broken: AtomicBool,
    close: Mutex<Option<Admission>>,
    driver: AtomicWaker,
}

impl Control {
    /// Bytes taken from the socket and given to it, session overhead included.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn count_in(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_out(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks the driver to close the link; the first reason stays.
    pub(crate) fn close(&self, reason: Admission) {
        self.close
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.driver.wake();
    }

    /// The reason, once [`close`](Self::close) was called; otherwise `waker` will hear of it.
    pub(crate) fn poll_close(&self, waker: &Waker) -> Option<Admission> {
        self.driver.register(waker);
        *self.close.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the link ended without a proper close, before its streams learn of any end.
    pub(crate) fn set_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether the end of a stream means that the link broke.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}
