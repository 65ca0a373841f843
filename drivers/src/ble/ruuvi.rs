//! RuuviTag, broadcast format 5 ("RAWv2").
//!
//! Source: <https://docs.ruuvi.com/communication/bluetooth-advertisements/data-format-5-rawv2>;
//! the tests are the document's own vectors.

use wire::{Decimal, Measurement, Quality, Unit, Value};

use super::DecodeError;

/// Company identifier under which a tag broadcasts its manufacturer data (Bluetooth Assigned
/// Numbers, 7.1).
pub const COMPANY: u16 = 0x0499;

/// What one advertisement says.
#[derive(Clone, Debug, PartialEq)]
pub struct Packet {
    /// Counts the tag's measurements, 0 to 65,534; an advertisement that is repeated repeats it.
    pub sequence: Option<u16>,
    /// One for each quantity the tag could measure; may be empty.
    pub measurements: Vec<Measurement>,
}

/// Decodes the manufacturer data of one advertisement, without the company identifier.
///
/// | bytes | channel                               | on the air            | measured in |
/// |-------|---------------------------------------|-----------------------|-------------|
/// | 1–2   | `temperature`                         | `i16`, 0.005 °C       | Cel         |
/// | 3–4   | `humidity`                            | `u16`, 0.0025 %       | %RH         |
/// | 5–6   | `pressure`                            | `u16`, Pa − 50,000    | Pa          |
/// | 7–12  | `acceleration-x`, `-y`, `-z`          | `i16`, 0.001 g        | m/s2        |
/// | 13–14 | `voltage`                             | 11 bits, mV − 1,600   | V           |
/// | 14    | `tx-power`                            | 5 bits, 2 dB − 40 dBm | dBm         |
/// | 15    | `movements`                           | `u8`, wraps           | count       |
/// | 16–17 | [`sequence`](Packet::sequence)        | `u16`                 |             |
/// | 18–23 | not read: the tag's own address       |                       |             |
///
/// Values are exact; g is 9.80665 m/s². A field that the tag marks as not available (the largest
/// unsigned, the smallest signed number) is left out.
///
/// # Errors
///
/// [`DecodeError::Format`] if this is another Ruuvi format, [`DecodeError::Length`] if it is cut.
pub fn decode(payload: &[u8]) -> Result<Packet, DecodeError> {
    if let Some(&format) = payload.first()
        && format != FORMAT
    {
        return Err(DecodeError::Format(format));
    }
    let payload: &[u8; PAYLOAD_BYTES] = payload.try_into().map_err(|_| DecodeError::Length {
        bytes: payload.len(),
        expected: PAYLOAD_BYTES,
    })?;
    let [
        _,
        t1,
        t0,
        h1,
        h0,
        p1,
        p0,
        x1,
        x0,
        y1,
        y0,
        z1,
        z0,
        power1,
        power0,
        moves,
        s1,
        s0,
        ..,
    ] = *payload;
    let power = u16::from_be_bytes([power1, power0]);

    let measurements = [
        signed([t1, t0]).map(|raw| decimal("temperature", raw * 5, -3, Unit::Celsius)),
        unsigned([h1, h0]).map(|raw| decimal("humidity", raw * 25, -4, Unit::RelativeHumidity)),
        unsigned([p1, p0]).map(|raw| integer("pressure", raw + 50_000, Unit::Pascal)),
        signed([x1, x0]).map(|raw| acceleration("acceleration-x", raw)),
        signed([y1, y0]).map(|raw| acceleration("acceleration-y", raw)),
        signed([z1, z0]).map(|raw| acceleration("acceleration-z", raw)),
        available(power >> 5, 0x7FF).map(|raw| decimal("voltage", raw + 1600, -3, Unit::Volt)),
        available(power & 0x1F, 0x1F)
            .map(|raw| integer("tx-power", raw * 2 - 40, Unit::DecibelMilliwatt)),
        available(moves.into(), 0xFF).map(|raw| integer("movements", raw, Unit::Count)),
    ];
    let sequence = u16::from_be_bytes([s1, s0]);
    Ok(Packet {
        sequence: (sequence != u16::MAX).then_some(sequence),
        measurements: measurements.into_iter().flatten().collect(),
    })
}

fn signed(bytes: [u8; 2]) -> Option<i64> {
    match i16::from_be_bytes(bytes) {
        i16::MIN => None,
        raw => Some(raw.into()),
    }
}

fn unsigned(bytes: [u8; 2]) -> Option<i64> {
    available(u16::from_be_bytes(bytes), u16::MAX)
}

fn available(raw: u16, not_available: u16) -> Option<i64> {
    (raw != not_available).then_some(raw.into())
}

/// From thousandths of g.
fn acceleration(channel: &str, raw: i64) -> Measurement {
    decimal(
        channel,
        raw * STANDARD_GRAVITY,
        -8,
        Unit::MeterPerSquareSecond,
    )
}

fn integer(channel: &str, value: i64, unit: Unit) -> Measurement {
    measurement(channel, Value::Integer(value), unit)
}

fn decimal(channel: &str, mantissa: i64, exponent: i8, unit: Unit) -> Measurement {
    let value = Value::Decimal(Decimal::new(mantissa, exponent));
    measurement(channel, value, unit)
}

fn measurement(channel: &str, value: Value, unit: Unit) -> Measurement {
    Measurement {
        channel: channel.to_owned(),
        value,
        unit: Some(unit),
        quality: Quality::Ok,
    }
}

/// First byte of the payload.
const FORMAT: u8 = 5;

/// All fields, none of which is optional.
const PAYLOAD_BYTES: usize = 24;

/// In units of 0.00001 m/s²: the standard acceleration of free fall (3rd CGPM, 1901).
const STANDARD_GRAVITY: i64 = 980_665;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_valid_vector_is_decoded() {
        let packet = decode_hex("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F");

        assert_eq!(packet.sequence, Some(205));
        assert_eq!(
            shown(&packet),
            [
                "temperature 24.3 Cel",
                "humidity 53.49 %RH",
                "pressure 100044 Pa",
                "acceleration-x 0.0392266 m/s2",
                "acceleration-y -0.0392266 m/s2",
                "acceleration-z 10.1596894 m/s2",
                "voltage 2.977 V",
                "tx-power 4 dBm",
                "movements 66 count",
            ]
        );
    }

    #[test]
    fn the_vector_of_largest_values_is_decoded() {
        let packet = decode_hex("057FFFFFFEFFFE7FFF7FFF7FFFFFDEFEFFFECBB8334C884F");

        assert_eq!(packet.sequence, Some(65_534));
        assert_eq!(
            shown(&packet),
            [
                "temperature 163.835 Cel",
                "humidity 163.835 %RH",
                "pressure 115534 Pa",
                "acceleration-x 321.33450055 m/s2",
                "acceleration-y 321.33450055 m/s2",
                "acceleration-z 321.33450055 m/s2",
                "voltage 3.646 V",
                "tx-power 20 dBm",
                "movements 254 count",
            ]
        );
    }

    #[test]
    fn the_vector_of_smallest_values_is_decoded() {
        let packet = decode_hex("058001000000008001800180010000000000CBB8334C884F");

        assert_eq!(packet.sequence, Some(0));
        assert_eq!(
            shown(&packet),
            [
                "temperature -163.835 Cel",
                "humidity 0 %RH",
                "pressure 50000 Pa",
                "acceleration-x -321.33450055 m/s2",
                "acceleration-y -321.33450055 m/s2",
                "acceleration-z -321.33450055 m/s2",
                "voltage 1.6 V",
                "tx-power -40 dBm",
                "movements 0 count",
            ]
        );
    }

    #[test]
    fn what_is_not_available_is_left_out() {
        let packet = decode_hex("058000FFFFFFFF800080008000FFFFFFFFFFFFFFFFFFFFFF");

        assert_eq!(
            packet,
            Packet {
                sequence: None,
                measurements: Vec::new()
            }
        );
    }

    #[test]
    fn other_formats_and_cut_payloads_are_refused() {
        let format_3 = hex::decode("03291A1ECE1EFC18F94202CA0B53").unwrap();
        assert_eq!(decode(&format_3), Err(DecodeError::Format(3)));
        let cut = hex::decode("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C88").unwrap();
        let length = |bytes| DecodeError::Length {
            bytes,
            expected: 24,
        };
        assert_eq!(decode(&cut), Err(length(23)));
        assert_eq!(decode(&[]), Err(length(0)));
    }

    proptest! {
        /// Whatever the air brings is decoded or refused.
        #[test]
        fn no_payload_panics(payload in any::<[u8; 23]>()) {
            let payload: Vec<u8> = std::iter::once(FORMAT).chain(payload).collect();
            prop_assert!(decode(&payload).unwrap().measurements.len() <= 9);
        }
    }

    fn decode_hex(payload: &str) -> Packet {
        decode(&hex::decode(payload).unwrap()).unwrap()
    }

    fn shown(packet: &Packet) -> Vec<String> {
        packet
            .measurements
            .iter()
            .map(|measurement| {
                let unit = measurement.unit.unwrap();
                format!(
                    "{} {} {}",
                    measurement.channel,
                    measurement.value,
                    unit.as_str()
                )
            })
            .collect()
    }
}
