//! Losses, from the moment they happen until their service has committed them.
//!
//! An entry is *open* while losses of the same lane for the same reason are added to it. It is
//! *sealed* when it is handed out to travel in a batch: from then on it never changes, as its
//! service knows entries by their id and keeps the first it gets. The batch that has it is its
//! *carrier*: acknowledged, the entry is erased; evicted, the entry waits to be sealed again.
//!
//! Everything is bounded, since an outage is not: the tallies and batches of an entry, and the
//! entries. What is beyond is summed up more coarsely, never left out of the counts.

use rusqlite::{Connection, Row, Transaction, params};
use wire::batch::{LedgerEntry, LossReason, LostBatches, Tally};

use crate::SpoolError;
use crate::store::{decoded, readings_in};

/// A loss on its way into the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// `lanes.id` of the lane it is from.
    pub(crate) lane: i64,
    pub(crate) reason: LossReason,
    pub(crate) tallies: Vec<Tally>,
    pub(crate) from_ms: i64,
    pub(crate) until_ms: i64,
    pub(crate) batches: Vec<LostBatches>,
}

/// Adds a loss to the open entry of its lane and reason, and to the lane's count.
pub(crate) fn record(transaction: &Transaction<'_>, found: &Found) -> Result<(), SpoolError> {
    transaction.execute(
        "UPDATE lanes SET lost_readings = lost_readings + ?2 WHERE id = ?1",
        params![found.lane, readings_in(&found.tallies)],
    )?;
    let entry = open_entry(transaction, found)?;
    for tally in &found.tallies {
        add_tally(transaction, entry, tally)?;
    }
    for lost in &found.batches {
        add_batches(transaction, entry, lost)?;
    }
    transaction.execute(
        "DELETE FROM ledger_batches WHERE entry = ?1 AND position <=
         (SELECT max(position) FROM ledger_batches WHERE entry = ?1) - ?2",
        params![entry, RANGES_MAX],
    )?;
    Ok(())
}

/// Marks the entries with these ids as carried by the batch with this key.
pub(crate) fn freeze(
    transaction: &Transaction<'_>,
    ids: &[u64],
    service: &[u8; 32],
    key: i64,
) -> Result<(), SpoolError> {
    for id in ids {
        transaction.execute(
            "UPDATE ledger SET sealed = 1, carrier = ?2 WHERE id = ?1 AND carrier IS NULL
             AND lane IN (SELECT id FROM lanes WHERE service = ?3)",
            params![id, key, service],
        )?;
    }
    Ok(())
}

/// Erases the entries carried by batches from `first` to `last`: these are committed.
pub(crate) fn erase(
    transaction: &Transaction<'_>,
    first: i64,
    last: i64,
) -> Result<(), SpoolError> {
    transaction.execute(
        "DELETE FROM ledger WHERE carrier BETWEEN ?1 AND ?2",
        [first, last],
    )?;
    Ok(())
}

/// Lets the entries carried by this batch wait again: it is evicted.
pub(crate) fn thaw(transaction: &Transaction<'_>, key: i64) -> Result<(), SpoolError> {
    transaction.execute("UPDATE ledger SET carrier = NULL WHERE carrier = ?1", [key])?;
    Ok(())
}

/// Lets the entries carried by the batches of this epoch wait again: its service cannot open it.
pub(crate) fn thaw_epoch(
    transaction: &Transaction<'_>,
    epoch_id: &[u8; 32],
) -> Result<(), SpoolError> {
    transaction.execute(
        "UPDATE ledger SET carrier = NULL WHERE carrier IS NOT NULL
         AND carrier / 65536 = (SELECT id FROM epochs WHERE epoch_id = ?1)",
        [epoch_id],
    )?;
    Ok(())
}

/// Hands out the oldest waiting entries of a service, and seals those that were open.
///
/// While a service has many sealed entries that it has not committed, further losses stay in the
/// open ones: else a spool that is full for months would keep an entry for each batch that came
/// and went.
pub(crate) fn hand_out(
    transaction: &Transaction<'_>,
    service: &[u8; 32],
) -> Result<Vec<LedgerEntry>, SpoolError> {
    let sealed: usize = transaction.query_row(
        "SELECT count(*) FROM lanes JOIN ledger ON ledger.lane = lanes.id
         WHERE service = ?1 AND sealed = 1",
        [service],
        |row| row.get(0),
    )?;
    let mut may_seal = SEALED_MAX.saturating_sub(sealed);
    let chain_id = crate::file::chain_id(transaction)?;
    let mut entries = Vec::new();
    for (id, sealed) in waiting(transaction, service)? {
        if entries.len() == HANDED_OUT_MAX {
            break;
        }
        if !sealed {
            if may_seal == 0 {
                continue;
            }
            may_seal -= 1;
            transaction.execute("UPDATE ledger SET sealed = 1 WHERE id = ?1", [id])?;
        }
        entries.push(entry(transaction, id, chain_id)?);
    }
    Ok(entries)
}

/// Waiting entries of a service, oldest first, and whether they are sealed.
fn waiting(connection: &Connection, service: &[u8; 32]) -> Result<Vec<(i64, bool)>, SpoolError> {
    let mut statement = connection.prepare(
        "SELECT ledger.id, sealed FROM lanes JOIN ledger ON ledger.lane = lanes.id
         WHERE service = ?1 AND carrier IS NULL ORDER BY ledger.id",
    )?;
    let ids = statement.query_map([service], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

/// The open entry of the loss's lane and reason, which is made if there is none, with its time.
fn open_entry(transaction: &Transaction<'_>, found: &Found) -> Result<i64, SpoolError> {
    Ok(transaction.query_row(
        "INSERT INTO ledger (lane, reason, from_ms, until_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (lane, reason) WHERE sealed = 0 DO UPDATE
         SET from_ms = min(from_ms, excluded.from_ms), until_ms = max(until_ms, excluded.until_ms)
         RETURNING id",
        params![
            found.lane,
            u8::from(found.reason),
            found.from_ms,
            found.until_ms
        ],
        |row| row.get(0),
    )?)
}

/// Adds to the tally of the same sensor and run. When the entry has too many, runs are no longer
/// told apart, and in the end not even sensors.
fn add_tally(transaction: &Transaction<'_>, entry: i64, tally: &Tally) -> Result<(), SpoolError> {
    let coarser = [
        (tally.sensor_number, tally.run_id, TALLIES_MAX),
        (tally.sensor_number, RUNS_SUMMED, 2 * TALLIES_MAX),
        (SENSORS_SUMMED, RUNS_SUMMED, u32::MAX),
    ];
    for (sensor_number, run_id, tallies_max) in coarser {
        let changed = transaction.execute(
            "UPDATE ledger_tallies
             SET first = min(first, ?4), last = max(last, ?5), count = count + ?6
             WHERE entry = ?1 AND sensor_number = ?2 AND run_id = ?3",
            params![
                entry,
                sensor_number,
                run_id,
                tally.first,
                tally.last,
                tally.count
            ],
        )?;
        if changed > 0 {
            return Ok(());
        }
        let inserted = transaction.execute(
            "INSERT INTO ledger_tallies SELECT ?1, ?2, ?3, ?4, ?5, ?6
             WHERE (SELECT count(*) FROM ledger_tallies WHERE entry = ?1) < ?7",
            params![
                entry,
                sensor_number,
                run_id,
                tally.first,
                tally.last,
                tally.count,
                tallies_max
            ],
        )?;
        if inserted > 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// Extends the newest range of the entry, or adds one.
fn add_batches(
    transaction: &Transaction<'_>,
    entry: i64,
    lost: &LostBatches,
) -> Result<(), SpoolError> {
    let extended = transaction.execute(
        "UPDATE ledger_batches SET last = ?4 WHERE entry = ?1 AND epoch_id = ?2 AND last = ?3 - 1
         AND position = (SELECT max(position) FROM ledger_batches WHERE entry = ?1)",
        params![entry, lost.epoch_id, lost.first, lost.last],
    )?;
    if extended == 0 {
        transaction.execute(
            "INSERT INTO ledger_batches SELECT ?1, coalesce(max(position), 0) + 1, ?2, ?3, ?4
             FROM ledger_batches WHERE entry = ?1",
            params![entry, lost.epoch_id, lost.first, lost.last],
        )?;
    }
    Ok(())
}

/// Reads an entry.
fn entry(connection: &Connection, id: i64, chain_id: [u8; 16]) -> Result<LedgerEntry, SpoolError> {
    let mut entry = connection.query_row(
        "SELECT id, reason, from_ms, until_ms FROM ledger WHERE id = ?1",
        [id],
        |row| {
            Ok(LedgerEntry {
                id: row.get(0)?,
                chain_id,
                reason: decoded(LossReason::try_from(row.get::<_, u8>(1)?))?,
                tallies: Vec::new(),
                from_ms: row.get(2)?,
                until_ms: row.get(3)?,
                batches: Vec::new(),
                names: Vec::new(),
            })
        },
    )?;
    let mut statement = connection.prepare(
        "SELECT sensor_number, run_id, first, last, count FROM ledger_tallies WHERE entry = ?1",
    )?;
    let tallies = statement.query_map([id], tally)?;
    entry.tallies = tallies.collect::<rusqlite::Result<_>>()?;
    let mut statement = connection.prepare(
        "SELECT epoch_id, first, last FROM ledger_batches WHERE entry = ?1 ORDER BY position",
    )?;
    let batches = statement.query_map([id], lost_batches)?;
    entry.batches = batches.collect::<rusqlite::Result<_>>()?;
    Ok(entry)
}

fn tally(row: &Row<'_>) -> rusqlite::Result<Tally> {
    Ok(Tally {
        sensor_number: row.get(0)?,
        run_id: row.get(1)?,
        first: row.get(2)?,
        last: row.get(3)?,
        count: row.get(4)?,
    })
}

fn lost_batches(row: &Row<'_>) -> rusqlite::Result<LostBatches> {
    Ok(LostBatches {
        epoch_id: row.get(0)?,
        first: row.get(1)?,
        last: row.get(2)?,
    })
}

/// Run id of tallies that sum up several runs; `first` and `last` are then of no run.
const RUNS_SUMMED: [u8; 16] = [0; 16];

/// Sensor number of the tally that sums up several sensors.
const SENSORS_SUMMED: u32 = u32::MAX;

/// Tallies of an entry that tell sensor and run: ten runs of 50 sensors. As many again tell the
/// sensor only. At up to 50 bytes each, that is 50 KiB.
const TALLIES_MAX: u32 = 512;

/// Ranges of batches in an entry; an epoch is one, so these are three weeks. Older ones are left
/// out: that nothing is left of those epochs, the upload says itself (`docs/protocol.md` 4,
/// message 5). At up to 50 bytes each, that is 25 KiB.
const RANGES_MAX: u32 = 512;

/// Entries handed out at once: at up to 75 KiB each, they fit a batch of 1 MiB.
const HANDED_OUT_MAX: usize = 8;

/// Sealed entries of a service that it has not committed. With the open ones, one for each class
/// and reason, that is 2 MiB at the very worst, and mostly a few KiB.
const SEALED_MAX: usize = 16;
