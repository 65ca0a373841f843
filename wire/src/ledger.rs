//! What was lost, and which runs there were: the second half of a batch; see `protocol.md` 3.2.

use crate::cbor::{self, Message, Reader, Writer};
use crate::closed::worded;
use crate::{WireError, is_name};

/// What was lost, and why. Delivered like readings, so that every gap has an explanation.
///
/// The receiver knows entries by (`chain_id`, `id`) and keeps each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Numbers the entries of a spool.
    pub id: u64,
    /// The chain of the spool that lost them.
    pub chain_id: [u8; 16],
    /// Why.
    pub reason: LossReason,
    /// Which readings, as far as they are known.
    pub tallies: Vec<Tally>,
    /// Wall time of the earliest lost reading in ms since 1970; a bound if not known exactly.
    pub from_ms: i64,
    /// Wall time of the latest lost reading in ms since 1970; a bound if not known exactly.
    pub until_ms: i64,
    /// Which sealed batches.
    pub batches: Vec<LostBatches>,
    /// The names of the sensor numbers in `tallies`, as far as they are known.
    pub names: Vec<(u32, String)>,
}

worded! {
    /// Why readings were lost.
    LossReason "loss reason" {
        /// The spool was full, and these were the oldest of the lowest class.
        Full = 1 => "full",
        /// They could not be read back from the medium.
        Damaged = 2 => "damaged",
        /// The medium refused them, and the memory queue was full.
        Disk = 3 => "disk",
        /// The process ended without a clean stop; what it still held in RAM is not known.
        UncleanStop = 4 => "unclean_stop",
    }
}

/// Sealed batches that are no more: numbers `first` to `last` of an epoch, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostBatches {
    /// The epoch.
    pub epoch_id: [u8; 32],
    /// The first lost number.
    pub first: u32,
    /// The last lost number.
    pub last: u32,
}

/// Readings of one sensor in one run, between two sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The sensor.
    pub sensor_number: u32,
    /// The run that numbered them.
    pub run_id: [u8; 16],
    /// The lowest sequence number.
    pub first: u64,
    /// The highest sequence number.
    pub last: u64,
    /// How many there are; less than the span if others lie between.
    pub count: u64,
}

/// The start or the clean end of a run of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEvent {
    /// A process started.
    Start {
        /// Born with the process.
        run_id: [u8; 16],
        /// The numbers it gave to its sensors, and their names.
        sensors: Vec<(u32, String)>,
    },
    /// A process stopped cleanly.
    End {
        /// The run that ended.
        run_id: [u8; 16],
        /// Each sensor's number and its last sequence number.
        last: Vec<(u32, u64)>,
    },
}

impl LedgerEntry {
    /// The entry's bytes: a map `{1: id, 2: chain id, 3: reason, 4: [tally], 5: [from ms, until
    /// ms], 6: [[epoch id, first, last]], 7: [[sensor number, name]]}`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads an entry.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode(bytes)
    }
}

/// The bytes of tallies: an array of `[sensor number, run id, first, last, count]`.
///
/// The spool keeps them in the clear beside each batch, so they name nothing.
#[must_use]
pub fn encode_tallies(tallies: &[Tally]) -> Vec<u8> {
    let mut writer = Writer::default();
    write_tallies(&mut writer, tallies);
    writer.into_bytes()
}

/// Reads what [`encode_tallies`] wrote.
///
/// # Errors
///
/// [`WireError`] if these are not the bytes of tallies.
pub fn decode_tallies(bytes: &[u8]) -> Result<Vec<Tally>, WireError> {
    cbor::decode::<Tallies>(bytes).map(|tallies| tallies.0)
}

impl Message for LedgerEntry {
    fn write(&self, writer: &mut Writer) {
        writer.map(7);
        writer.key(ID).uint(self.id);
        writer.key(CHAIN_ID).bytes(&self.chain_id);
        writer.key(REASON).text(self.reason.as_str());
        write_tallies(writer.key(TALLIES), &self.tallies);
        writer
            .key(SPAN)
            .array(2)
            .int(self.from_ms)
            .int(self.until_ms);
        writer.key(BATCHES).list(&self.batches, |writer, lost| {
            writer
                .array(3)
                .bytes(&lost.epoch_id)
                .uint(lost.first)
                .uint(lost.last);
        });
        write_names(writer.key(NAMES), &self.names);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let id = pairs.required(ID, Reader::u64)?;
        let chain_id = pairs.required(CHAIN_ID, Reader::sized)?;
        let reason = pairs.required(REASON, Reader::word)?;
        let tallies = pairs.required(TALLIES, |reader| reader.list(read_tally))?;
        let (from_ms, until_ms) = pairs.required(SPAN, |reader| {
            reader.array(2)?;
            Ok((reader.int()?, reader.int()?))
        })?;
        let batches = pairs.required(BATCHES, |reader| reader.list(read_lost))?;
        let names = pairs.required(NAMES, read_names)?;
        pairs.end()?;
        Ok(Self {
            id,
            chain_id,
            reason,
            tallies,
            from_ms,
            until_ms,
            batches,
            names,
        })
    }
}

impl Message for RunEvent {
    fn write(&self, writer: &mut Writer) {
        writer.array(3);
        match self {
            Self::Start { run_id, sensors } => {
                write_names(writer.uint(START).bytes(run_id), sensors);
            }
            Self::End { run_id, last } => {
                writer
                    .uint(END)
                    .bytes(run_id)
                    .list(last, |writer, (number, last)| {
                        writer.array(2).uint(*number).uint(*last);
                    });
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        reader.array(3)?;
        let kind = reader.u8()?;
        let run_id = reader.sized()?;
        match kind {
            START => Ok(Self::Start {
                run_id,
                sensors: read_names(reader)?,
            }),
            END => Ok(Self::End {
                run_id,
                last: reader.list(|reader| {
                    reader.array(2)?;
                    Ok((reader.u32()?, reader.u64()?))
                })?,
            }),
            _ => Err(WireError::Value { field: "run event" }),
        }
    }
}

/// Tallies alone, as the spool keeps them.
struct Tallies(Vec<Tally>);

impl Message for Tallies {
    fn write(&self, writer: &mut Writer) {
        write_tallies(writer, &self.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        reader.list(read_tally).map(Self)
    }
}

fn write_tallies(writer: &mut Writer, tallies: &[Tally]) {
    writer.list(tallies, |writer, tally| {
        writer
            .array(5)
            .uint(tally.sensor_number)
            .bytes(&tally.run_id)
            .uint(tally.first)
            .uint(tally.last)
            .uint(tally.count);
    });
}

fn read_tally(reader: &mut Reader<'_>) -> Result<Tally, WireError> {
    reader.array(5)?;
    let tally = Tally {
        sensor_number: reader.u32()?,
        run_id: reader.sized()?,
        first: reader.u64()?,
        last: reader.u64()?,
        count: reader.u64()?,
    };
    if tally.last < tally.first {
        return Err(WireError::Value { field: "tally" });
    }
    Ok(tally)
}

fn read_lost(reader: &mut Reader<'_>) -> Result<LostBatches, WireError> {
    reader.array(3)?;
    let lost = LostBatches {
        epoch_id: reader.sized()?,
        first: reader.u32()?,
        last: reader.u32()?,
    };
    if lost.last < lost.first {
        return Err(WireError::Value {
            field: "lost batches",
        });
    }
    Ok(lost)
}

fn write_names(writer: &mut Writer, names: &[(u32, String)]) {
    writer.list(names, |writer, (number, name)| {
        writer.array(2).uint(*number).text(name);
    });
}

fn read_names(reader: &mut Reader<'_>) -> Result<Vec<(u32, String)>, WireError> {
    reader.list(|reader| {
        reader.array(2)?;
        let number = reader.u32()?;
        let name = reader.text()?;
        if !is_name(&name) {
            return Err(WireError::Value {
                field: "sensor name",
            });
        }
        Ok((number, name))
    })
}

// Keys of a ledger entry.
const ID: &[u8] = &[1];
const CHAIN_ID: &[u8] = &[2];
const REASON: &[u8] = &[3];
const TALLIES: &[u8] = &[4];
const SPAN: &[u8] = &[5];
const BATCHES: &[u8] = &[6];
const NAMES: &[u8] = &[7];

// Kinds of run event.
const START: u8 = 1;
const END: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_end_before_they_start_are_refused() {
        let mut entry = entry();
        entry.tallies[0].first = 2;
        let error = WireError::Value { field: "tally" };
        assert_eq!(LedgerEntry::decode(&entry.encode()), Err(error));
        let tallies = encode_tallies(&entry.tallies);
        assert_eq!(decode_tallies(&tallies), Err(error));

        entry.tallies.clear();
        entry.batches[0].first = 2;
        let error = WireError::Value {
            field: "lost batches",
        };
        assert_eq!(LedgerEntry::decode(&entry.encode()), Err(error));
    }

    #[test]
    fn names_that_break_their_rules_are_refused() {
        let mut entry = entry();
        assert_eq!(LedgerEntry::decode(&entry.encode()), Ok(entry.clone()));
        entry.names[0].1 = "gps.fix".into();
        let error = WireError::Value {
            field: "sensor name",
        };
        assert_eq!(LedgerEntry::decode(&entry.encode()), Err(error));
    }

    #[test]
    fn a_reason_in_other_words_is_refused() {
        // "disk" becomes "fisk".
        let bytes = hex::encode(entry().encode()).replace("6469736b", "6669736b");
        assert_eq!(
            LedgerEntry::decode(&hex::decode(bytes).unwrap()),
            Err(WireError::Value {
                field: "loss reason"
            })
        );
        let words: Vec<_> = LossReason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .collect();
        assert_eq!(words, ["full", "damaged", "disk", "unclean_stop"]);
    }

    fn entry() -> LedgerEntry {
        LedgerEntry {
            id: 0,
            chain_id: [1; 16],
            reason: LossReason::Disk,
            tallies: vec![Tally {
                sensor_number: 0,
                run_id: [2; 16],
                first: 1,
                last: 1,
                count: 1,
            }],
            from_ms: 0,
            until_ms: 0,
            batches: vec![LostBatches {
                epoch_id: [3; 32],
                first: 1,
                last: 1,
            }],
            names: vec![(0, "gps".into())],
        }
    }
}
