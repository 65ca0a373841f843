//! The plaintext of a sealed batch.
//!
//! A CBOR sequence (RFC 8742): a SenML pack (RFC 8428), which needs nothing of ours to be read;
//! then, only if there is something to say, a map `{? 1: [ledger entry], ? 2: [run event]}`.

use crate::cbor::{self, Message, Reader, Writer};
use crate::senml::{self, Pack};
use crate::{Reading, WireError};

pub use crate::ledger::{
    LedgerEntry, LossReason, LostBatches, RunEvent, Tally, decode_tallies, encode_tallies,
};

/// Readings that are sealed together, with what is to be said about losses and runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// What SenML puts before each name: the gateway's fingerprint and a slash.
    ///
    /// Letters, digits and `-:./_`, starting with a letter or digit (RFC 8428, 4.5.1); or empty.
    pub base_name: String,
    /// The readings, in the order in which they were made.
    pub readings: Vec<Reading>,
    /// Losses.
    pub ledger: Vec<LedgerEntry>,
    /// Starts and ends of runs.
    pub run_events: Vec<RunEvent>,
}

impl Batch {
    /// The batch's bytes. Names that break their rules are written, and refused by the receiver.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a batch.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of a batch.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode(bytes)
    }
}

impl Message for Batch {
    fn write(&self, writer: &mut Writer) {
        senml::write_pack(writer, &self.base_name, &self.readings);
        let lists = usize::from(!self.ledger.is_empty()) + usize::from(!self.run_events.is_empty());
        if 0 < lists {
            writer.map(lists);
        }
        if !self.ledger.is_empty() {
            writer
                .key(LEDGER)
                .list(&self.ledger, |writer, entry| entry.write(writer));
        }
        if !self.run_events.is_empty() {
            writer
                .key(RUN_EVENTS)
                .list(&self.run_events, |writer, event| event.write(writer));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let Pack {
            base_name,
            readings,
        } = Pack::read(reader)?;
        let mut batch = Self {
            base_name,
            readings,
            ..Self::default()
        };
        if !reader.is_at_end() {
            let mut pairs = reader.map()?;
            batch.ledger = pairs
                .optional(LEDGER, |reader| reader.list(LedgerEntry::read))?
                .unwrap_or_default();
            batch.run_events = pairs
                .optional(RUN_EVENTS, |reader| reader.list(RunEvent::read))?
                .unwrap_or_default();
            pairs.end()?;
        }
        Ok(batch)
    }
}

// Keys of the map.
const LEDGER: &[u8] = &[1];
const RUN_EVENTS: &[u8] = &[2];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClockState, Decimal, Measurement, Quality, Time, Unit, Value};

    /// The bytes are cbor2's (Python, canonical); the pack in them was checked with cddl-verifier
    /// 1.5.3 against the CDDL of RFC 8428, 11.
    #[test]
    fn a_batch_has_these_bytes() {
        let bytes = hex::decode(BATCH).unwrap();
        assert_eq!(hex::encode(batch().encode()), BATCH);
        assert_eq!(Batch::decode(&bytes), Ok(batch()));
    }

    #[test]
    fn a_batch_without_readings_still_says_whose_it_is() {
        let batch = Batch {
            base_name: "gi-mfzwi2ln/".into(),
            ..Batch::default()
        };
        assert_eq!(
            hex::encode(batch.encode()),
            "81a1216c67692d6d667a7769326c6e2f"
        );
        assert_eq!(Batch::decode(&batch.encode()), Ok(batch));

        assert_eq!(Batch::default().encode(), [0x80]);
        assert_eq!(Batch::decode(&[0x80]), Ok(Batch::default()));
    }

    #[test]
    fn tallies_and_ledger_entries_have_these_bytes() {
        let entry = &batch().ledger[0];
        let tallies = "81850750101112131415161718191a1b1c1d1e1f001910df1910e0";
        assert_eq!(hex::encode(encode_tallies(&entry.tallies)), tallies);
        assert_eq!(
            decode_tallies(&hex::decode(tallies).unwrap()),
            Ok(entry.tallies.clone())
        );
        assert_eq!(decode_tallies(&[0x80]), Ok(Vec::new()));
        let bytes = hex::decode(ENTRY).unwrap();
        assert_eq!(hex::encode(entry.encode()), ENTRY);
        assert_eq!(LedgerEntry::decode(&bytes).as_ref(), Ok(entry));
    }

    /// A clock that was never set must not make a reading "an hour from now" (RFC 8428, 4.5.3).
    #[test]
    fn times_before_2_pow_28_seconds_are_not_written_as_senml_time() {
        let mut reading = batch().readings.remove(0);
        for (wall_ms, has_time) in [
            (i64::MIN, false),
            (0, false),
            (268_435_455_999, false),
            (268_435_456_000, true),
            (i64::MAX, true),
        ] {
            reading.time.wall_ms = wall_ms;
            let batch = Batch {
                readings: vec![reading.clone()],
                ..Batch::default()
            };
            let bytes = batch.encode();
            let time = [0x06, 0xc4, 0x82, 0x22];
            assert_eq!(bytes.windows(4).any(|four| four == time), has_time);
            assert_eq!(Batch::decode(&bytes), Ok(batch));
        }
    }

    #[test]
    fn what_no_gateway_writes_is_refused() {
        let value = |field| WireError::Value { field };
        let malformed = |at| WireError::Malformed { at };
        for (why, hex, error) in [
            ("nothing", "", malformed(0)),
            ("no array", "a0", malformed(0)),
            ("cut", "81", malformed(1)),
            ("indefinite length", "9fff", malformed(0)),
            ("long form", "9800", WireError::NotDeterministic),
            (
                "trailing bytes",
                "80a101800000",
                WireError::Trailing { bytes: 2 },
            ),
            ("empty map", "80a0", WireError::NotDeterministic),
            ("empty list", "80a10180", WireError::NotDeterministic),
            ("unknown list", "80a10380", malformed(2)),
            ("lists in another order", "80a202800180", malformed(4)),
            (
                "base name twice",
                "82a1216161a1216161",
                WireError::NotDeterministic,
            ),
            ("empty base name", "81a12160", value("base name")),
            ("base name that SenML forbids", "81a1212f2f", malformed(3)),
            (
                "base name with a blank",
                "81a12163612062",
                value("base name"),
            ),
            ("name without channel", "81a10061615a", value("name")),
            ("name with two dots", "81a10065612e622e63", value("name")),
            ("unknown unit", "81a20063612e62016378797a", value("unit")),
            ("bignum", "81a20063612e6202c24101", malformed(8)),
            ("big decimal", "81a20063612e6202c48220c24101", malformed(11)),
            (
                "time in seconds",
                "81a20063612e6206c482201b000001a208b72170",
                value("time"),
            ),
            (
                "time relative to now",
                "81a20063612e6206c4822201",
                value("time"),
            ),
            ("float time", "81a20063612e6206f93c00", malformed(8)),
            (
                "no sequence",
                "81a20063612e6206c482221b000001a208b72170",
                malformed(20),
            ),
        ] {
            let bytes = hex::decode(hex).unwrap();
            assert_eq!(Batch::decode(&bytes), Err(error), "{why}");
        }
    }

    #[test]
    fn other_encodings_of_the_same_record_are_refused() {
        let decoded = Batch::decode(&hex::decode(RECORD).unwrap()).unwrap();
        assert_eq!(decoded.readings[0].measurement.value, Value::Float(0.5));

        let other = WireError::NotDeterministic;
        let malformed = |at| WireError::Malformed { at };
        for (why, pairs, from, to, error) in [
            ("longer float", "a6", "f93800", "fa3f000000", other),
            ("longer integer", "a6", "62677300", "6267731800", other),
            (
                "decimal with trailing zero",
                "a6",
                "f93800",
                "c482211832",
                other,
            ),
            ("NaN with payload", "a6", "f93800", "f97e01", other),
            (
                "default written out",
                "a7",
                "62677300",
                "626771626f6b62677300",
                other,
            ),
            ("second value", "a7", "02f93800", "02f9380004f5", other),
            (
                "unsorted keys",
                "a6",
                "62676e0062677300",
                "6267730062676e00",
                malformed(11),
            ),
            (
                "doubled key",
                "a7",
                "62676e00",
                "62676e0062676e00",
                malformed(15),
            ),
            (
                "unknown key",
                "a7",
                "62677500",
                "6267750062677600",
                malformed(23),
            ),
            ("key too many", "a7", "", "", malformed(29)),
        ] {
            let bytes = RECORD.replacen("a6", pairs, 1).replacen(from, to, 1);
            let bytes = hex::decode(bytes).unwrap();
            assert_eq!(Batch::decode(&bytes), Err(error), "{why}");
        }
    }

    fn batch() -> Batch {
        let start = RunEvent::Start {
            run_id: run_id(),
            sensors: vec![(0, "climate".into()), (1, "meter".into())],
        };
        let end = RunEvent::End {
            run_id: run_id(),
            last: vec![(0, 884_213), (1, 0)],
        };
        Batch {
            base_name: "gi-mfzwi2ln/".into(),
            readings: readings(),
            ledger: vec![entry()],
            run_events: vec![start, end],
        }
    }

    fn readings() -> Vec<Reading> {
        let celsius = Value::Decimal(Decimal::new(214, -1));
        let note = Value::Text("L=1832m?".into());
        let mut readings = vec![
            reading("climate.temperature", celsius, (0, 884_213), 1_000_123),
            reading("meter.energy", Value::Integer(41_280), (1, 0), 60_000),
            reading("door.open", Value::Bool(true), (24, 23), 0),
            reading("gps.raw", Value::Bytes(vec![0, 0xff]), (255, 24), 1),
            reading("tank.note", note, (256, 256), 65_536),
            reading("climate.co2", Value::Null, (65_535, 65_535), 1 << 32),
            reading("power.load", Value::Float(1.1), (65_536, 65_536), 2),
            reading("power.trim", Value::Float(-0.5), (2, 1), 3),
        ];
        readings[0].measurement.unit = Some(Unit::Celsius);
        readings[1].measurement.unit = Some(Unit::WattHour);
        readings[1].measurement.quality = Quality::Stale;
        readings[1].time.clock = ClockState::Unsynchronised;
        readings[1].time.wall_ms = 60_000;
        readings[2].time.wall_ms = 268_435_456_000;
        readings[3].time.wall_ms += 1;
        readings[4].time.wall_ms += 2;
        readings[4].measurement.quality = Quality::OutOfRange;
        readings[5].time.wall_ms += 3;
        readings[5].measurement.unit = Some(Unit::PartsPerMillion);
        readings[5].measurement.quality = Quality::Invalid;
        readings[6].time.wall_ms += 4;
        readings[6].measurement.unit = Some(Unit::Watt);
        readings[6].time.clock = ClockState::Corrected;
        readings[7].time.wall_ms = -1;
        readings
    }

    fn entry() -> LedgerEntry {
        LedgerEntry {
            id: 3,
            chain_id: std::array::from_fn(|at| 0x20 + u8::try_from(at).unwrap()),
            reason: LossReason::Full,
            tallies: vec![Tally {
                sensor_number: 7,
                run_id: run_id(),
                first: 0,
                last: 4319,
                count: 4320,
            }],
            from_ms: 1_795_310_000_000,
            until_ms: 1_795_353_200_000,
            batches: vec![LostBatches {
                epoch_id: std::array::from_fn(|at| 0x40 + u8::try_from(at).unwrap()),
                first: 0,
                last: 236,
            }],
            names: vec![(7, "gps".into())],
        }
    }

    fn reading(name: &str, value: Value, number: (u32, u64), boottime_ms: u64) -> Reading {
        let (sensor, channel) = name.split_once('.').unwrap();
        Reading {
            sensor: sensor.into(),
            sensor_number: number.0,
            sequence: number.1,
            time: Time {
                wall_ms: 1_795_442_549_104,
                boottime_ms,
                clock: ClockState::Synchronised,
            },
            measurement: Measurement {
                channel: channel.into(),
                value,
                unit: None,
                quality: Quality::Ok,
            },
        }
    }

    fn run_id() -> [u8; 16] {
        std::array::from_fn(|at| 0x10 + u8::try_from(at).unwrap())
    }

    /// `[{0: "a.b", 2: 0.5, "gn": 0, "gs": 0, "gu": 0, "gw": 500}]`, written by hand.
    const RECORD: &str = "81a60063612e6202f9380062676e0062677300626775006267771901f4";

    const BATCH: &str = "88a80073636c696d6174652e74656d7065726174757265016343656c02c4822018d606c482221b000001\
        a208b72170216c67692d6d667a7769326c6e2f62676e1a000d7df5626773006267751a000f42bba9006c\
        6d657465722e656e65726779016257680219a1406267636e756e73796e6368726f6e6973656462676e00\
        626771657374616c656267730162677519ea6062677719ea60a60069646f6f722e6f70656e04f506c482\
        221b0000003e8000000062676e17626773181862677500a600676770732e72617706c482221b000001a2\
        08b72171084200ff62676e181862677318ff62677501a7006974616e6b2e6e6f746503684c3d31383332\
        6d3f06c482221b000001a208b7217262676e1901006267716c6f75745f6f665f72616e67656267731901\
        006267751a00010000a7006b636c696d6174652e636f32016370706d06c482221b000001a208b7217362\
        676e19ffff62677167696e76616c696462677319ffff6267751b0000000100000000a8006a706f776572\
        2e6c6f616401615702fb3ff199999999999a06c482221b000001a208b7217462676369636f7272656374\
        656462676e1a000100006267731a0001000062677502a6006a706f7765722e7472696d02f9b80062676e\
        01626773026267750362677720a20181a701030250202122232425262728292a2b2c2d2e2f036466756c\
        6c0481850750101112131415161718191a1b1c1d1e1f001910df1910e005821b000001a200d097801b00\
        0001a20363c5800681835820404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d\
        5e5f0018ec07818207636770730282830150101112131415161718191a1b1c1d1e1f82820067636c696d\
        6174658201656d65746572830250101112131415161718191a1b1c1d1e1f8282001a000d7df5820100";

    const ENTRY: &str = "a701030250202122232425262728292a2b2c2d2e2f036466756c6c048185075010111213141516171819\
        1a1b1c1d1e1f001910df1910e005821b000001a200d097801b000001a20363c580068183582040414243\
        4445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f0018ec0781820763677073";
}
