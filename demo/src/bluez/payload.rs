//! What the two sensors say, advertisement by advertisement.

/// The BTHome v2 service data of advertisement number `step`: packet id, battery, temperature
/// and humidity.
///
/// Starts at the 25.06 °C and 50.55 % of the format's document.
#[must_use]
pub fn bthome(step: u64) -> Vec<u8> {
    let [packet_id, ..] = step.to_le_bytes();
    let [t0, t1] = (2506 + wave(step)).to_le_bytes();
    let [h0, h1] = (5055 - wave(step)).to_le_bytes();
    vec![0x40, 0x00, packet_id, 0x01, 97, 0x02, t0, t1, 0x03, h0, h1]
}

/// The manufacturer data of advertisement number `step`, in Ruuvi's format 5.
///
/// Starts with the format's own vector, 24.3 °C; temperature, humidity and sequence number move.
#[must_use]
pub fn ruuvi(step: u64) -> Vec<u8> {
    let [t1, t0] = (4860 + wave(step)).to_be_bytes();
    let [h1, h0] = (21_396 - wave(step)).to_be_bytes();
    // 65,535 means that there is no sequence number.
    let sequence = (205 + step) % 65_535;
    let [.., s1, s0] = sequence.to_be_bytes();
    let mut payload = vec![0x05, t1, t0, h1, h0];
    payload.extend([
        0xC3, 0x7C, 0x00, 0x04, 0xFF, 0xFC, 0x04, 0x0C, 0xAC, 0x36, 0x42,
    ]);
    payload.extend([s1, s0]);
    payload.extend(super::RUUVI_ADDRESS);
    payload
}

/// Rises from 0 to 200 in as many steps, and falls again.
fn wave(step: u64) -> i16 {
    let phase = step % 400;
    let height = phase.min(400 - phase);
    i16::try_from(height).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_begins_with_its_makers_vector() {
        assert_eq!(
            hex::encode_upper(ruuvi(0)),
            "0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F"
        );
    }

    #[test]
    fn every_advertisement_is_valid_and_differs_from_the_one_before() {
        let mut last = (None, None);
        for step in 0..70_000 {
            let thermometer = drivers::ble::bthome::decode(&bthome(step)).unwrap();
            let tag = drivers::ble::ruuvi::decode(&ruuvi(step)).unwrap();

            assert_eq!(thermometer.measurements.len(), 3);
            assert_eq!(tag.measurements.len(), 9);
            assert!(thermometer.packet_id.is_some() && thermometer.packet_id != last.0);
            assert!(tag.sequence.is_some() && tag.sequence != last.1);
            last = (thermometer.packet_id, tag.sequence);
        }
    }
}
