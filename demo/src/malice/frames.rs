//! The frames of a session, as whoever carries them sees them: a preamble, then `u16 length ‖ bytes`.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
};

use super::{Tamper, Way};

/// Preamble and message 1 of what a gateway said, and the rest.
pub(super) fn split_first(said: &[u8]) -> (&[u8], &[u8]) {
    let length = match said.get(PREAMBLE_BYTES..) {
        Some(&[high, low, ..]) => 2 + usize::from(u16::from_be_bytes([high, low])),
        Some(_) | None => 0,
    };
    said.split_at_checked(PREAMBLE_BYTES + length)
        .unwrap_or((said, &[]))
}

pub(super) struct Frames {
    /// Frames still to pass before the one that is tampered with.
    left: Option<u32>,
    tamper: Tamper,
    /// Which bit, modulo how many there are.
    bit: u64,
    buffer: Vec<u8>,
    preamble: bool,
    /// A frame that comes after the next.
    held: Option<Vec<u8>>,
}

impl Frames {
    pub(super) fn new(way: Way, tamper: Tamper, at: u32, bit: u64) -> Self {
        Self {
            left: Some(at),
            tamper,
            bit,
            buffer: Vec::new(),
            preamble: way == Way::ToService,
            held: None,
        }
    }

    /// Carries until either side ends, or the frame is cut.
    pub(super) async fn carry(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            self.buffer
                .extend_from_slice(chunk.get(..count).unwrap_or_default());
            while let Some(frame) = self.next_frame() {
                let (out, goes_on) = self.handle(frame);
                if to.write_all(&out).await.is_err() || !goes_on {
                    return;
                }
            }
        }
    }

    fn next_frame(&mut self) -> Option<Vec<u8>> {
        let length = match *self.buffer.as_slice() {
            _ if self.preamble => PREAMBLE_BYTES,
            [high, low, ..] => 2 + usize::from(u16::from_be_bytes([high, low])),
            [] | [_] => return None,
        };
        if self.buffer.len() < length {
            return None;
        }
        self.preamble = false;
        Some(self.buffer.drain(..length).collect())
    }

    /// What goes out for a frame, and whether anything follows.
    fn handle(&mut self, frame: Vec<u8>) -> (Vec<u8>, bool) {
        let tamper_now = self.left == Some(0);
        self.left = self.left.and_then(|left| left.checked_sub(1));
        if !tamper_now {
            let held = self.held.take().unwrap_or_default();
            return ([frame, held].concat(), true);
        }
        match self.tamper {
            Tamper::Drop => (Vec::new(), true),
            Tamper::Repeat => ([frame.as_slice(), &frame].concat(), true),
            Tamper::Swap => {
                self.held = Some(frame);
                (Vec::new(), true)
            }
            Tamper::Alter => (flipped(frame, 2, self.bit), true),
            Tamper::Stretch => {
                let mut frame = frame;
                if let Some(low) = frame.get_mut(1) {
                    *low ^= 1;
                }
                (frame, true)
            }
            Tamper::Cut => (
                frame.get(..frame.len() / 2).unwrap_or_default().to_vec(),
                false,
            ),
        }
    }
}

/// With one bit flipped, not among the first `spared` bytes.
fn flipped(mut frame: Vec<u8>, spared: usize, bit: u64) -> Vec<u8> {
    let bytes = u64::try_from(frame.len().saturating_sub(spared)).unwrap_or(1);
    let at = usize::try_from((bit / 8) % bytes.max(1)).unwrap_or(0) + spared;
    if let Some(byte) = frame.get_mut(at) {
        *byte ^= 1 << (bit % 8);
    }
    frame
}

/// protocol.md 2.1.
const PREAMBLE_BYTES: usize = 72;

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds frames of one byte each, numbered, and returns what comes out.
    fn fed(tamper: Tamper, count: u8) -> Vec<u8> {
        let mut frames = Frames::new(Way::ToGateway, tamper, 1, 0);
        let mut out = Vec::new();
        for number in 0..count {
            frames.buffer.extend([0, 1, number]);
            while let Some(frame) = frames.next_frame() {
                out.extend(frames.handle(frame).0);
            }
        }
        out
    }

    #[test]
    fn only_the_frame_that_is_named_is_tampered_with() {
        assert_eq!(fed(Tamper::Drop, 3), [0, 1, 0, 0, 1, 2]);
        assert_eq!(fed(Tamper::Repeat, 3), [0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 2]);
        assert_eq!(fed(Tamper::Swap, 3), [0, 1, 0, 0, 1, 2, 0, 1, 1]);
        assert_eq!(fed(Tamper::Alter, 3), [0, 1, 0, 0, 1, 0, 0, 1, 2]);
        assert_eq!(fed(Tamper::Stretch, 2), [0, 1, 0, 0, 0, 1]);
        assert_eq!(fed(Tamper::Cut, 2), [0, 1, 0, 0]);
    }
}
