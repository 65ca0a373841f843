//! What was sent in a session and is not acknowledged.

use std::collections::HashMap;

use wire::Class;

use super::EpochId;

/// What is on its way.
#[derive(Default)]
pub(super) struct Flight {
    window_bytes: usize,
    bytes: usize,
    batches: Vec<Sent>,
    /// By epoch: its lane, and one more than the highest number sent, declared gone, or known to
    /// the service.
    epochs: HashMap<EpochId, (Class, u32)>,
}

/// A batch on its way.
pub(super) struct Sent {
    pub(super) epoch_id: EpochId,
    pub(super) number: u32,
    pub(super) bytes: usize,
    /// Boot time in milliseconds.
    pub(super) sent_ms: u64,
}

impl Flight {
    /// How much may be on its way.
    pub(super) fn open_window(&mut self, window_bytes: usize) {
        self.window_bytes = window_bytes;
    }

    /// Whether so many bytes more may leave. A batch larger than the window travels alone.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.batches.is_empty() || self.bytes + bytes <= self.window_bytes
    }

    /// The lane of an epoch of this session, and the first number of it that no ack may pass.
    pub(super) fn reach(&self, epoch_id: &EpochId) -> Option<(Class, u32)> {
        self.epochs.get(epoch_id).copied()
    }

    /// Moves the reach of an epoch up to `next`; returns where it was.
    pub(super) fn extend(&mut self, class: Class, epoch_id: EpochId, next: u32) -> u32 {
        let (_, reach) = self.epochs.entry(epoch_id).or_insert((class, 0));
        let before = *reach;
        *reach = before.max(next);
        before
    }

    pub(super) fn depart(&mut self, sent: Sent) {
        self.bytes += sent.bytes;
        self.batches.push(sent);
    }

    /// Takes batches out.
    pub(super) fn land(&mut self, landed: impl Fn(&Sent) -> bool) {
        self.batches.retain(|sent| !landed(sent));
        self.bytes = self.batches.iter().map(|sent| sent.bytes).sum();
    }

    /// When the oldest that is still on its way left.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.batches.iter().map(|sent| sent.sent_ms).min()
    }
}
