//! Devices for the tests of this crate.

use std::time::Duration;

use wire::Decimal;

use super::{ByteOrder, ChannelConfig, DataType, DeviceConfig, Register};

/// A device `sensor-<slave_id>` with one channel, input register 0, read every second.
pub(crate) fn device(slave_id: u8) -> DeviceConfig {
    DeviceConfig {
        sensor: format!("sensor-{slave_id}"),
        slave_id,
        interval: Duration::from_secs(1),
        timeout: Some(Duration::from_millis(300)),
        byte_order: ByteOrder::Abcd,
        channels: vec![channel("value", 0, DataType::Uint16)],
    }
}

/// A channel of input registers without scale.
pub(crate) fn channel(name: &str, address: u16, data_type: DataType) -> ChannelConfig {
    ChannelConfig {
        name: name.to_owned(),
        register: Register::Input,
        address,
        data_type,
        length: 1,
        scale: Decimal::new(1, 0),
        offset: Decimal::new(0, 0),
        unit: None,
        range: None,
        invalid: vec![],
    }
}
