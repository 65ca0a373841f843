//! The keys of sensors that are polled over Modbus RTU: format `modbus`.

use std::collections::BTreeMap;

use drivers::modbus::{ByteOrder, ChannelConfig, DataType, DeviceConfig, Register};
use wire::{Class, Decimal, Unit};

use super::SensorConfig;
use super::sensor::CLASSES;
use super::source::TIMEOUT;
use super::table::{At, LATER, Table};
use super::words::{instead, quoted};

/// A device on a bus as its file describes it.
pub(super) struct Device<'f> {
    pub(super) slave_id: Option<At<'f, u8>>,
    pub(super) config: DeviceConfig,
}

/// Reads the keys of the format; the classes of channels go into `sensor`.
pub(super) fn read<'f>(table: &mut Table<'f>, sensor: &mut SensorConfig) -> Device<'f> {
    if !table.has("slave_id") {
        table.missing("slave_id", "the address set on the device, 1 to 247");
    }
    let slave_id = table.integer("slave_id", 1..=SLAVE_ID_MAX);
    let timeout = table.duration("timeout", &TIMEOUT);
    let byte_order = table.word("byte_order", &ByteOrder::ALL, &[]);
    table.refuse(
        &[
            "address_style",
            "busy_retries",
            "max_insert",
            "optimization",
            "workarounds",
        ],
        LATER,
    );
    table.refuse(&["address"], "is a Bluetooth sensor's; write slave_id");
    let channels = read_channels(table, &mut sensor.channel_classes);
    let config = DeviceConfig {
        sensor: sensor.name.clone(),
        slave_id: slave_id.map_or(1, |it| it.it),
        interval: sensor.interval,
        timeout,
        byte_order: byte_order.map_or(ByteOrder::Abcd, |it| it.it),
        channels,
    };
    Device { slave_id, config }
}

fn read_channels(
    table: &mut Table<'_>,
    classes: &mut BTreeMap<String, Class>,
) -> Vec<ChannelConfig> {
    let tables = table.named_tables("channels");
    if tables.is_empty() && !table.has("channels") {
        table.missing(
            "channels",
            r#"channels.NAME = { address = 0, type = "INT16" }"#,
        );
    } else if !(1..=CHANNELS_MAX).contains(&tables.len()) {
        let why = format!("has {} entries; write 1 to {CHANNELS_MAX}", tables.len());
        table.wrong(table.place(), "channels", why);
    }
    let mut channels = Vec::new();
    for (name, mut inner) in tables {
        table.check_name(name, "channel");
        if let Some(class) = inner.word("class", &CLASSES, &[]) {
            classes.insert(name.it.to_owned(), class.it);
        }
        channels.extend(read_channel(inner, name.it));
    }
    channels
}

fn read_channel(mut table: Table<'_>, name: &str) -> Option<ChannelConfig> {
    let register = read_register(&mut table);
    let address = table.integer("address", 0..=u16::MAX);
    if !table.has("address") {
        table.missing("address", "the number of its first register, 0 to 65535");
    }
    if !table.has("type") {
        table.missing("type", r#"one such as type = "INT16""#);
    }
    let data_type = table.word("type", &DataType::ALL, &["BIT"]);
    let unit = read_unit(&mut table);
    table.refuse(&CHANNEL_KEYS_LATER, LATER);
    let kind = data_type.map(|it| it.it);
    let mut channel = ChannelConfig {
        name: name.to_owned(),
        register,
        address: address.map_or(0, |it| it.it),
        data_type: kind.unwrap_or(DataType::Int16),
        length: 1,
        scale: Decimal::new(1, 0),
        offset: Decimal::new(0, 0),
        unit,
        range: None,
        invalid: Vec::new(),
    };
    match kind {
        Some(DataType::Text) => {
            table.refuse(
                &["invalid", "offset", "range", "scale"],
                "is for numbers; leave it out",
            );
            let length = table.integer("length", 1..=LENGTH_MAX);
            channel.length = length.map_or(1, |it| it.it);
        }
        Some(data_type) => {
            table.refuse(&["length"], r#"is for type "STRING"; leave it out"#);
            read_number(&mut table, data_type, &mut channel);
        }
        // What else is right depends on the type.
        None => return None,
    }
    let last = u32::from(channel.address) + u32::from(channel.registers()) - 1;
    if let Some(address) = address.filter(|_| u32::from(u16::MAX) < last) {
        let why = format!("{} is too high: the value ends after 65535", address.it);
        table.wrong(address.place, "address", why);
    }
    table.finish();
    Some(channel)
}

fn read_register(table: &mut Table<'_>) -> Register {
    let words = Register::ALL.map(|register| (register.as_str(), register));
    let register = table.word("register", &words, &["coil", "discrete"]);
    register.map_or(Register::Holding, |it| it.it)
}

fn read_unit(table: &mut Table<'_>) -> Option<Unit> {
    let text = table.text("unit")?;
    let unit = Unit::parse(text.it);
    if unit.is_none() {
        let known = Unit::ALL.iter().map(|unit| unit.as_str());
        let instead = match instead(text.it, known) {
            nearest if nearest.is_empty() => "; write one of IANA's SenML units".to_owned(),
            nearest => nearest,
        };
        let why = format!("{} is unknown{instead}", quoted(text.it));
        table.wrong(text.place, "unit", why);
    }
    unit
}

fn read_number(table: &mut Table<'_>, data_type: DataType, channel: &mut ChannelConfig) {
    if let Some(scale) = table.decimal("scale") {
        if scale.it == Decimal::new(0, 0) {
            table.wrong(
                scale.place,
                "scale",
                "0 makes every value the same; leave it out",
            );
        }
        channel.scale = scale.it;
    }
    if let Some(offset) = table.decimal("offset") {
        channel.offset = offset.it;
    }
    channel.range = table.decimal_range("range");

    let (min, max) = raw_bounds(data_type);
    for value in table.integers("invalid", &(min..=max)).unwrap_or_default() {
        // From 2^63 on it is a bit pattern, kept as the number with the same bits.
        let bits = u64::try_from(value.it).map(u64::cast_signed);
        let raw = i64::try_from(value.it).or(bits);
        channel.invalid.extend(raw);
    }
}

/// Smallest and largest raw value, signed or as bit pattern.
fn raw_bounds(data_type: DataType) -> (i128, i128) {
    let bits = match data_type {
        DataType::Int8Low | DataType::Int8High | DataType::Uint8Low | DataType::Uint8High => 8,
        DataType::Int16 | DataType::Uint16 | DataType::Float16 => 16,
        DataType::Int32 | DataType::Uint32 | DataType::Float32 => 32,
        DataType::Int64 | DataType::Uint64 | DataType::Float64 | DataType::Text => 64,
    };
    (-(1 << (bits - 1)), (1 << bits) - 1)
}

/// Keys of channels that other registers or other formats have.
const CHANNEL_KEYS_LATER: [&str; 7] = ["bit", "byte", "column", "mode", "obis", "pointer", "uuid"];

/// Addresses of devices on a serial line (MODBUS over Serial Line V1.02, 2.2).
const SLAVE_ID_MAX: u8 = 247;

/// What one sensor may say; more is a file that went wrong.
const CHANNELS_MAX: usize = 256;

/// Registers of one answer (MODBUS Application Protocol V1.1b3, 6.3).
const LENGTH_MAX: u16 = 125;
