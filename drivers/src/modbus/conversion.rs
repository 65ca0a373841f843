//! Registers to values. Names and byte orders are those of Telegraf's `inputs.modbus`.

use std::fmt;
use std::str::FromStr;

use wire::{Decimal, Measurement, Quality, Value};

use super::ChannelConfig;
use super::frame::{REGISTERS_MAX, UnknownWord};

/// How a channel's registers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// `INT8L`: the low byte of a register.
    Int8Low,
    /// `INT8H`: the high byte of a register.
    Int8High,
    /// `UINT8L`: the low byte of a register.
    Uint8Low,
    /// `UINT8H`: the high byte of a register.
    Uint8High,
    /// `INT16`
    Int16,
    /// `UINT16`
    Uint16,
    /// `INT32`
    Int32,
    /// `UINT32`
    Uint32,
    /// `INT64`
    Int64,
    /// `UINT64`; from 2^63 on it does not fit a value and reads as null, `invalid`.
    Uint64,
    /// `FLOAT16`, IEEE 754 half precision.
    Float16,
    /// `FLOAT32`, IEEE 754.
    Float32,
    /// `FLOAT64`, IEEE 754.
    Float64,
    /// `STRING`: UTF-8, two bytes a register, up to the first zero byte.
    Text,
}

impl DataType {
    /// All types with the names used in configuration.
    pub const ALL: [(&'static str, Self); 14] = [
        ("INT8L", Self::Int8Low),
        ("INT8H", Self::Int8High),
        ("UINT8L", Self::Uint8Low),
        ("UINT8H", Self::Uint8High),
        ("INT16", Self::Int16),
        ("UINT16", Self::Uint16),
        ("INT32", Self::Int32),
        ("UINT32", Self::Uint32),
        ("INT64", Self::Int64),
        ("UINT64", Self::Uint64),
        ("FLOAT16", Self::Float16),
        ("FLOAT32", Self::Float32),
        ("FLOAT64", Self::Float64),
        ("STRING", Self::Text),
    ];

    /// Returns how many registers a value takes; `length` is that of a text.
    pub(super) fn registers(self, length: u16) -> u16 {
        match self {
            Self::Int8Low | Self::Int8High | Self::Uint8Low | Self::Uint8High => 1,
            Self::Int16 | Self::Uint16 | Self::Float16 => 1,
            Self::Int32 | Self::Uint32 | Self::Float32 => 2,
            Self::Int64 | Self::Uint64 | Self::Float64 => 4,
            Self::Text => length.clamp(1, REGISTERS_MAX),
        }
    }
}

impl FromStr for DataType {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, it)| it).ok_or(UnknownWord)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.into_iter().find(|(_, it)| it == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

/// In which order the bytes of a value `ABCD` (A the most significant) arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// As Modbus means it.
    #[default]
    Abcd,
    /// All backwards.
    Dcba,
    /// The bytes of each register swapped.
    Badc,
    /// The registers backwards.
    Cdab,
}

impl ByteOrder {
    /// All orders with the names used in configuration.
    pub const ALL: [(&'static str, Self); 4] = [
        ("ABCD", Self::Abcd),
        ("DCBA", Self::Dcba),
        ("BADC", Self::Badc),
        ("CDAB", Self::Cdab),
    ];

    /// Puts the bytes of one register right.
    const fn word(self, register: u16) -> u16 {
        match self {
            Self::Abcd | Self::Cdab => register,
            Self::Dcba | Self::Badc => register.swap_bytes(),
        }
    }

    /// Puts the registers of one number together; of more than four, the last four.
    fn number(self, registers: &[u16]) -> u64 {
        let append = |bits, register: &u16| (bits << 16) | u64::from(self.word(*register));
        match self {
            Self::Abcd | Self::Badc => registers.iter().fold(0, append),
            Self::Dcba | Self::Cdab => registers.iter().rev().fold(0, append),
        }
    }
}

impl FromStr for ByteOrder {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, it)| it).ok_or(UnknownWord)
    }
}

/// Reads a channel out of its registers.
///
/// Integers stay exact: an integer where scale is 1 and offset 0, else a decimal. A value that
/// means "none", or that no value can hold (not a number, no UTF-8, too large), is null, `invalid`.
pub(super) fn measure(
    channel: &ChannelConfig,
    byte_order: ByteOrder,
    registers: &[u16],
) -> Measurement {
    let value = value(channel, byte_order, registers);
    let quality = match channel.range {
        _ if value == Value::Null => Quality::Invalid,
        Some(range) if is_outside(&value, range) => Quality::OutOfRange,
        Some(_) | None => Quality::Ok,
    };
    Measurement {
        channel: channel.name.clone(),
        value,
        unit: channel.unit,
        quality,
    }
}

fn value(channel: &ChannelConfig, byte_order: ByteOrder, registers: &[u16]) -> Value {
    let all = byte_order.number(registers);
    let [.., c, d, high, low] = all.to_be_bytes();
    let (bits, raw) = match channel.data_type {
        DataType::Int8Low => (low.into(), Raw::Integer(low.cast_signed().into())),
        DataType::Int8High => (high.into(), Raw::Integer(high.cast_signed().into())),
        DataType::Uint8Low => (low.into(), Raw::Integer(low.into())),
        DataType::Uint8High => (high.into(), Raw::Integer(high.into())),
        DataType::Int16 => (all, Raw::Integer(i16::from_be_bytes([high, low]).into())),
        DataType::Int32 => (
            all,
            Raw::Integer(i32::from_be_bytes([c, d, high, low]).into()),
        ),
        DataType::Int64 => (all, Raw::Integer(all.cast_signed())),
        DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => {
            (all, i64::try_from(all).map_or(Raw::TooLarge, Raw::Integer))
        }
        DataType::Float16 => (all, Raw::Float(half(u16::from_be_bytes([high, low])))),
        DataType::Float32 => (
            all,
            Raw::Float(f32::from_be_bytes([c, d, high, low]).into()),
        ),
        DataType::Float64 => (all, Raw::Float(f64::from_bits(all))),
        DataType::Text => return text(byte_order, registers),
    };

    let means_none = |none: &i64| none.cast_unsigned() == bits || Raw::Integer(*none) == raw;
    if channel.invalid.iter().any(means_none) {
        return Value::Null;
    }
    match raw {
        Raw::Integer(raw) if channel.scale == ONE && channel.offset == ZERO => Value::Integer(raw),
        Raw::Integer(raw) => Decimal::from(raw)
            .checked_mul(channel.scale)
            .and_then(|scaled| scaled.checked_add(channel.offset))
            .map_or(Value::Null, Value::Decimal),
        Raw::Float(raw) => {
            let value = raw * channel.scale.to_f64() + channel.offset.to_f64();
            if value.is_finite() {
                Value::Float(value)
            } else {
                Value::Null
            }
        }
        Raw::TooLarge => Value::Null,
    }
}

/// A number as the device holds it.
#[derive(PartialEq)]
enum Raw {
    Integer(i64),
    Float(f64),
    TooLarge,
}

/// Reads an IEEE 754 half; every one is a `f64`.
fn half(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x03FF);
    let magnitude = match (bits >> 10) & 0x1F {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2_f64.powi(i32::from(exponent) - 25),
    };
    if bits >> 15 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// Reads characters up to the first zero byte, without the blanks that fill the registers.
fn text(byte_order: ByteOrder, registers: &[u16]) -> Value {
    let bytes = registers
        .iter()
        .flat_map(|register| byte_order.word(*register).to_be_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    match String::from_utf8(bytes) {
        Ok(text) => Value::Text(text.trim_end().to_owned()),
        Err(_) => Value::Null,
    }
}

fn is_outside(value: &Value, (smallest, largest): (Decimal, Decimal)) -> bool {
    let is_outside = |value: Decimal| value < smallest || largest < value;
    match value {
        Value::Integer(value) => is_outside((*value).into()),
        Value::Decimal(value) => is_outside(*value),
        Value::Float(value) => *value < smallest.to_f64() || largest.to_f64() < *value,
        Value::Null | Value::Bool(_) | Value::Text(_) | Value::Bytes(_) => false,
    }
}

const ONE: Decimal = Decimal::new(1, 0);
const ZERO: Decimal = Decimal::new(0, 0);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::modbus::fixture::channel;

    /// What Telegraf's `inputs.modbus` reads from the same bytes.
    #[test]
    fn integers_read_as_telegraf_reads_them() {
        for (data_type, byte_order, bytes, value) in [
            ("UINT8L", "ABCD", "180d", 13),
            ("UINT8H", "ABCD", "180d", 24),
            ("INT8L", "ABCD", "988d", -115),
            ("INT8H", "ABCD", "988d", -104),
            ("INT8L", "DCBA", "988d", -104),
            ("UINT16", "ABCD", "abcd", 43981),
            ("UINT16", "CDAB", "abcd", 43981),
            ("UINT16", "DCBA", "abcd", 52651),
            ("UINT16", "BADC", "abcd", 52651),
            ("INT16", "ABCD", "abcd", -21555),
            ("INT16", "DCBA", "abcd", -12885),
            ("INT32", "ABCD", "aabbccdd", -1_430_532_899),
            ("INT32", "DCBA", "aabbccdd", -573_785_174),
            ("INT32", "BADC", "aabbccdd", -1_146_430_004),
            ("INT32", "CDAB", "aabbccdd", -857_888_069),
            ("UINT32", "ABCD", "aabbccdd", 2_864_434_397),
            ("UINT32", "DCBA", "aabbccdd", 3_721_182_122),
            ("UINT32", "BADC", "aabbccdd", 3_148_537_292),
            ("UINT32", "CDAB", "aabbccdd", 3_437_079_227),
            ("INT64", "ABCD", "000001000000abcd", 1_099_511_671_757),
            ("INT64", "DCBA", "84f645f9bcfeffff", -1_387_387_292_028),
            ("INT64", "BADC", "ffffbcfe45f984f6", -1_387_387_292_028),
            ("INT64", "CDAB", "f684f945febcffff", -1_387_387_292_028),
            ("UINT64", "ABCD", "000001000000abcd", 1_099_511_671_757),
        ] {
            let read = read(&of_type(data_type), byte_order, bytes);
            assert_eq!(
                (read.value, read.quality),
                (Value::Integer(value), Quality::Ok),
                "{data_type} {byte_order}"
            );
        }
    }

    /// IEEE 754 by its definition, and Telegraf's -3.3360025e-13.
    #[test]
    fn floats_read_as_ieee_754_has_them() {
        for (data_type, byte_order, bytes, value) in [
            ("FLOAT16", "ABCD", "3c00", 1.0),
            ("FLOAT16", "ABCD", "c500", -5.0),
            ("FLOAT16", "DCBA", "003c", 1.0),
            ("FLOAT16", "ABCD", "7bff", 65_504.0),
            ("FLOAT16", "ABCD", "0001", 2_f64.powi(-24)),
            ("FLOAT16", "ABCD", "0400", 2_f64.powi(-14)),
            (
                "FLOAT32",
                "ABCD",
                "aabbccdd",
                f64::from(-3.336_002_5e-13_f32),
            ),
            ("FLOAT32", "CDAB", "00003fa0", 1.25),
            ("FLOAT32", "BADC", "a03f0000", 1.25),
            ("FLOAT32", "DCBA", "0000a03f", 1.25),
            ("FLOAT64", "ABCD", "400921fb54442d18", std::f64::consts::PI),
            ("FLOAT64", "CDAB", "2d185444 21fb4009", std::f64::consts::PI),
        ] {
            let read = read(&of_type(data_type), byte_order, &bytes.replace(' ', ""));
            assert_eq!(read.value, Value::Float(value), "{data_type} {byte_order}");
        }
    }

    #[test]
    fn scaled_integers_are_exact() {
        let mut channel = of_type("INT16");
        channel.scale = Decimal::parse("0.1").unwrap();
        channel.offset = Decimal::parse("-40").unwrap();

        let read = read(&channel, "ABCD", "0269");

        assert_eq!(read.value, Value::Decimal(Decimal::parse("21.7").unwrap()));
    }

    #[test]
    fn floats_are_scaled_as_floats() {
        let mut channel = of_type("FLOAT32");
        channel.scale = Decimal::parse("10").unwrap();
        channel.offset = Decimal::parse("0.5").unwrap();
        assert_eq!(read(&channel, "CDAB", "00003fa0").value, Value::Float(13.0));
    }

    #[test]
    fn raw_values_that_mean_none_are_null() {
        for (data_type, none, bytes) in [
            ("UINT16", 0xFFFF, "ffff"),
            ("INT16", 0x8000, "8000"),
            ("INT16", -32768, "8000"),
            ("INT8H", 0x80, "8042"),
            ("INT32", 0x8000_0000, "80000000"),
            ("UINT64", -1, "ffffffffffffffff"),
            ("FLOAT32", 0xFF7F_FFFF, "ff7fffff"),
        ] {
            let mut channel = of_type(data_type);
            channel.invalid = vec![none];
            let none = read(&channel, "ABCD", bytes);
            let expected = (Value::Null, Quality::Invalid);
            assert_eq!((none.value, none.quality), expected, "{data_type}");
            let other = read(&channel, "ABCD", &"11".repeat(bytes.len() / 2));
            assert_eq!(other.quality, Quality::Ok, "{data_type}");
        }
    }

    #[test]
    fn what_no_value_can_hold_is_null() {
        for (data_type, bytes) in [
            ("UINT64", "8000000000000000"),
            ("FLOAT16", "7c00"),
            ("FLOAT32", "7fc00000"),
            ("FLOAT64", "fff0000000000000"),
            ("STRING", "c328"),
        ] {
            let read = read(&of_type(data_type), "ABCD", bytes);
            let expected = (Value::Null, Quality::Invalid);
            assert_eq!((read.value, read.quality), expected, "{data_type}");
        }
        let mut channel = of_type("INT64");
        channel.scale = Decimal::parse("3").unwrap();
        assert_eq!(
            read(&channel, "ABCD", "7fffffffffffffff").value,
            Value::Null
        );
    }

    #[test]
    fn values_outside_the_range_are_kept_and_marked() {
        for (data_type, bytes, quality) in [
            ("INT16", "0032", Quality::Ok),
            ("INT16", "0033", Quality::OutOfRange),
            ("INT16", "fffb", Quality::Ok),
            ("INT16", "fffa", Quality::OutOfRange),
            ("FLOAT32", "42480000", Quality::Ok),
            ("FLOAT32", "424c0000", Quality::OutOfRange),
        ] {
            let mut channel = of_type(data_type);
            channel.range = Some((Decimal::new(-5, 0), Decimal::new(50, 0)));
            let read = read(&channel, "ABCD", bytes);
            assert_eq!(read.quality, quality, "{bytes}");
            assert_ne!(read.value, Value::Null);
        }
    }

    #[test]
    fn texts_end_at_zero_and_lose_their_filling() {
        for (byte_order, bytes, text) in [
            ("ABCD", "41423420", "AB4"),
            ("CDAB", "41423420", "AB4"),
            ("BADC", "42412034", "AB4"),
            ("DCBA", "42412034", "AB4"),
            ("ABCD", "41004243", "A"),
            ("ABCD", "0000", ""),
            ("ABCD", "c3bc", "ü"),
        ] {
            let read = read(&of_type("STRING"), byte_order, bytes);
            assert_eq!(read.value, Value::Text(text.to_owned()), "{bytes}");
        }
    }

    #[test]
    fn the_words_of_the_configuration_read_back() {
        for (name, data_type) in DataType::ALL {
            assert_eq!(name.parse(), Ok(data_type));
            assert_eq!(data_type.to_string(), name);
        }
        for (name, byte_order) in ByteOrder::ALL {
            assert_eq!(name.parse(), Ok(byte_order));
        }
        assert_eq!("int16".parse::<DataType>(), Err(UnknownWord));
    }

    proptest! {
        /// Any registers under any settings give a value whose quality tells if it is one.
        #[test]
        fn any_registers_give_a_value_or_null(
            data_type in 0..DataType::ALL.len(),
            byte_order in 0..ByteOrder::ALL.len(),
            registers in proptest::collection::vec(any::<u16>(), 0..=125),
            scale: (i64, i8),
            offset: (i64, i8),
        ) {
            let mut channel = of_type(DataType::ALL[data_type].0);
            channel.scale = Decimal::new(scale.0, scale.1);
            channel.offset = Decimal::new(offset.0, offset.1);
            let read = measure(&channel, ByteOrder::ALL[byte_order].1, &registers);
            prop_assert_eq!(read.value == Value::Null, read.quality == Quality::Invalid);
        }

        /// The four orders are four ways to write one number.
        #[test]
        fn byte_orders_are_permutations(value: u64) {
            let big = value.to_be_bytes();
            let [a, b, c, d, e, f, g, h] = big;
            for (byte_order, sent) in [
                ("ABCD", big),
                ("DCBA", [h, g, f, e, d, c, b, a]),
                ("BADC", [b, a, d, c, f, e, h, g]),
                ("CDAB", [g, h, e, f, c, d, a, b]),
            ] {
                let read = read(&of_type("INT64"), byte_order, &hex::encode(sent));
                prop_assert_eq!(read.value, Value::Integer(value.cast_signed()));
            }
        }
    }

    fn of_type(name: &str) -> ChannelConfig {
        channel("a", 0, name.parse().unwrap())
    }

    fn read(channel: &ChannelConfig, byte_order: &str, bytes: &str) -> Measurement {
        let bytes = hex::decode(bytes).unwrap();
        let words = bytes.as_chunks::<2>().0.iter();
        let registers: Vec<u16> = words.map(|word| u16::from_be_bytes(*word)).collect();
        measure(channel, byte_order.parse().unwrap(), &registers)
    }
}
