//! BTHome v2, unencrypted.
//!
//! Source: <https://bthome.io/format>, and for object ids 0x3B and 0x5F to 0x65 its reference
//! implementation, bthome-ble 3.25. The tests are the document's own examples.

mod objects;

use wire::{Measurement, Quality};

use super::DecodeError;
use objects::{Content, Object};

/// Service under which a device broadcasts its service data (Bluetooth Assigned Numbers, 3.10).
pub const SERVICE: u16 = 0xFCD2;

/// What one advertisement says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packet {
    /// Changes whenever the rest does; an advertisement that is repeated repeats it.
    pub packet_id: Option<u8>,
    /// In the order of the payload.
    pub measurements: Vec<Measurement>,
}

/// Decodes the service data of one advertisement, without the service's UUID.
///
/// A payload is an information byte and then objects: an id, from which follow channel, length,
/// factor and unit, and a little-endian value. Values are exact. Units are those of the SenML
/// registry, into which hPa, lb, mm, L and µS/cm are converted exactly; UV index, °/s and m³/h
/// have none there and none here. The channel is the object's name in the document, with `-` for
/// a space. Its exceptions are `pm25`, and four states that share their name with a quantity:
/// `battery-low`, `power-on`, `gas-detected` and `moisture-detected`.
///
/// The second object of a channel becomes `temperature-2`, the third `temperature-3`. States are
/// true or false. Events are text: `press`, `rotate_left 3` (steps), `step_up 0a` (arguments in
/// hexadecimal). The event 0 ("none") and device information are left out.
///
/// An unknown object id or a cut object ends the payload, and what was read before is kept: the
/// document adds objects with higher ids, and asks for ascending order.
///
/// # Errors
///
/// [`DecodeError::Version`] and [`DecodeError::Encrypted`] as the information byte says,
/// [`DecodeError::Nothing`] if not one object is known.
pub fn decode(payload: &[u8]) -> Result<Packet, DecodeError> {
    let (&information, mut rest) = payload.split_first().ok_or(DecodeError::Nothing)?;
    if information >> VERSION_SHIFT != VERSION {
        return Err(DecodeError::Version(information >> VERSION_SHIFT));
    }
    if information & ENCRYPTED != 0 {
        return Err(DecodeError::Encrypted);
    }
    if information & ADDRESS_INCLUDED != 0 {
        rest = rest.get(ADDRESS_BYTES..).ok_or(DecodeError::Nothing)?;
    }

    let mut packet = Packet::default();
    let mut channels = Vec::new();
    let mut understood = false;
    while let Some((object, value, next)) = Object::split_from(rest) {
        rest = next;
        understood = true;
        match object.content(value) {
            Content::PacketId(id) => packet.packet_id = Some(id),
            Content::Measured(value) => {
                channels.push(object.channel);
                packet.measurements.extend(value.map(|value| Measurement {
                    channel: numbered(&channels, object.channel),
                    value,
                    unit: object.unit(),
                    quality: Quality::Ok,
                }));
            }
            Content::DeviceInformation => {}
        }
    }
    if understood {
        Ok(packet)
    } else {
        Err(DecodeError::Nothing)
    }
}

/// Tells apart several objects of one channel, of which `channels` has all up to this one.
fn numbered(channels: &[&str], channel: &str) -> String {
    match channels.iter().filter(|other| **other == channel).count() {
        0 | 1 => channel.to_owned(),
        number => format!("{channel}-{number}"),
    }
}

/// Bits 5 to 7 of the information byte.
const VERSION_SHIFT: u32 = 5;

/// The version described here.
const VERSION: u8 = 2;

/// Bit 0 of the information byte.
const ENCRYPTED: u8 = 1;

/// Bit 1 of the information byte: the device's address comes before the objects. Reserved in the
/// document, used by the reference implementation.
const ADDRESS_INCLUDED: u8 = 1 << 1;

/// A Bluetooth address.
const ADDRESS_BYTES: usize = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::Value;

    use super::*;

    /// The examples of <https://bthome.io/format>, and of bthome-ble's own tests where that page
    /// has none; values as given there, in the units of the SenML registry.
    const EXAMPLES: &[(&str, &str)] = &[
        ("0161", "battery 97 %EL"),
        ("02ca09", "temperature 25.06 Cel"),
        ("03bf13", "humidity 50.55 %RH"),
        ("04138a01", "pressure 100883 Pa"),
        ("05138a14", "illuminance 13460.67 lx"),
        ("065e1f", "mass 80.3 kg"),
        ("073e1d", "mass 33.9559248182 kg"),
        ("08ca06", "dewpoint 17.38 Cel"),
        ("0960", "count 96 count"),
        ("0a138a14", "energy 1346067 Wh"),
        ("0b021b00", "power 69.14 W"),
        ("0c020c", "voltage 3.074 V"),
        ("0d120c", "pm25 3090 ug/m3"),
        ("0e021c", "pm10 7170 ug/m3"),
        ("0f01", "generic-boolean true"),
        ("1001", "power-on true"),
        ("1100", "opening false"),
        ("12e204", "co2 1250 ppm"),
        ("133301", "tvoc 307 ug/m3"),
        ("14020c", "moisture 30.74 %"),
        ("1501", "battery-low true"),
        ("1601", "battery-charging true"),
        ("1700", "carbon-monoxide false"),
        ("1801", "cold true"),
        ("1900", "connectivity false"),
        ("1a00", "door false"),
        ("1b01", "garage-door true"),
        ("1c01", "gas-detected true"),
        ("1d00", "heat false"),
        ("1e01", "light true"),
        ("1f01", "lock true"),
        ("2001", "moisture-detected true"),
        ("2100", "motion false"),
        ("2201", "moving true"),
        ("2301", "occupancy true"),
        ("2400", "plug false"),
        ("2500", "presence false"),
        ("2601", "problem true"),
        ("2701", "running true"),
        ("2800", "safety false"),
        ("2901", "smoke true"),
        ("2a00", "sound false"),
        ("2b00", "tamper false"),
        ("2c01", "vibration true"),
        ("2d01", "window true"),
        ("2e23", "humidity 35 %RH"),
        ("2f23", "moisture 35 %"),
        ("3a01", "button press"),
        ("3a02", "button double_press"),
        ("3a03", "button triple_press"),
        ("3a04", "button long_press"),
        ("3a05", "button long_double_press"),
        ("3a06", "button long_triple_press"),
        ("3a80", "button hold_press"),
        ("3c0103", "dimmer rotate_left 3"),
        ("3c020a", "dimmer rotate_right 10"),
        ("3d0960", "count 24585 count"),
        ("3e2a2c0960", "count 1611213866 count"),
        ("3f020c", "rotation 307.4 deg"),
        ("400c00", "distance 0.012 m"),
        ("414e00", "distance 7.8 m"),
        ("424e3400", "duration 13.39 s"),
        ("434e34", "current 13.39 A"),
        ("444e34", "speed 133.9 m/s"),
        ("451101", "temperature 27.3 Cel"),
        ("4632", "uv-index 5"),
        ("478756", "volume 2.2151 m3"),
        ("48dc87", "volume 0.03478 m3"),
        ("49dc87", "volume-flow-rate 34.78"),
        ("4a020c", "voltage 307.4 V"),
        ("4b138a14", "gas 1346.067 m3"),
        ("4c41018a01", "gas 25821.505 m3"),
        ("4d12138a14", "energy 344593170 Wh"),
        ("4e87562a01", "volume 19.551879 m3"),
        ("4f87562a01", "water 19.551879 m3"),
        ("505d396164", "timestamp 1684093277 s"),
        ("518756", "acceleration 22.151 m/s2"),
        ("528756", "gyroscope 22.151"),
        ("530c48656c6c6f20576f726c6421", "text Hello World!"),
        ("5587562a01", "volume-storage 19.551879 m3"),
        ("56e803", "conductivity 0.1 S/m"),
        ("57ea", "temperature -22 Cel"),
        ("58ea", "temperature -7.7 Cel"),
        ("59ea", "count -22 count"),
        ("5aeaea", "count -5398 count"),
        ("5bea0234ea", "count -365690134 count"),
        ("5c02fbffff", "power -12.78 W"),
        ("5d02ea", "current -5.63 A"),
        ("5e9f8c", "direction 359.99 deg"),
    ];

    #[test]
    fn every_published_example_is_decoded() {
        for (object, shown) in EXAMPLES {
            assert_eq!(decoded(&format!("40{object}")), [*shown], "{object}");
        }
    }

    /// As bthome-ble 3.25 decodes them; they are in no document.
    #[test]
    fn newer_objects_are_decoded_as_the_reference_implementation_does() {
        for (object, shown) in [
            ("3a81", "button hold_release"),
            ("3b0000", "command off"),
            ("3b0002", "command toggle"),
            ("3b02030a0b", "command step_up 0a0b"),
            ("5fa00f", "precipitation 0.4 m"),
            ("6003", "channel 3"),
            ("61b80b", "rotational-speed 3000 1/min"),
            ("6240420f00", "speed 1 m/s"),
            ("6300f0ffff", "acceleration -0.004096 m/s2"),
            ("6402", "light-level 2"),
            ("6507", "settings-revision 7"),
        ] {
            assert_eq!(decoded(&format!("40{object}")), [shown], "{object}");
        }
    }

    #[test]
    fn raw_objects_are_bytes() {
        let packet = decode_hex("40540c48656c6c6f20576f726c6421");
        let [raw] = &packet.measurements[..] else {
            panic!("{packet:?}");
        };
        assert_eq!(raw.channel, "raw");
        assert_eq!(raw.value, Value::Bytes(b"Hello World!".to_vec()));
    }

    #[test]
    fn the_packet_id_is_set_apart() {
        let packet = decode_hex("400009015d025d0903b718");
        assert_eq!(packet.packet_id, Some(9));
        assert_eq!(
            shown(&packet),
            [
                "battery 93 %EL",
                "temperature 23.97 Cel",
                "humidity 63.27 %RH"
            ]
        );
    }

    #[test]
    fn several_objects_of_a_channel_are_numbered() {
        assert_eq!(
            decoded("4002ca0902cf09451101"),
            [
                "temperature 25.06 Cel",
                "temperature-2 25.11 Cel",
                "temperature-3 27.3 Cel"
            ]
        );
    }

    #[test]
    fn a_button_that_was_not_pressed_keeps_its_number() {
        assert_eq!(decoded("403a003a01"), ["button-2 press"]);
        assert_eq!(decoded("403c00003a01"), ["button press"]);
    }

    #[test]
    fn device_information_is_read_over() {
        assert_eq!(decoded("40f00100"), [""; 0]);
        assert_eq!(decoded("40f100010204f2000106"), [""; 0]);
        assert_eq!(decoded("40f001000161"), ["battery 97 %EL"]);
    }

    #[test]
    fn an_unknown_object_ends_the_payload_and_what_was_read_is_kept() {
        assert_eq!(decoded("4002ca09ff0003bf13"), ["temperature 25.06 Cel"]);
        assert_eq!(decode_any("40ff0002ca09"), Err(DecodeError::Nothing));
    }

    #[test]
    fn a_cut_object_ends_the_payload_and_what_was_read_is_kept() {
        assert_eq!(decoded("4002ca0903bf"), ["temperature 25.06 Cel"]);
        assert_eq!(decoded("4002ca09530548656c"), ["temperature 25.06 Cel"]);
        assert_eq!(decoded("4002ca0953"), ["temperature 25.06 Cel"]);
        assert_eq!(decode_any("4002ca"), Err(DecodeError::Nothing));
    }

    #[test]
    fn an_empty_payload_holds_nothing() {
        assert_eq!(decode_any(""), Err(DecodeError::Nothing));
        assert_eq!(decode_any("40"), Err(DecodeError::Nothing));
    }

    #[test]
    fn an_included_address_is_skipped() {
        assert_eq!(decoded("42a5808fe6485402ca09"), ["temperature 25.06 Cel"]);
        assert_eq!(decode_any("42a5808f"), Err(DecodeError::Nothing));
    }

    #[test]
    fn a_device_that_reports_when_triggered_is_decoded() {
        assert_eq!(decoded("4404138a01"), ["pressure 100883 Pa"]);
    }

    /// Payload of bthome-ble's `test_bindkey_correct`.
    #[test]
    fn an_encrypted_payload_asks_for_its_key() {
        let error = decode_any("41a47266c95f730011223378237214").unwrap_err();
        assert_eq!(error, DecodeError::Encrypted);
        assert_eq!(error.to_string(), "encrypted, needs a key");
    }

    /// Payload of bthome-ble's `test_has_incorrect_version`.
    #[test]
    fn another_version_is_refused() {
        let payload = "e102000c0404138a01";
        assert_eq!(decode_any(payload), Err(DecodeError::Version(7)));
    }

    #[test]
    fn text_that_is_not_utf_8_is_left_out() {
        assert_eq!(
            decoded("4053 02c328 0161".replace(' ', "").as_str()),
            ["battery 97 %EL"]
        );
    }

    proptest! {
        /// Whatever the air brings is decoded or refused, and each channel is named once.
        #[test]
        fn no_payload_panics(mut payload in prop::collection::vec(any::<u8>(), 1..=254)) {
            payload[0] = 0x40;
            if let Ok(packet) = decode(&payload) {
                let mut channels: Vec<_> =
                    packet.measurements.iter().map(|measurement| &measurement.channel).collect();
                prop_assert!(channels.iter().all(|channel| wire::is_name(channel)));
                channels.sort();
                channels.dedup();
                prop_assert_eq!(channels.len(), packet.measurements.len());
            }
        }
    }

    fn decoded(payload: &str) -> Vec<String> {
        shown(&decode_hex(payload))
    }

    fn decode_hex(payload: &str) -> Packet {
        decode_any(payload).unwrap()
    }

    fn decode_any(payload: &str) -> Result<Packet, DecodeError> {
        decode(&hex::decode(payload).unwrap())
    }

    fn shown(packet: &Packet) -> Vec<String> {
        packet
            .measurements
            .iter()
            .map(
                |Measurement {
                     channel,
                     value,
                     unit,
                     ..
                 }| {
                    let unit = unit.map_or(String::new(), |unit| format!(" {}", unit.as_str()));
                    format!("{channel} {value}{unit}")
                },
            )
            .collect()
    }
}
