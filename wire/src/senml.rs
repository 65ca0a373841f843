//! SenML in CBOR (RFC 8428, 6), with our extension labels.
//!
//! | label | key | in a reading's record |
//! |---|---|---|
//! | `n` | 0 | `sensor.channel` |
//! | `u` | 1 | unit, if there is one |
//! | `v` | 2 | integer, decimal fraction (tag 4) or floating point value |
//! | `vs` | 3 | text value |
//! | `vb` | 4 | bool value |
//! | `t` | 6 | wall time: decimal fraction with exponent −3, that is, in ms |
//! | `vd` | 8 | bytes value |
//! | `bn` | −2 | base name; in the first record only, if it is not empty |
//! | `gc` | text | clock state, if it is not `synchronised` |
//! | `gn` | text | sequence number |
//! | `gq` | text | quality, if it is not `ok` |
//! | `gs` | text | sensor number |
//! | `gu` | text | `boottime_ms` |
//! | `gw` | text | wall time in ms, instead of `t`, before 2^28 s (July 1978) |
//!
//! A record without value stands for [`Value::Null`]. The extensions are informative, so their
//! names do not end in `_` (RFC 8428, 4.4); a name that starts with `b` would be a base label.
//! A pack without readings has one record that holds the base name only, or none.
//!
//! SenML reads a `t` below 2^28 as relative to *now* (RFC 8428, 4.5.3). A clock that was never set
//! runs there, so `gw` has that time, and the absent `t` says "about now", as for a sensor that
//! does not know the time. There is no base time: it would fill in for the absent `t`.

use minicbor::data::Type;

use crate::cbor::{Message, Reader, Writer};
use crate::{
    ClockState, Decimal, Measurement, Quality, Reading, Time, Unit, Value, WireError, is_name,
};

/// Readings under one base name.
#[derive(Default)]
pub(crate) struct Pack {
    pub(crate) base_name: String,
    pub(crate) readings: Vec<Reading>,
}

/// Writes the pack of these readings.
pub(crate) fn write_pack(writer: &mut Writer, base_name: &str, readings: &[Reading]) {
    if readings.is_empty() && !base_name.is_empty() {
        writer.array(1).map(1).key(BASE_NAME).text(base_name);
        return;
    }
    let mut base_name = Some(base_name).filter(|name| !name.is_empty());
    writer.array(readings.len());
    for reading in readings {
        write_record(writer, base_name.take(), reading);
    }
}

impl Message for Pack {
    fn write(&self, writer: &mut Writer) {
        write_pack(writer, &self.base_name, &self.readings);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pack = Self::default();
        let records = reader.list(read_record)?;
        for (base_name, reading) in records {
            // A base name anywhere else than `write` puts it is seen when written again.
            if let Some(base_name) = base_name {
                pack.base_name = base_name;
            }
            pack.readings.extend(reading);
        }
        Ok(pack)
    }
}

fn write_record(writer: &mut Writer, base_name: Option<&str>, reading: &Reading) {
    let Reading { time, .. } = reading;
    let Measurement {
        channel,
        value,
        unit,
        quality,
    } = &reading.measurement;
    let optional = [
        unit.is_some(),
        *value != Value::Null,
        base_name.is_some(),
        time.clock != ClockState::Synchronised,
        *quality != Quality::Ok,
    ];
    // Always there: n, gn, gs, gu, and one of t and gw.
    writer.map(5 + optional.into_iter().filter(|present| *present).count());

    writer
        .key(NAME)
        .text(&format!("{}.{channel}", reading.sensor));
    if let Some(unit) = unit {
        writer.key(UNIT).text(unit.as_str());
    }
    match value {
        Value::Integer(value) => writer.key(VALUE).int(*value),
        Value::Decimal(value) => writer
            .key(VALUE)
            .decimal(value.mantissa(), value.exponent()),
        Value::Float(value) => writer.key(VALUE).float(*value),
        Value::Text(value) => writer.key(TEXT_VALUE).text(value),
        Value::Bool(value) => writer.key(BOOL_VALUE).bool(*value),
        Value::Bytes(_) | Value::Null => writer,
    };
    if WALL_MS_MIN <= time.wall_ms {
        writer.key(TIME).decimal(time.wall_ms, MILLISECONDS);
    }
    if let Value::Bytes(value) = value {
        writer.key(BYTES_VALUE).bytes(value);
    }
    if let Some(base_name) = base_name {
        writer.key(BASE_NAME).text(base_name);
    }
    if time.clock != ClockState::Synchronised {
        writer.key(CLOCK).text(time.clock.as_str());
    }
    writer.key(SEQUENCE).uint(reading.sequence);
    if *quality != Quality::Ok {
        writer.key(QUALITY).text(quality.as_str());
    }
    writer.key(SENSOR_NUMBER).uint(reading.sensor_number);
    writer.key(BOOTTIME).uint(time.boottime_ms);
    if time.wall_ms < WALL_MS_MIN {
        writer.key(EARLY_WALL).int(time.wall_ms);
    }
}

/// Reads one record: its base name, and its reading unless it has a base name only.
fn read_record(reader: &mut Reader<'_>) -> Result<(Option<String>, Option<Reading>), WireError> {
    let mut pairs = reader.map()?;
    let Some((sensor, channel)) = pairs.optional(NAME, read_name)? else {
        let base_name = pairs.required(BASE_NAME, read_base_name)?;
        pairs.end()?;
        return Ok((Some(base_name), None));
    };
    let unit = pairs.optional(UNIT, |reader| {
        Unit::parse(&reader.text()?).ok_or(WireError::Value { field: "unit" })
    })?;
    let number = pairs.optional(VALUE, read_number)?;
    let text = pairs.optional(TEXT_VALUE, Reader::text)?.map(Value::Text);
    let bool = pairs.optional(BOOL_VALUE, Reader::bool)?.map(Value::Bool);
    let time = pairs.optional(TIME, read_time)?;
    let bytes = pairs
        .optional(BYTES_VALUE, Reader::bytes)?
        .map(Value::Bytes);
    let base_name = pairs.optional(BASE_NAME, read_base_name)?;
    let clock = pairs.optional(CLOCK, Reader::word)?;
    let sequence = pairs.required(SEQUENCE, Reader::u64)?;
    let quality = pairs.optional(QUALITY, Reader::word)?;
    let sensor_number = pairs.required(SENSOR_NUMBER, Reader::u32)?;
    let boottime_ms = pairs.required(BOOTTIME, Reader::u64)?;
    let wall_ms = match time {
        Some(wall_ms) => wall_ms,
        None => pairs.required(EARLY_WALL, Reader::int)?,
    };
    pairs.end()?;

    // A second value would be missed here, and seen when the record is written again.
    let value = number.or(text).or(bool).or(bytes);
    let reading = Reading {
        sensor,
        sensor_number,
        sequence,
        time: Time {
            wall_ms,
            boottime_ms,
            clock: clock.unwrap_or(ClockState::Synchronised),
        },
        measurement: Measurement {
            channel,
            value: value.unwrap_or(Value::Null),
            unit,
            quality: quality.unwrap_or(Quality::Ok),
        },
    };
    Ok((base_name, Some(reading)))
}

fn read_name(reader: &mut Reader<'_>) -> Result<(String, String), WireError> {
    match reader.text()?.split_once('.') {
        Some((sensor, channel)) if is_name(sensor) && is_name(channel) => {
            Ok((sensor.to_owned(), channel.to_owned()))
        }
        Some(_) | None => Err(WireError::Value { field: "name" }),
    }
}

/// A base name: the characters of RFC 8428, 4.5.1.
fn read_base_name(reader: &mut Reader<'_>) -> Result<String, WireError> {
    let name = reader.text()?;
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let holds_only = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '-' | ':' | '.' | '/' | '_')
    };
    if starts_well && name.chars().all(holds_only) {
        Ok(name)
    } else {
        Err(WireError::Value { field: "base name" })
    }
}

fn read_number(reader: &mut Reader<'_>) -> Result<Value, WireError> {
    let kind = reader.kind()?;
    if kind == Type::Tag {
        let (mantissa, exponent) = reader.decimal()?;
        Ok(Value::Decimal(Decimal::new(mantissa, exponent)))
    } else if matches!(kind, Type::F16 | Type::F32 | Type::F64) {
        reader.float().map(Value::Float)
    } else {
        reader.int().map(Value::Integer)
    }
}

fn read_time(reader: &mut Reader<'_>) -> Result<i64, WireError> {
    match reader.decimal()? {
        (wall_ms, MILLISECONDS) if WALL_MS_MIN <= wall_ms => Ok(wall_ms),
        _ => Err(WireError::Value { field: "time" }),
    }
}

/// The first time that SenML takes for absolute: 2^28 s (RFC 8428, 4.5.3), in ms.
const WALL_MS_MIN: i64 = (1 << 28) * 1000;

/// The exponent of times: seconds to milliseconds.
const MILLISECONDS: i8 = -3;

// Keys (RFC 8428, 6; and the extensions above), encoded, in the order of their bytes.
const NAME: &[u8] = &[0x00];
const UNIT: &[u8] = &[0x01];
const VALUE: &[u8] = &[0x02];
const TEXT_VALUE: &[u8] = &[0x03];
const BOOL_VALUE: &[u8] = &[0x04];
const TIME: &[u8] = &[0x06];
const BYTES_VALUE: &[u8] = &[0x08];
const BASE_NAME: &[u8] = &[0x21];
const CLOCK: &[u8] = b"\x62gc";
const SEQUENCE: &[u8] = b"\x62gn";
const QUALITY: &[u8] = b"\x62gq";
const SENSOR_NUMBER: &[u8] = b"\x62gs";
const BOOTTIME: &[u8] = b"\x62gu";
const EARLY_WALL: &[u8] = b"\x62gw";
