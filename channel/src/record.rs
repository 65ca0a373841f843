//! Frames on the stream, and the records in them once the handshake is over (protocol.md 2.4).

use std::mem;
use std::ops::RangeInclusive;

use bytes::{Buf as _, BytesMut};
use zeroize::Zeroize as _;

use crate::cipher::{AeadKey, CipherError, TAG_BYTES};
use crate::noise::{Role, SplitKeys};

/// What may come next on the stream.
pub(crate) enum Expected {
    /// So many bytes, without a length in front.
    Bytes(usize),
    /// `u16 length ‖ bytes`, with a length in this range.
    Frame(RangeInclusive<usize>),
}

/// Cuts the stream into frames, however it arrives. Between calls of the session it holds less than
/// one frame.
#[derive(Default)]
pub(crate) struct Incoming {
    buffer: BytesMut,
}

impl Incoming {
    /// Where the transport puts what has come.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes what is `expected` from the front, without a copy; `None` if it is not complete yet.
    ///
    /// # Errors
    ///
    /// The length that does not fit what is expected, as soon as it is known.
    pub(crate) fn take(&mut self, expected: &Expected) -> Result<Option<BytesMut>, usize> {
        let (skipped, length) = match expected {
            Expected::Bytes(count) => (0, *count),
            Expected::Frame(lengths) => {
                let Some(length) = self.buffer.first_chunk() else {
                    return Ok(None);
                };
                let length = usize::from(u16::from_be_bytes(*length));
                if !lengths.contains(&length) {
                    return Err(length);
                }
                (LENGTH_BYTES, length)
            }
        };
        if self.buffer.len() < skipped + length {
            return Ok(None);
        }
        self.buffer.advance(skipped);
        if self.buffer.len() == length {
            return Ok(Some(mem::take(&mut self.buffer)));
        }
        Ok(Some(self.buffer.split_to(length)))
    }
}

/// Puts the length in front of a handshake message.
///
/// # Errors
///
/// [`snow::Error::Input`], as from snow itself, if it is longer than a frame can say.
pub(crate) fn frame(message: &[u8]) -> Result<Vec<u8>, snow::Error> {
    let length = u16::try_from(message.len()).map_err(|_| snow::Error::Input)?;
    Ok([&length.to_be_bytes()[..], message].concat())
}

/// What a record is, its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordType {
    Stream = 0,
    Close = 1,
    Ping = 2,
    Pong = 3,
    Renewal = 4,
    Switch = 5,
    Admission = 6,
    PleaseRenew = 7,
}

impl RecordType {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Stream,
            Self::Close,
            Self::Ping,
            Self::Pong,
            Self::Renewal,
            Self::Switch,
            Self::Admission,
            Self::PleaseRenew,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// The two keys of an open session. Each is exchanged on its own when they are renewed.
pub(crate) struct Records {
    pub(crate) sending: RecordKey,
    pub(crate) receiving: RecordKey,
}

impl Records {
    /// The keys of a finished handshake, as this role uses them.
    pub(crate) fn new(role: Role, keys: &SplitKeys) -> Result<Self, CipherError> {
        let forth = RecordKey::new(AeadKey::new(keys.suite, &keys.forth)?);
        let back = RecordKey::new(AeadKey::new(keys.suite, &keys.back)?);
        Ok(match role {
            Role::Initiator => Self {
                sending: forth,
                receiving: back,
            },
            Role::Responder => Self {
                sending: back,
                receiving: forth,
            },
        })
    }

    /// Tells whether a key is so near its limit that only the close may follow.
    pub(crate) fn are_spent(&self) -> bool {
        self.sending.used.is_spent() || self.receiving.used.is_spent()
    }

    /// Tells whether a key has done so much that it is time for another.
    pub(crate) fn are_worn(&self) -> bool {
        self.sending.used.exceeds(3) || self.receiving.used.exceeds(3)
    }

    /// Tells whether a peer that counts a little differently may think so.
    pub(crate) fn are_half_worn(&self) -> bool {
        self.sending.used.exceeds(2) || self.receiving.used.exceeds(2)
    }
}

/// The key of one direction, and how much it has done.
pub(crate) struct RecordKey {
    key: AeadKey,
    used: Usage,
}

impl RecordKey {
    fn new(key: AeadKey) -> Self {
        Self {
            key,
            used: Usage::default(),
        }
    }

    /// Seals one record at the end of `out`, its length in front.
    ///
    /// # Errors
    ///
    /// [`CipherError`] if `body` is longer than [`BODY_BYTES_MAX`]; `out` is as it was.
    pub(crate) fn seal(
        &mut self,
        kind: RecordType,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CipherError> {
        let length = u16::try_from(1 + body.len() + TAG_BYTES).map_err(|_| CipherError)?;
        let begin = out.len();
        out.reserve(LENGTH_BYTES + usize::from(length));
        out.extend_from_slice(&length.to_be_bytes());
        out.push(kind as u8);
        out.extend_from_slice(body);
        let plaintext = out.get_mut(begin + LENGTH_BYTES..).ok_or(CipherError)?;
        match self.key.seal(self.used.records, &[], plaintext) {
            Ok(tag) => out.extend_from_slice(&tag),
            Err(error) => {
                plaintext.zeroize();
                out.truncate(begin);
                return Err(error);
            }
        }
        self.used.count(usize::from(length));
        Ok(())
    }

    /// Opens one record in its own buffer; the length is already taken off.
    ///
    /// # Errors
    ///
    /// [`RecordError`]; the session is then over.
    pub(crate) fn open(
        &mut self,
        mut frame: BytesMut,
    ) -> Result<(RecordType, BytesMut), RecordError> {
        let sealed = frame.len();
        let opened = self
            .key
            .open(self.used.records, &[], &mut frame)
            .map_err(|CipherError| RecordError::Rejected)?;
        self.used.count(sealed);
        frame.truncate(opened);
        let kind = frame
            .first()
            .and_then(|byte| RecordType::from_byte(*byte))
            .ok_or(RecordError::UnknownType)?;
        frame.advance(1);
        Ok((kind, frame))
    }

    /// Lets the key look as if it had done so many records.
    #[cfg(test)]
    pub(crate) fn pretend(&mut self, records: u64) {
        self.used.records = records;
    }
}

/// Why a record was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// It did not authenticate.
    Rejected,
    /// It did, and is of a type that this version does not have.
    UnknownType,
}

/// What one key has done.
#[derive(Default)]
struct Usage {
    /// The nonce of the next record, too.
    records: u64,
    bytes: u64,
}

impl Usage {
    fn count(&mut self, bytes: usize) {
        self.records = self.records.saturating_add(1);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether so many quarters of a limit are used up.
    fn exceeds(&self, quarters: u64) -> bool {
        self.records >= KEY_RECORDS_MAX / 4 * quarters || self.bytes >= KEY_BYTES_MAX / 4 * quarters
    }

    fn is_spent(&self) -> bool {
        self.records >= KEY_RECORDS_MAX - RESERVED_RECORDS
            || self.bytes >= KEY_BYTES_MAX - RESERVED_BYTES
    }
}

/// A record holds at least its type and its tag; its length is a `u16`.
pub(crate) const RECORD_LENGTHS: RangeInclusive<usize> = 1 + TAG_BYTES..=65_535;

/// What fits into one record besides type and tag.
pub(crate) const BODY_BYTES_MAX: usize = 65_535 - TAG_BYTES - 1;

const LENGTH_BYTES: usize = 2;

/// protocol.md 2.5.
pub(crate) const KEY_RECORDS_MAX: u64 = 1 << 32;

/// protocol.md 2.5: 64 GiB, counted in ciphertext.
const KEY_BYTES_MAX: u64 = 64 << 30;

/// The close, and the record after which the limit was seen.
const RESERVED_RECORDS: u64 = 2;

/// The two of [`RESERVED_RECORDS`], as long as records can be.
const RESERVED_BYTES: u64 = 2 * 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_spent_while_its_last_record_can_still_be_the_close() {
        let mut usage = Usage {
            records: KEY_RECORDS_MAX - 3,
            bytes: 0,
        };
        assert!(!usage.is_spent());
        usage.count(17);
        assert!(usage.is_spent());
        usage.count(17);
        assert!(usage.records < KEY_RECORDS_MAX);
    }

    #[test]
    fn a_key_is_spent_before_its_64_gib_are_full() {
        let mut usage = Usage {
            records: 0,
            bytes: KEY_BYTES_MAX - 2 * 65_535 - 1,
        };
        assert!(!usage.is_spent());
        usage.count(65_535);
        assert!(usage.is_spent());
        usage.count(65_535);
        assert!(usage.bytes < KEY_BYTES_MAX);
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let stream = [&[0, 2, 8, 9][..], &[0, 1, 7]].concat();
        for cut in 1..=stream.len() {
            let mut incoming = Incoming::default();
            let mut frames = Vec::new();
            for bytes in stream.chunks(cut) {
                incoming.buffer().extend_from_slice(bytes);
                while let Some(frame) = incoming.take(&Expected::Frame(1..=2)).unwrap() {
                    frames.push(frame.to_vec());
                }
            }
            assert_eq!(frames, [vec![8, 9], vec![7]]);
            assert!(incoming.is_empty());
        }
    }

    #[test]
    fn a_length_out_of_range_is_refused_before_its_bytes_have_come() {
        for length in [0, 3, 65_535_u16] {
            let mut incoming = Incoming::default();
            incoming.buffer().extend_from_slice(&length.to_be_bytes());
            let refused = incoming.take(&Expected::Frame(1..=2));
            assert_eq!(refused, Err(usize::from(length)));
        }
    }
}
