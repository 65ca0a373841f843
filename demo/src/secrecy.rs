//! Searches what the relay carried, and what is on the gateway's disk, for names and values.
//!
//! A value is looked for as the bytes that it has in a batch before sealing (SenML in CBOR). The
//! control seals nothing: it encodes the delivered readings again and must find every needle.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use minicbor::{Encoder, data::Tag};
use wire::{ClockState, Decimal, Measurement, Quality, Reading, Time, Value, batch::Batch};

use crate::accounts;

/// What to look for, by the words that name it.
pub struct Needles(BTreeMap<String, Vec<u8>>);

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Bytes looked through.
    pub bytes: u64,
    /// The needles that occur.
    pub needles: Vec<String>,
}

impl Needles {
    /// Names of sensors and channels, and values, of everything that was delivered.
    ///
    /// Values of fewer than [`NEEDLE_BYTES_MIN`] bytes are left out: they occur by chance.
    ///
    /// # Errors
    ///
    /// If the database cannot be read.
    pub fn of_delivered(readings: &Path) -> anyhow::Result<Self> {
        let mut needles = BTreeMap::new();
        for measurement in delivered(readings)? {
            let (sensor, measurement) = measurement;
            for name in [&sensor, &measurement.channel] {
                needles.insert(name.clone(), name.as_bytes().to_vec());
            }
            let bytes = encoded_value(&measurement.value);
            if NEEDLE_BYTES_MIN <= bytes.len() {
                let shown = format!("{} = {}", measurement.channel, measurement.value);
                needles.insert(shown, bytes);
            }
        }
        Ok(Self(needles))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks through files.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub fn search(&self, files: &[PathBuf]) -> anyhow::Result<Found> {
        let mut found = Found {
            bytes: 0,
            needles: Vec::new(),
        };
        for file in files {
            let bytes =
                fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            self.look(&bytes, &mut found);
        }
        Ok(found)
    }

    /// The negative control: the same readings, not sealed.
    ///
    /// # Errors
    ///
    /// If the database cannot be read.
    pub fn control(&self, readings: &Path) -> anyhow::Result<Found> {
        let readings = delivered(readings)?
            .into_iter()
            .map(|(sensor, measurement)| reading(sensor, measurement))
            .collect();
        let plain = Batch {
            base_name: String::new(),
            readings,
            ledger: Vec::new(),
            run_events: Vec::new(),
        };
        let mut found = Found {
            bytes: 0,
            needles: Vec::new(),
        };
        self.look(&plain.encode(), &mut found);
        Ok(found)
    }

    fn look(&self, haystack: &[u8], found: &mut Found) {
        found.bytes += u64::try_from(haystack.len()).unwrap_or(u64::MAX);
        for (shown, needle) in &self.0 {
            let occurs = haystack
                .windows(needle.len())
                .any(|window| window == needle);
            if occurs && !found.needles.contains(shown) {
                found.needles.push(shown.clone());
            }
        }
    }
}

/// Every file below a folder.
///
/// # Errors
///
/// If one cannot be listed.
pub fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Each sensor's channels and values, once.
fn delivered(readings: &Path) -> anyhow::Result<Vec<(String, Measurement)>> {
    let database = accounts::open(readings)?;
    let mut statement =
        database.prepare("SELECT DISTINCT sensor, channel, value, exact FROM readings")?;
    let rows = statement.query_map([], |row| {
        let value = match (row.get(2)?, row.get::<_, Option<String>>(3)?) {
            (_, Some(exact)) => Decimal::parse(&exact).map_or(Value::Null, Value::Decimal),
            (rusqlite::types::Value::Null, None) => Value::Null,
            (rusqlite::types::Value::Integer(number), None) => Value::Integer(number),
            (rusqlite::types::Value::Real(number), None) => Value::Float(number),
            (rusqlite::types::Value::Text(text), None) => Value::Text(text),
            (rusqlite::types::Value::Blob(bytes), None) => Value::Bytes(bytes),
        };
        let measurement = Measurement {
            channel: row.get(1)?,
            value,
            unit: None,
            quality: Quality::Ok,
        };
        Ok((row.get(0)?, measurement))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The bytes of a value in a record (RFC 8949; a decimal is a decimal fraction, tag 4).
fn encoded_value(value: &Value) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    // Writing to memory does not fail.
    let _ = match value {
        Value::Integer(number) => encoder.i64(*number),
        Value::Decimal(number) => encoder
            .tag(DECIMAL_FRACTION)
            .and_then(|encoder| encoder.array(2))
            .and_then(|encoder| encoder.i8(number.exponent()))
            .and_then(|encoder| encoder.i64(number.mantissa())),
        // Its shortest form may have three bytes, which are too few to look for.
        Value::Null | Value::Bool(_) | Value::Float(_) => Ok(&mut encoder),
        Value::Text(text) => encoder.str(text),
        Value::Bytes(bytes) => encoder.bytes(bytes),
    };
    encoder.into_writer()
}

fn reading(sensor: String, measurement: Measurement) -> Reading {
    Reading {
        sensor,
        sensor_number: 0,
        sequence: 0,
        time: Time {
            wall_ms: 0,
            boottime_ms: 0,
            clock: ClockState::Synchronised,
        },
        measurement,
    }
}

const DECIMAL_FRACTION: Tag = Tag::new(4);

/// By chance one of 40 bits occurs in a megabyte of ciphertext once in a million runs.
pub const NEEDLE_BYTES_MIN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_value_are_those_of_its_cbor() {
        // RFC 8949: 21.4 is tag 4 of [-1, 214].
        let decimal = Value::Decimal(Decimal::new(214, -1));
        assert_eq!(encoded_value(&decimal), [0xC4, 0x82, 0x20, 0x18, 0xD6]);
        assert_eq!(
            encoded_value(&Value::Integer(100_044)),
            [0x1A, 0x00, 0x01, 0x86, 0xCC]
        );
    }

    #[test]
    fn a_needle_is_found_where_it_is_and_nowhere_else() {
        let needles = Needles(BTreeMap::from([("bed".to_owned(), b"bed".to_vec())]));
        let mut found = Found {
            bytes: 0,
            needles: Vec::new(),
        };
        needles.look(b"nothing here", &mut found);
        assert!(found.needles.is_empty());
        needles.look(b"a bed here", &mut found);
        assert_eq!(found.needles, ["bed"]);
        assert_eq!(found.bytes, 22);
    }
}
