//! The frames of Modbus RTU: a request out, an answer in. Pure.
//!
//! Sources: *MODBUS Application Protocol Specification V1.1b3* (functions, exceptions) and
//! *MODBUS over Serial Line V1.02* (framing, CRC). The tests use their examples.

use std::fmt;
use std::str::FromStr;

use crate::SensorError;

/// Which of a device's two tables of 16-bit registers is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Register {
    /// Holding registers, function 3; a master may write them.
    Holding,
    /// Input registers, function 4; read-only.
    Input,
}

impl Register {
    /// All tables, in the order of their function codes.
    pub const ALL: [Self; 2] = [Self::Holding, Self::Input];

    /// Returns the word used in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Holding => "holding",
            Self::Input => "input",
        }
    }

    const fn function(self) -> u8 {
        match self {
            Self::Holding => 3,
            Self::Input => 4,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Register {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|it| it.as_str() == text);
        found.ok_or(UnknownWord)
    }
}

/// A word that is none of the words of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown word")]
pub struct UnknownWord;

/// A question for consecutive registers of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The device, 1 to 247.
    pub slave_id: u8,
    /// The table.
    pub register: Register,
    /// First register, counted from 0.
    pub address: u16,
    /// How many registers, 1 to [`REGISTERS_MAX`].
    pub count: u16,
}

impl Request {
    /// Returns the frame to send.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let [address_high, address_low] = self.address.to_be_bytes();
        let [count_high, count_low] = self.count.to_be_bytes();
        let function = self.register.function();
        let body = [
            self.slave_id,
            function,
            address_high,
            address_low,
            count_high,
            count_low,
        ];
        let [crc_low, crc_high] = crc(&body).to_le_bytes();
        let [a, b, c, d, e, f] = body;
        [a, b, c, d, e, f, crc_low, crc_high]
    }

    /// Reads a frame that [`encode`](Self::encode) made; none if it is anything else.
    #[must_use]
    pub fn decode(frame: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let [slave_id, function, ah, al, ch, cl, _, _] = *frame;
        let register = Register::ALL
            .into_iter()
            .find(|it| it.function() == function)?;
        let request = Self {
            slave_id,
            register,
            address: u16::from_be_bytes([ah, al]),
            count: u16::from_be_bytes([ch, cl]),
        };
        (request.encode() == *frame).then_some(request)
    }

    /// Returns how long the answer is if the device has what is asked.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        HEAD_BYTES + 2 * usize::from(self.count) + CRC_BYTES
    }

    /// Reads the registers out of what arrived so far.
    ///
    /// What follows a whole answer is ignored: some adapters add a byte when they turn the line
    /// around.
    ///
    /// # Errors
    ///
    /// [`AnswerError::Incomplete`] until the frame is whole. Otherwise the bytes are no answer to
    /// this request; no more bytes will make them one.
    pub fn answer(&self, bytes: &[u8]) -> Result<Vec<u16>, AnswerError> {
        let echo = self.encode();
        match frame_bytes(bytes).and_then(|length| bytes.get(..length)) {
            Some(frame) if is_sound(frame) => self.read(frame),
            _ if bytes.starts_with(&echo) => Err(FrameError::Echo.into()),
            Some(_) if !echo.starts_with(bytes) => Err(SensorError::Crc.into()),
            Some(_) | None => Err(AnswerError::Incomplete),
        }
    }

    /// Reads the registers out of a whole frame with a right checksum.
    fn read(&self, frame: &[u8]) -> Result<Vec<u16>, AnswerError> {
        let [slave_id, function, third, rest @ ..] = frame else {
            return Err(AnswerError::Incomplete);
        };
        if *slave_id != self.slave_id {
            return Err(AnswerError::OtherDevice {
                slave_id: *slave_id,
                bytes: frame.len(),
            });
        }
        let asked = self.register.function();
        if *function == asked | EXCEPTION_BIT {
            return Err(SensorError::Exception(*third).into());
        }
        if *function != asked {
            return Err(FrameError::WrongFunction {
                answered: *function,
                asked,
            }
            .into());
        }
        if frame.len() != self.answer_bytes() {
            return Err(FrameError::WrongLength {
                bytes: frame.len(),
                expected: self.answer_bytes(),
            }
            .into());
        }
        let (words, _crc) = rest.as_chunks::<2>();
        let words = words.iter().take(usize::from(self.count));
        Ok(words.map(|word| u16::from_be_bytes(*word)).collect())
    }
}

/// Why bytes are not, or not yet, the answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// The frame is not whole yet.
    Incomplete,
    /// A sound frame, but of another device: its late answer to an earlier request.
    OtherDevice {
        /// Who speaks.
        slave_id: u8,
        /// Length of its frame; what follows may be the answer.
        bytes: usize,
    },
    /// No answer, for this reason.
    Refused(SensorError),
}

impl From<SensorError> for AnswerError {
    fn from(error: SensorError) -> Self {
        Self::Refused(error)
    }
}

impl From<FrameError> for AnswerError {
    fn from(error: FrameError) -> Self {
        Self::Refused(error.into())
    }
}

/// A frame that is no answer to what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes ended before the frame did.
    #[error("the answer broke off after {bytes} bytes")]
    Short {
        /// How many arrived.
        bytes: usize,
    },
    /// Only another device spoke.
    #[error("device {answered} answered, {asked} was asked")]
    WrongDevice {
        /// Who spoke.
        answered: u8,
        /// Who was meant to.
        asked: u8,
    },
    /// The device answered another question.
    #[error("the answer is to function {answered}, {asked} was asked")]
    WrongFunction {
        /// Function code of the answer.
        answered: u8,
        /// Function code of the request.
        asked: u8,
    },
    /// The device answered with more or fewer registers than asked for.
    #[error("the answer has {bytes} bytes instead of {expected}")]
    WrongLength {
        /// Length of the frame.
        bytes: usize,
        /// Length the request asks for.
        expected: usize,
    },
    /// Our own request came back.
    #[error("the adapter repeats our own request")]
    Echo,
    /// Bytes came without a pause, so that no frame could be sent.
    #[error("the line is never silent")]
    Babble,
    /// A recorded exchange does not start with one of the device's requests.
    #[error("the recording holds no request to this device")]
    NoRequest,
}

impl FrameError {
    /// Returns what a person at the gateway can do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Short { .. } | Self::WrongFunction { .. } => {
                "check wiring and bus termination; raise the timeout of slow devices"
            }
            Self::WrongDevice { .. } => "give each device its own slave_id; raise the timeout",
            Self::WrongLength { .. } => "compare address and type with the device's manual",
            Self::Echo => "switch the adapter's local echo off",
            Self::Babble => "look for a second master on this bus; check baud_rate",
            Self::NoRequest => "record requests together with their answers",
        }
    }
}

/// Says a Modbus exception code in words (Application Protocol V1.1b3, section 7).
#[derive(Clone, Copy, Debug)]
pub struct ExceptionWords(pub u8);

impl fmt::Display for ExceptionWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            1 => "it does not know this function",
            2 => "it has no such address",
            3 => "it does not take this number of registers",
            4 => "it failed",
            5 => "it needs longer",
            6 => "it is busy",
            8 => "its memory is damaged",
            10 => "its gateway is overloaded or wrongly set up",
            11 => "its gateway gets no answer from it",
            code => return write!(f, "exception {code}"),
        };
        f.write_str(words)
    }
}

/// Returns how long the frame is that starts here, once its head has arrived.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [_, function, ..] if function & EXCEPTION_BIT != 0 => Some(HEAD_BYTES + CRC_BYTES),
        [_, _, byte_count, ..] => Some(HEAD_BYTES + usize::from(*byte_count) + CRC_BYTES),
        _ => None,
    }
}

/// Whether the frame ends with its own checksum.
fn is_sound(frame: &[u8]) -> bool {
    frame
        .split_last_chunk::<CRC_BYTES>()
        .is_some_and(|(body, sent)| crc(body).to_le_bytes() == *sent)
}

/// Adds the checksum to a body.
#[cfg(test)]
pub(super) fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = body.to_vec();
    frame.extend(crc(body).to_le_bytes());
    frame
}

/// CRC-16 as in Serial Line V1.02, section 6.2.2: polynomial 0xA001 reflected, start 0xFFFF.
///
/// Bit by bit: a frame has 256 bytes at most, and arrives at 4 Mbit/s at most.
fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            let shifted = crc >> 1;
            if crc & 1 == 1 {
                shifted ^ 0xA001
            } else {
                shifted
            }
        })
    })
}

/// Most registers one request may ask for (Application Protocol V1.1b3, sections 6.3 and 6.4).
pub const REGISTERS_MAX: u16 = 125;

/// Slave id, function, address, count, CRC.
pub const REQUEST_BYTES: usize = 8;

/// Longest frame (Serial Line V1.02, section 2.5.1).
pub const FRAME_BYTES_MAX: usize = 256;

/// Slave id, function, and the byte count or exception code.
const HEAD_BYTES: usize = 3;

const CRC_BYTES: usize = 2;

/// Set in the function code of an answer that refuses.
const EXCEPTION_BIT: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Serial Line V1.02, section 6.2.2: "02 07" is sent as "02 07 41 12".
    #[test]
    fn the_checksum_is_the_specifications() {
        assert_eq!(crc(&[0x02, 0x07]).to_le_bytes(), [0x41, 0x12]);
        // The check value that catalogues list for CRC-16/MODBUS.
        assert_eq!(crc(b"123456789"), 0x4B37);
    }

    /// Application Protocol V1.1b3, section 6.3: registers 108 to 110.
    #[test]
    fn holding_registers_are_asked_and_read_as_specified() {
        let request = Request {
            slave_id: 0x11,
            register: Register::Holding,
            address: 107,
            count: 3,
        };

        assert_eq!(request.encode()[1..6], [0x03, 0x00, 0x6B, 0x00, 0x03]);
        // The same request with its checksum, from Modicon's PI-MBUS-300, Rev. J.
        assert_eq!(hex::encode(request.encode()), "1103006b00037687");
        let answer = framed(&[0x11, 0x03, 0x06, 0x02, 0x2B, 0x00, 0x00, 0x00, 0x64]);
        assert_eq!(request.answer(&answer), Ok(vec![555, 0, 100]));
    }

    /// Application Protocol V1.1b3, section 6.4: register 9.
    #[test]
    fn input_registers_are_asked_and_read_as_specified() {
        let request = Request {
            slave_id: 1,
            register: Register::Input,
            address: 8,
            count: 1,
        };

        assert_eq!(request.encode()[1..6], [0x04, 0x00, 0x08, 0x00, 0x01]);
        let answer = framed(&[0x01, 0x04, 0x02, 0x00, 0x0A]);
        assert_eq!(request.answer(&answer), Ok(vec![10]));
    }

    /// Answers of pymodbus 3.16.1 to the same request.
    #[test]
    fn a_foreign_slaves_frames_are_read() {
        let request = Request {
            slave_id: 1,
            register: Register::Holding,
            address: 10,
            count: 2,
        };
        assert_eq!(hex::encode(request.encode()), "0103000a0002e409");

        let answer = hex::decode("01030400003fa0ebbb").unwrap();
        assert_eq!(request.answer(&answer), Ok(vec![0, 0x3FA0]));
        let refusal = hex::decode("018302c0f1").unwrap();
        assert_eq!(
            request.answer(&refusal),
            Err(SensorError::Exception(2).into())
        );
    }

    #[test]
    fn an_answer_is_incomplete_until_its_last_byte() {
        let answer = framed(&[0x01, 0x04, 0x04, 0x00, 0x0A, 0x00, 0x0B]);
        for length in 0..answer.len() {
            assert_eq!(
                REQUEST.answer(&answer[..length]),
                Err(AnswerError::Incomplete)
            );
        }
        assert_eq!(REQUEST.answer(&answer), Ok(vec![10, 11]));
    }

    #[test]
    fn what_follows_an_answer_is_ignored() {
        let mut answer = framed(&[0x01, 0x04, 0x04, 0x00, 0x0A, 0x00, 0x0B]);
        answer.push(0xFF);
        assert_eq!(REQUEST.answer(&answer), Ok(vec![10, 11]));
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let length = |bytes| FrameError::WrongLength { bytes, expected: 9 };
        let function = FrameError::WrongFunction {
            answered: 3,
            asked: 4,
        };
        let other = AnswerError::OtherDevice {
            slave_id: 2,
            bytes: 9,
        };
        for (body, error) in [
            ("04020001", length(7).into()),
            ("0406000100020003", length(11).into()),
            ("0403000102", length(8).into()),
            ("030400010002", function.into()),
        ] {
            let answer = framed(&hex::decode(format!("01{body}")).unwrap());
            assert_eq!(REQUEST.answer(&answer), Err(error), "{body}");
        }
        let answer = framed(&[0x02, 0x04, 0x04, 0x00, 0x0A, 0x00, 0x0B]);
        assert_eq!(REQUEST.answer(&answer), Err(other));
    }

    /// The first bytes of an echo look like a frame, so it must be told before its end.
    #[test]
    fn our_own_request_is_recognised_however_it_arrives() {
        for address in [0, 8, 0x0200, 0x0400, 0xFFFF] {
            let request = Request { address, ..REQUEST };
            let echo = request.encode();
            for length in 0..echo.len() {
                assert_eq!(
                    request.answer(&echo[..length]),
                    Err(AnswerError::Incomplete)
                );
            }
            assert_eq!(request.answer(&echo), Err(FrameError::Echo.into()));
            let mut both = echo.to_vec();
            both.extend(framed(&[0x01, 0x04, 0x04, 0x00, 0x0A, 0x00, 0x0B]));
            assert_eq!(request.answer(&both), Err(FrameError::Echo.into()));
        }
    }

    #[test]
    fn exceptions_are_said_in_words() {
        assert_eq!(
            SensorError::Exception(2).to_string(),
            "the device refuses: it has no such address"
        );
        assert_eq!(
            SensorError::Exception(17).to_string(),
            "the device refuses: exception 17"
        );
    }

    proptest! {
        /// Whatever bytes arrive, and they start like an answer: no panic, no invented register.
        #[test]
        fn any_bytes_are_an_answer_or_an_error(
            request in any_request(),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            plausible: bool,
        ) {
            let mut bytes = bytes;
            if plausible {
                bytes.splice(..0, [request.slave_id, request.register.function()]);
            }
            if let Ok(registers) = request.answer(&bytes) {
                prop_assert_eq!(registers.len(), usize::from(request.count));
                prop_assert!(is_sound(&bytes[..request.answer_bytes()]));
            }
        }

        /// A frame with one flipped bit brings no registers, wherever the bit is.
        #[test]
        fn a_flipped_bit_is_never_read(
            registers in proptest::collection::vec(any::<u16>(), 1..=125),
            position: proptest::sample::Index,
        ) {
            let count = u16::try_from(registers.len()).unwrap();
            let request = Request { count, ..REQUEST };
            let mut body = vec![1, 4, u8::try_from(count * 2).unwrap()];
            body.extend(registers.iter().flat_map(|register| register.to_be_bytes()));
            let mut answer = framed(&body);
            prop_assert_eq!(request.answer(&answer), Ok(registers));

            let bit = position.index(answer.len() * 8);
            answer[bit / 8] ^= 1 << (bit % 8);

            prop_assert!(request.answer(&answer).is_err());
        }

        /// Requests read back; any other eight bytes are none.
        #[test]
        fn requests_read_back(request in any_request(), other: [u8; REQUEST_BYTES]) {
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
            if let Some(request) = Request::decode(&other) {
                prop_assert_eq!(request.encode(), other);
            }
        }
    }

    const REQUEST: Request = Request {
        slave_id: 1,
        register: Register::Input,
        address: 8,
        count: 2,
    };

    fn any_request() -> impl Strategy<Value = Request> {
        let register = proptest::sample::select(&Register::ALL[..]);
        (any::<u8>(), register, any::<u16>(), 1..=REGISTERS_MAX).prop_map(
            |(slave_id, register, address, count)| Request {
                slave_id,
                register,
                address,
                count,
            },
        )
    }
}
