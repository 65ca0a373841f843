//! Messages of the `upload` stream; see `protocol.md` 4.

use crate::cbor::{self, Message, Reader, Writer};
use crate::closed::coded;
use crate::{Class, WireError};

/// What a gateway says to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToService {
    /// The first message: `[1, [[class, chain id, oldest epoch id, oldest number]]]`.
    Hello(Vec<LaneOffer>),
    /// An epoch's signed header, before the epoch's batches: `[3, header]`.
    Header(Vec<u8>),
    /// A sealed batch: `[4, batch]`.
    Batch(Vec<u8>),
    /// "Below this number I hold nothing": `[5, chain id, epoch id, from]`.
    Below {
        /// The lane's chain.
        chain_id: [u8; 16],
        /// The epoch.
        epoch_id: [u8; 32],
        /// The lowest number it may still send.
        from: u32,
    },
}

/// A lane that a gateway has, and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneOffer {
    /// The lane's class.
    pub class: Class,
    /// The lane's chain.
    pub chain_id: [u8; 16],
    /// Epoch id and number of the oldest batch held; `None` for a lane that holds none.
    pub oldest: Option<([u8; 32], u32)>,
}

/// What a service says to a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGateway {
    /// Answers the hello: `[2, window, [[class, chain id, index, epoch id, next]]]`.
    Welcome {
        /// How many bytes may be on the way uncommitted.
        window: u32,
        /// The newest known epoch of each lane that the service has seen.
        lanes: Vec<LaneKnown>,
    },
    /// Every number below `next` is committed or declared gone: `[6, epoch id, next]`.
    Ack {
        /// The epoch.
        epoch_id: [u8; 32],
        /// The first number that is not committed.
        next: u32,
    },
    /// Something cannot be taken: `[7, epoch id, number / null, code]`.
    Problem {
        /// The epoch.
        epoch_id: [u8; 32],
        /// The batch, or `None` for the header.
        number: Option<u32>,
        /// What is wrong with it.
        code: ProblemCode,
    },
}

/// A lane that a service knows, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneKnown {
    /// The lane's class.
    pub class: Class,
    /// The lane's chain.
    pub chain_id: [u8; 16],
    /// The newest known epoch's place in the chain.
    pub index: u64,
    /// The newest known epoch.
    pub epoch_id: [u8; 32],
    /// The first number of that epoch that is not committed.
    pub next: u32,
}

coded! {
    /// Why a header or a batch cannot be taken.
    ProblemCode "problem code" {
        /// It does not verify or does not open: changed on the way or on a disk.
        Altered = 1 => "altered",
        /// The service no longer has the record key for this epoch.
        Unopenable = 2 => "cannot be opened: the record key is gone",
        /// It is larger than a batch may be.
        TooLarge = 3 => "too large",
        /// It is another gateway's, or for another service.
        NotYours = 4 => "belongs to another gateway or service",
        /// The service cannot take it now.
        Later = 5 => "not now",
    }
}

impl ToService {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode_bounded(bytes, MESSAGE_BYTES_MAX)
    }
}

impl ToGateway {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode_bounded(bytes, MESSAGE_BYTES_MAX)
    }
}

impl Message for ToService {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Hello(lanes) => writer.array(2).uint(HELLO).list(lanes, write_offer),
            Self::Header(header) => writer.array(2).uint(HEADER).bytes(header),
            Self::Batch(batch) => writer.array(2).uint(BATCH).bytes(batch),
            Self::Below {
                chain_id,
                epoch_id,
                from,
            } => writer
                .array(4)
                .uint(BELOW)
                .bytes(chain_id)
                .bytes(epoch_id)
                .uint(*from),
        };
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (kind, items) = reader.kind_of_array()?;
        match (kind, items) {
            (HELLO, 2) => reader.list(read_offer).map(Self::Hello),
            (HEADER, 2) => reader.bytes().map(Self::Header),
            (BATCH, 2) => reader.bytes().map(Self::Batch),
            (BELOW, 4) => Ok(Self::Below {
                chain_id: reader.sized()?,
                epoch_id: reader.sized()?,
                from: read_next(reader)?,
            }),
            _ => Err(reader.malformed()),
        }
    }
}

impl Message for ToGateway {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Welcome { window, lanes } => writer
                .array(3)
                .uint(WELCOME)
                .uint(*window)
                .list(lanes, write_known),
            Self::Ack { epoch_id, next } => writer.array(3).uint(ACK).bytes(epoch_id).uint(*next),
            Self::Problem {
                epoch_id,
                number,
                code,
            } => {
                writer.array(4).uint(PROBLEM).bytes(epoch_id);
                match number {
                    Some(number) => writer.uint(*number),
                    None => writer.null(),
                };
                writer.uint(u8::from(*code))
            }
        };
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (kind, items) = reader.kind_of_array()?;
        match (kind, items) {
            (WELCOME, 3) => Ok(Self::Welcome {
                window: reader.u32()?,
                lanes: reader.list(read_known)?,
            }),
            (ACK, 3) => Ok(Self::Ack {
                epoch_id: reader.sized()?,
                next: read_next(reader)?,
            }),
            (PROBLEM, 4) => Ok(Self::Problem {
                epoch_id: reader.sized()?,
                number: reader.nullable(read_number)?,
                code: reader.code()?,
            }),
            _ => Err(reader.malformed()),
        }
    }
}

fn write_offer(writer: &mut Writer, lane: &LaneOffer) {
    writer
        .array(4)
        .uint(u8::from(lane.class))
        .bytes(&lane.chain_id);
    match &lane.oldest {
        Some((epoch_id, number)) => writer.bytes(epoch_id).uint(*number),
        None => writer.null().null(),
    };
}

fn read_offer(reader: &mut Reader<'_>) -> Result<LaneOffer, WireError> {
    reader.array(4)?;
    let class = reader.code()?;
    let chain_id = reader.sized()?;
    let epoch_id = reader.nullable(Reader::sized)?;
    let at = reader.malformed();
    let oldest = match (epoch_id, reader.nullable(read_number)?) {
        (Some(epoch_id), Some(number)) => Some((epoch_id, number)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(at),
    };
    Ok(LaneOffer {
        class,
        chain_id,
        oldest,
    })
}

fn write_known(writer: &mut Writer, lane: &LaneKnown) {
    writer
        .array(5)
        .uint(u8::from(lane.class))
        .bytes(&lane.chain_id)
        .uint(lane.index)
        .bytes(&lane.epoch_id)
        .uint(lane.next);
}

fn read_known(reader: &mut Reader<'_>) -> Result<LaneKnown, WireError> {
    reader.array(5)?;
    Ok(LaneKnown {
        class: reader.code()?,
        chain_id: reader.sized()?,
        index: reader.u64()?,
        epoch_id: reader.sized()?,
        next: read_next(reader)?,
    })
}

/// The number of a batch.
fn read_number(reader: &mut Reader<'_>) -> Result<u32, WireError> {
    match reader.u32()? {
        number if number < EPOCH_BATCHES_MAX => Ok(number),
        _ => Err(WireError::Value {
            field: "batch number",
        }),
    }
}

/// The number after that of a batch.
fn read_next(reader: &mut Reader<'_>) -> Result<u32, WireError> {
    match reader.u32()? {
        next if next <= EPOCH_BATCHES_MAX => Ok(next),
        _ => Err(WireError::Value {
            field: "batch number",
        }),
    }
}

/// Longest message: 1.1 MiB (`protocol.md` 4), for a batch of 1 MiB ciphertext and its frame.
pub const MESSAGE_BYTES_MAX: usize = 1_153_433;

/// Most batches in an epoch (`protocol.md` 3.3).
const EPOCH_BATCHES_MAX: u32 = 65_536;

// The first item of each message.
const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const HEADER: u8 = 3;
const BATCH: u8 = 4;
const BELOW: u8 = 5;
const ACK: u8 = 6;
const PROBLEM: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are cbor2's (Python, canonical).
    #[test]
    fn messages_to_the_service_have_these_bytes() {
        let offers = vec![
            LaneOffer {
                class: Class::Critical,
                chain_id: chain_id(),
                oldest: Some((epoch_id(), 7)),
            },
            LaneOffer {
                class: Class::Bulk,
                chain_id: std::array::from_fn(|at| 0x10 + u8::try_from(at).unwrap()),
                oldest: None,
            },
        ];
        let below = ToService::Below {
            chain_id: chain_id(),
            epoch_id: epoch_id(),
            from: 65_536,
        };
        for (message, bytes) in [
            (ToService::Hello(offers), HELLO_BYTES),
            (ToService::Header(b"header".to_vec()), "820346686561646572"),
            (ToService::Batch(b"batch".to_vec()), "8204456261746368"),
            (below, BELOW_BYTES),
        ] {
            assert_eq!(hex::encode(message.encode()), bytes);
            assert_eq!(ToService::decode(&hex::decode(bytes).unwrap()), Ok(message));
        }
    }

    /// The bytes are cbor2's (Python, canonical).
    #[test]
    fn messages_to_the_gateway_have_these_bytes() {
        let welcome = ToGateway::Welcome {
            window: 1_048_576,
            lanes: vec![LaneKnown {
                class: Class::Normal,
                chain_id: chain_id(),
                index: 293,
                epoch_id: epoch_id(),
                next: 12,
            }],
        };
        let ack = ToGateway::Ack {
            epoch_id: epoch_id(),
            next: 65_535,
        };
        let problem = |number, code| ToGateway::Problem {
            epoch_id: epoch_id(),
            number,
            code,
        };
        for (message, bytes) in [
            (welcome, WELCOME_BYTES),
            (ack, ACK_BYTES),
            (problem(None, ProblemCode::Unopenable), HEADER_PROBLEM_BYTES),
            (
                problem(Some(300), ProblemCode::Altered),
                BATCH_PROBLEM_BYTES,
            ),
        ] {
            assert_eq!(hex::encode(message.encode()), bytes);
            assert_eq!(ToGateway::decode(&hex::decode(bytes).unwrap()), Ok(message));
        }
    }

    #[test]
    fn a_message_of_the_other_direction_is_refused() {
        assert!(ToGateway::decode(&hex::decode(BELOW_BYTES).unwrap()).is_err());
        assert!(ToService::decode(&hex::decode(ACK_BYTES).unwrap()).is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        let value = |field| Err(WireError::Value { field });
        let ack = |next: &str| hex::decode(ACK_BYTES.replace("19ffff", next)).unwrap();
        assert!(ToGateway::decode(&ack("1a00010000")).is_ok());
        assert_eq!(ToGateway::decode(&ack("1a00010001")), value("batch number"));

        let problem =
            |end: &str| hex::decode(BATCH_PROBLEM_BYTES.replace("19012c01", end)).unwrap();
        assert!(ToGateway::decode(&problem("19ffff05")).is_ok());
        assert_eq!(
            ToGateway::decode(&problem("1a0001000001")),
            value("batch number")
        );
        assert_eq!(ToGateway::decode(&problem("0006")), value("problem code"));

        let hello = |end: &str| hex::decode(HELLO_BYTES.replace("f6f6", end)).unwrap();
        assert!(matches!(
            ToService::decode(&hello("f600")),
            Err(WireError::Malformed { .. })
        ));
        assert_eq!(
            ToService::decode(&hex::decode(HELLO_BYTES.replace("840250", "840350")).unwrap()),
            Err(WireError::Value { field: "class" })
        );
    }

    #[test]
    fn a_message_longer_than_the_limit_is_refused_unread() {
        let mut largest = ToService::Batch(vec![0; MESSAGE_BYTES_MAX - 7]).encode();
        assert_eq!(largest.len(), MESSAGE_BYTES_MAX);
        assert!(ToService::decode(&largest).is_ok());

        largest.push(0);
        assert_eq!(
            ToService::decode(&largest),
            Err(WireError::Oversized {
                bytes: MESSAGE_BYTES_MAX + 1,
                bytes_max: MESSAGE_BYTES_MAX
            })
        );
    }

    #[test]
    fn a_lie_about_the_length_of_a_list_costs_nothing() {
        let hello = hex::decode("82019bffffffffffffffff").unwrap();
        assert_eq!(
            ToService::decode(&hello),
            Err(WireError::Malformed { at: 11 })
        );
    }

    fn chain_id() -> [u8; 16] {
        std::array::from_fn(|at| 0x20 + u8::try_from(at).unwrap())
    }

    fn epoch_id() -> [u8; 32] {
        std::array::from_fn(|at| 0x40 + u8::try_from(at).unwrap())
    }

    const HELLO_BYTES: &str = "820182840050202122232425262728292a2b2c2d2e2f5820404142434445464748494a4b4c4d4e4f5051\
        52535455565758595a5b5c5d5e5f07840250101112131415161718191a1b1c1d1e1ff6f6";
    const BELOW_BYTES: &str = "840550202122232425262728292a2b2c2d2e2f5820404142434445464748494a4b4c4d4e4f5051525354\
        55565758595a5b5c5d5e5f1a00010000";
    const WELCOME_BYTES: &str = "83021a0010000081850150202122232425262728292a2b2c2d2e2f190125582040414243444546474849\
        4a4b4c4d4e4f505152535455565758595a5b5c5d5e5f0c";
    const ACK_BYTES: &str =
        "83065820404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f19ffff";
    const HEADER_PROBLEM_BYTES: &str =
        "84075820404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5ff602";
    const BATCH_PROBLEM_BYTES: &str =
        "84075820404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f19012c01";
}
