//! The keys of sensors that broadcast over Bluetooth: formats `bthome` and `ruuvi`.

use drivers::ble::{BleFormat, BleSensor};

use super::SensorConfig;
use super::table::{At, LATER, Table};

/// A broadcasting sensor as its file describes it.
pub(super) struct Broadcaster<'f> {
    pub(super) address: Option<At<'f, [u8; 6]>>,
    pub(super) config: BleSensor,
}

/// Reads the keys of the format.
pub(super) fn read<'f>(
    table: &mut Table<'f>,
    format: BleFormat,
    sensor: &SensorConfig,
) -> Broadcaster<'f> {
    if !table.has("address") {
        table.missing("address", ADDRESS.1);
    }
    let address = table.parsed("address", parse_address, ADDRESS);
    table.refuse(&["byte_order", "channels", "match", "services"], LATER);
    let config = BleSensor {
        sensor: sensor.name.clone(),
        address: address.map(|address| address.it).unwrap_or_default(),
        format,
        interval: sensor.interval,
    };
    Broadcaster { address, config }
}

/// Reads six pairs of hexadecimal digits between colons.
pub(super) fn parse_address(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut address {
        let pair = pairs.next().filter(|pair| pair.len() == 2)?;
        // The standard library's parser would take "+1".
        if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(address)
}

const ADDRESS: (&str, &str) = ("a Bluetooth address", r#"one such as "CB:B8:33:4C:88:4F""#);
