//! Decisions and bytes for a target, read off a fuzzer's input.

/// What is left of an input. An empty one is all zeros.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// One byte of length, then so many bytes; fewer at the end.
    pub(crate) fn chunk(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (chunk, rest) = self.0.split_at(length);
        self.0 = rest;
        chunk
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Alters `bytes` as the rest of the input says: flips, cuts, repeats, moves. Tells whether
    /// they are other bytes now.
    pub(crate) fn alter(&mut self, bytes: &mut Vec<u8>) -> bool {
        let before = bytes.clone();
        for _ in 0..EDITS_MAX {
            if self.is_empty() || bytes.is_empty() {
                break;
            }
            let edit = self.byte();
            let at = usize::from(self.u16()) % bytes.len();
            let length = usize::from(self.byte());
            let until = (at + length).min(bytes.len());
            match edit % 4 {
                0 => bytes[at] ^= u8::try_from(length).unwrap(),
                1 => drop(bytes.drain(at..until)),
                2 => {
                    let piece = bytes[at..until].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let piece: Vec<u8> = bytes.drain(at..until).collect();
                    let to = usize::from(self.u16()) % (bytes.len() + 1);
                    bytes.splice(to..to, piece);
                }
            }
        }
        *bytes != before
    }
}

/// An alteration that needs more than so many steps is one that fewer show, too.
const EDITS_MAX: usize = 8;
