//! Sealed batches in a file, carried by hand; see `protocol.md` 3.5.
//!
//! A file is a sequence of pieces, each with a mark before it and a sum behind it, so that damage
//! costs the pieces it hits and no other. The sums find accidents; forgeries are found where
//! headers are verified and batches opened.

use sha2::{Digest, Sha256};

use crate::cbor::Writer;
use crate::upload::MESSAGE_BYTES_MAX;

/// One piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The first piece. It proves nothing: it is there to tell people whose file they hold.
    Label(Label),
    /// An epoch's signed header, before the epoch's batches.
    Header(Vec<u8>),
    /// A sealed batch.
    Batch(Vec<u8>),
    /// The last piece: how many stand before it. Without it the file was cut.
    End {
        /// Label, headers and batches.
        pieces: u64,
    },
    /// A label of another version than this one reads.
    OtherVersion,
}

/// From whom to whom a file is, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Fingerprint of the gateway's identity.
    pub gateway: [u8; 32],
    /// Fingerprint of the service's identity.
    pub service: [u8; 32],
}

impl Piece {
    /// The piece's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Label(label) => encode(LABEL, &[MAGIC, &label.gateway, &label.service].concat()),
            Self::Header(header) => encode(HEADER, header),
            Self::Batch(batch) => encode(BATCH, batch),
            Self::End { pieces } => encode(END, &pieces.to_be_bytes()),
            Self::OtherVersion => encode(LABEL, &[]),
        }
    }

    fn of(kind: u8, content: &[u8]) -> Option<Self> {
        match kind {
            LABEL => Some(label(content).map_or(Self::OtherVersion, Self::Label)),
            HEADER => Some(Self::Header(content.to_vec())),
            BATCH => Some(Self::Batch(content.to_vec())),
            END => Some(Self::End {
                pieces: u64::from_be_bytes(content.try_into().ok()?),
            }),
            _ => None,
        }
    }
}

/// Takes a file apart, in whatever portions it is read.
///
/// [`push`](Self::push) what was read, then [`poll`](Self::poll) until it returns `None`; at the
/// end of the file say [`finish`](Self::finish) and poll once more. It holds one piece, about
/// 1.1 MiB, and what was pushed.
#[derive(Default)]
pub struct Pieces {
    buffer: Vec<u8>,
    /// What of the buffer is done with.
    done: usize,
    /// Where the buffer begins in the file.
    offset: u64,
    /// Bytes in a row that belong to no sound piece.
    damaged: u64,
    finished: bool,
}

/// Bytes that are no sound piece: something was altered, cut out, or put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes from byte {at} on are damaged")]
pub struct Damage {
    /// Where they begin in the file.
    pub at: u64,
    /// How many, up to the next sound piece or the end.
    pub bytes: u64,
}

impl Pieces {
    /// Takes the next bytes of the file.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done);
        self.offset = self.offset.saturating_add(self.done as u64);
        self.done = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// No more bytes will come.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The next piece, or what was found damaged before it; `None` if there must be more bytes
    /// first.
    pub fn poll(&mut self) -> Option<Result<Piece, Damage>> {
        loop {
            let rest = self.buffer.get(self.done..).unwrap_or_default();
            if rest.is_empty() {
                return self.finished.then(|| self.damage()).flatten().map(Err);
            }
            match look(rest) {
                Look::Piece(piece, bytes) => {
                    // Told first; the piece is found again by the next call.
                    if let Some(damage) = self.damage() {
                        return Some(Err(damage));
                    }
                    self.done += bytes;
                    return Some(Ok(piece));
                }
                Look::Cut if !self.finished => return None,
                Look::Cut | Look::Damaged => {
                    // The next mark cannot begin here.
                    let skipped = next_mark(rest.get(1..).unwrap_or_default()) + 1;
                    self.done += skipped;
                    self.damaged += skipped as u64;
                }
            }
        }
    }

    /// What was skipped up to here, once.
    fn damage(&mut self) -> Option<Damage> {
        let bytes = std::mem::take(&mut self.damaged);
        let here = self.offset.saturating_add(self.done as u64);
        (bytes != 0).then(|| Damage {
            at: here.saturating_sub(bytes),
            bytes,
        })
    }
}

/// What stands at the begin of some bytes.
enum Look {
    /// A sound piece of so many bytes.
    Piece(Piece, usize),
    /// The begin of what may become one.
    Cut,
    /// None.
    Damaged,
}

fn look(bytes: &[u8]) -> Look {
    let start = bytes.get(..MARK.len()).unwrap_or(bytes);
    if !MARK.starts_with(start) {
        return Look::Damaged;
    }
    let Some((&[array, kind, head], rest)) = bytes
        .get(MARK.len()..)
        .and_then(|rest| rest.split_first_chunk())
    else {
        return Look::Cut;
    };
    let number = |bytes: usize| {
        let digits = rest.get(..bytes)?.iter();
        Some(digits.fold(0, |number, digit| number << 8 | usize::from(*digit)))
    };
    let (length_bytes, length) = match head {
        0x40..=0x57 => (0, Some(usize::from(head - 0x40))),
        0x58 => (1, number(1)),
        0x59 => (2, number(2)),
        0x5A => (4, number(4)),
        _ => return Look::Damaged,
    };
    let Some(length) = length else {
        return Look::Cut;
    };
    if array != ARRAY_OF_3 || MESSAGE_BYTES_MAX < length {
        return Look::Damaged;
    }
    let whole = HEAD_BYTES + length_bytes + length + SUM_BYTES;
    let Some(piece) = bytes.get(..whole) else {
        return Look::Cut;
    };
    let begin = HEAD_BYTES + length_bytes;
    let content = piece.get(begin..begin + length).unwrap_or_default();
    // Encoded again and compared, so the sum and the one allowed form are checked together.
    match Piece::of(kind, content) {
        Some(found) if encode(kind, content) == piece => Look::Piece(found, whole),
        Some(_) | None => Look::Damaged,
    }
}

/// How far the next mark is, or what may be the begin of one; all of it if there is none.
fn next_mark(bytes: &[u8]) -> usize {
    (0..bytes.len())
        .find(|at| {
            let here = bytes.get(*at..).unwrap_or_default();
            MARK.starts_with(here.get(..MARK.len()).unwrap_or(here))
        })
        .unwrap_or(bytes.len())
}

fn encode(kind: u8, content: &[u8]) -> Vec<u8> {
    let sum = Sha256::new()
        .chain_update([kind])
        .chain_update(content)
        .finalize();
    let sum = sum.get(..SUM_BYTES - 1).unwrap_or_default();
    let mut writer = Writer::with_capacity(content.len() + HEAD_BYTES + 4 + SUM_BYTES);
    writer
        .key(&MARK)
        .array(3)
        .uint(kind)
        .bytes(content)
        .bytes(sum);
    writer.into_bytes()
}

fn label(content: &[u8]) -> Option<Label> {
    let names = content.strip_prefix(MAGIC)?;
    let (gateway, service) = names.split_first_chunk()?;
    Some(Label {
        gateway: *gateway,
        service: service.try_into().ok()?,
    })
}

/// CBOR's tag 55799, which means nothing (RFC 8949, 3.4.6) and is rare in anything else.
const MARK: [u8; 3] = [0xD9, 0xD9, 0xF7];

const ARRAY_OF_3: u8 = 0x83;

/// Mark, array, kind, and the first byte of the content's length.
const HEAD_BYTES: usize = MARK.len() + 3;

/// Eight bytes of SHA-256 over kind and content, and their head. One in 2^64 accidents passes.
const SUM_BYTES: usize = 9;

const MAGIC: &[u8] = b"gatewayd/1 sealed";

// The first item of each piece; headers and batches as on the stream `upload`.
const END: u8 = 0;
const LABEL: u8 = 1;
const HEADER: u8 = 3;
const BATCH: u8 = 4;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The bytes are those of cbor2 (Python, canonical), the sums those of sha256sum.
    #[test]
    fn pieces_have_these_bytes() {
        for (piece, bytes) in [
            (
                label_piece(),
                "d9d9f78301585167617465776179642f31207365616c6564\
                 1111111111111111111111111111111111111111111111111111111111111111\
                 2222222222222222222222222222222222222222222222222222222222222222\
                 48deb0e4d43d16e847",
            ),
            (
                Piece::Header(b"header".to_vec()),
                "d9d9f7830346686561646572\
                 48860f09b7730e641a",
            ),
            (
                Piece::End { pieces: 258 },
                "d9d9f78300480000000000000102\
                 4857371aca58aaf804",
            ),
        ] {
            assert_eq!(hex::encode(piece.encode()), bytes);
        }
    }

    #[test]
    fn a_file_comes_apart_in_portions_of_any_size() {
        let pieces = file();
        let bytes: Vec<u8> = pieces.iter().flat_map(Piece::encode).collect();
        for portion in [1, 2, 3, 7, 100, bytes.len()] {
            let read: Result<Vec<_>, _> = read(&bytes, portion).into_iter().collect();
            assert_eq!(read.unwrap(), pieces, "in portions of {portion}");
        }
    }

    #[test]
    fn each_flipped_byte_costs_the_piece_it_is_in_and_no_other() {
        let pieces = file();
        let encoded: Vec<_> = pieces.iter().map(Piece::encode).collect();
        let bytes = encoded.concat();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let mut ends = encoded.iter().scan(0, |end, piece| {
                *end += piece.len();
                Some(*end)
            });
            let hit = ends.position(|end| at < end).unwrap();
            let begin: usize = encoded[..hit].iter().map(Vec::len).sum();

            let read = read(&flipped, 64);

            let damage = Damage {
                at: begin as u64,
                bytes: encoded[hit].len() as u64,
            };
            assert_eq!(read[hit], Err(damage), "byte {at}");
            for (place, piece) in pieces.iter().enumerate().filter(|(place, _)| *place != hit) {
                assert_eq!(read[place].as_ref(), Ok(piece), "byte {at}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_anywhere_gives_what_is_whole_and_no_end() {
        let pieces = file();
        let bytes: Vec<u8> = pieces.iter().flat_map(Piece::encode).collect();
        for length in 0..bytes.len() {
            let read = read(&bytes[..length], 50);
            let sound: Vec<_> = read.iter().flatten().cloned().collect();
            assert_eq!(sound, pieces[..sound.len()], "cut at {length}");
            assert!(sound.len() < pieces.len());
            let whole: usize = sound.iter().map(|piece| piece.encode().len()).sum();
            let rest = read.iter().find_map(|piece| piece.clone().err());
            let cut = (length - whole) as u64;
            assert_eq!(
                rest.map_or(0, |damage| damage.bytes),
                cut,
                "cut at {length}"
            );
        }
    }

    #[test]
    fn a_lie_about_a_length_waits_for_no_more_than_a_piece_has() {
        let mut pieces = Pieces::default();
        pieces.push(&[0xD9, 0xD9, 0xF7, 0x83, 4, 0x5A, 0xFF, 0xFF, 0xFF, 0xFF]);
        pieces.push(&Piece::End { pieces: 0 }.encode());
        assert_eq!(pieces.poll(), Some(Err(Damage { at: 0, bytes: 10 })));
        assert_eq!(pieces.poll(), Some(Ok(Piece::End { pieces: 0 })));
    }

    #[test]
    fn a_label_of_another_version_is_told_from_damage() {
        let other = encode(LABEL, b"gatewayd/2 sealed and more");
        assert_eq!(read(&other, 10), [Ok(Piece::OtherVersion)]);
    }

    #[test]
    fn the_largest_batch_fits_a_piece() {
        let largest = Piece::Batch(vec![0xD9; MESSAGE_BYTES_MAX]);
        assert_eq!(read(&largest.encode(), 1 << 16), [Ok(largest)]);
    }

    proptest! {
        /// Bytes from anywhere are damage, never a crash, and every byte is accounted for.
        #[test]
        fn any_bytes_are_pieces_or_damage(bytes in vec(any::<u8>(), 0..300), portion in 1_usize..50) {
            let mut accounted = 0;
            for piece in read(&bytes, portion) {
                accounted += match piece {
                    Ok(piece) => piece.encode().len() as u64,
                    Err(damage) => {
                        prop_assert_eq!(damage.at, accounted);
                        damage.bytes
                    }
                };
            }
            prop_assert_eq!(accounted, bytes.len() as u64);
        }
    }

    fn read(bytes: &[u8], portion: usize) -> Vec<Result<Piece, Damage>> {
        let mut pieces = Pieces::default();
        let mut read = Vec::new();
        for portion in bytes.chunks(portion) {
            pieces.push(portion);
            read.extend(std::iter::from_fn(|| pieces.poll()));
        }
        pieces.finish();
        read.extend(std::iter::from_fn(|| pieces.poll()));
        read
    }

    fn file() -> Vec<Piece> {
        vec![
            label_piece(),
            Piece::Header(vec![7; 300]),
            Piece::Batch(MARK.to_vec()),
            Piece::Batch(vec![1; 40]),
            Piece::End { pieces: 4 },
        ]
    }

    fn label_piece() -> Piece {
        Piece::Label(Label {
            gateway: [0x11; 32],
            service: [0x22; 32],
        })
    }
}
