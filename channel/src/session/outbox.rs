//! What leaves a session.

use std::collections::VecDeque;

use super::Event;

/// What a session has for the transport and for its driver.
#[derive(Default)]
pub(super) struct Outbox {
    /// Frames one after the other, so that the transport takes many at once.
    frames: Vec<u8>,
    /// How many of them the transport has taken.
    taken: usize,
    events: VecDeque<Event>,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: &[u8]) {
        self.frames.extend_from_slice(frame);
    }

    /// Where the next frame is written.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.frames
    }

    pub(super) fn waiting(&self) -> &[u8] {
        self.frames.get(self.taken..).unwrap_or_default()
    }

    pub(super) fn bytes(&self) -> usize {
        self.frames.len() - self.taken
    }

    pub(super) fn taken(&mut self, bytes: usize) {
        self.taken = self.frames.len().min(self.taken + bytes);
        if self.taken == self.frames.len() {
            self.frames.clear();
            self.taken = 0;
        }
    }

    /// An idle session keeps no room for what it once had to say.
    pub(super) fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = Vec::new();
        }
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }
}
