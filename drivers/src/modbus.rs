//! Modbus RTU, as the only master of a serial bus.
//!
//! | part           | what it knows                                             |
//! |----------------|-----------------------------------------------------------|
//! | [`frame`]      | the bytes of a request and of its answer                  |
//! | [`conversion`] | which value a few registers hold                          |
//! | `plan`         | which requests fetch a device's channels                  |
//! | `exchange`     | one request and its answer on a line that may misbehave   |
//! | `bus`          | whose turn it is, and what happens when a device is sick  |
//!
//! Functions 3 and 4 are spoken; nothing is ever written to a device.

mod bus;
pub mod conversion;
mod exchange;
pub mod frame;
mod plan;

use std::time::Duration;

use wire::{Decimal, Measurement, Unit};

pub use bus::Bus;
pub use conversion::{ByteOrder, DataType};
pub use frame::{ExceptionWords, FrameError, Register};

use crate::SensorError;
use frame::{AnswerError, REQUEST_BYTES, Request};

/// One device on the bus, and what to read from it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceConfig {
    /// Name of the sensor.
    pub sensor: String,
    /// Its address on the bus, 1 to 247; no two devices of a bus share one.
    pub slave_id: u8,
    /// Time from one reading to the next; anything below 100 ms counts as 100 ms.
    pub interval: Duration,
    /// How long it may think before its answer starts, 10 ms to 1 min; none for the bus's value.
    pub timeout: Option<Duration>,
    /// How it spreads a value over bytes and registers.
    pub byte_order: ByteOrder,
    /// What to read, at least one.
    pub channels: Vec<ChannelConfig>,
}

/// One value of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelConfig {
    /// Name of the channel.
    pub name: String,
    /// Table it is in.
    pub register: Register,
    /// Its first register, counted from 0.
    pub address: u16,
    /// How the registers are read.
    pub data_type: DataType,
    /// Registers of a [`DataType::Text`], 1 to 125; without meaning for other types.
    pub length: u16,
    /// Value = raw × scale + offset.
    pub scale: Decimal,
    /// See `scale`.
    pub offset: Decimal,
    /// Unit of the value.
    pub unit: Option<Unit>,
    /// Smallest and largest believable value; others get quality `out_of_range`.
    pub range: Option<(Decimal, Decimal)>,
    /// Raw values that mean "none", signed or as bit pattern; they become null, `invalid`.
    pub invalid: Vec<i64>,
}

impl ChannelConfig {
    /// Returns how many registers the channel takes, 1 to 125.
    #[must_use]
    pub fn registers(&self) -> u16 {
        self.data_type.registers(self.length)
    }
}

/// Decodes one recorded exchange: a request frame and, right after it, the device's answer.
///
/// Returns those channels of `device` that the request covers. Made for
/// [`replay`](crate::replay).
///
/// # Errors
///
/// [`SensorError::Format`] if the bytes are no exchange with this device;
/// [`SensorError::Crc`] or [`SensorError::Exception`] as on the wire.
pub fn decode_exchange(
    device: &DeviceConfig,
    bytes: &[u8],
) -> Result<Vec<Measurement>, SensorError> {
    let (request, answer) = bytes
        .split_first_chunk::<REQUEST_BYTES>()
        .and_then(|(request, answer)| Some((Request::decode(request)?, answer)))
        .filter(|(request, _)| request.slave_id == device.slave_id)
        .ok_or(FrameError::NoRequest)?;
    let registers = request.answer(answer).map_err(|error| match error {
        AnswerError::Refused(error) => error,
        AnswerError::Incomplete => FrameError::Short {
            bytes: answer.len(),
        }
        .into(),
        AnswerError::OtherDevice { slave_id, .. } => FrameError::WrongDevice {
            answered: slave_id,
            asked: device.slave_id,
        }
        .into(),
    })?;
    Ok(plan::read(device, &request, &registers))
}

#[cfg(test)]
pub(crate) mod fixture;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::Value;

    use super::*;
    use fixture::{channel, device};

    /// A request of ours and pymodbus' answer.
    #[test]
    fn a_recorded_exchange_is_decoded() {
        let mut device = device(1);
        device.byte_order = ByteOrder::Cdab;
        device.channels = vec![channel("flow", 10, DataType::Float32)];
        device.channels[0].register = Register::Holding;

        let measured = decode_exchange(&device, &exchange("01030400003fa0ebbb")).unwrap();

        assert_eq!(measured.len(), 1);
        assert_eq!(measured[0].channel, "flow");
        assert_eq!(measured[0].value, Value::Float(1.25));
    }

    #[test]
    fn a_recording_of_something_else_is_refused() {
        let error = |answer| decode_exchange(&device(1), &exchange(answer)).unwrap_err();
        assert_eq!(error("018302c0f1"), SensorError::Exception(2));
        assert_eq!(error("01030400003fa0ebbc"), SensorError::Crc);
        assert_eq!(error("010304"), FrameError::Short { bytes: 3 }.into());

        let foreign = decode_exchange(&device(2), &exchange("01030400003fa0ebbb"));
        assert_eq!(foreign, Err(FrameError::NoRequest.into()));
    }

    proptest! {
        /// No recording makes the decoder panic.
        #[test]
        fn any_recording_is_decoded_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            whole: bool,
        ) {
            let bytes = if whole { [exchange(""), bytes].concat() } else { bytes };
            let _ = decode_exchange(&device(1), &bytes);
        }
    }

    fn exchange(answer: &str) -> Vec<u8> {
        hex::decode(format!("0103000a0002e409{answer}")).unwrap()
    }
}
