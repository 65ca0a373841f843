//! Batches: stored, read back, forgotten.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use wire::batch::encode_tallies;

use super::{Store, check_size, check_tallies, forget_epoch_if_empty, readings_in};
use crate::room::{self, DELETED_ROWS_MAX};
use crate::{Acked, Appended, Lane, NewBatch, SpoolError, StoredBatch, ledger};

impl Store {
    pub(crate) fn append(&mut self, batch: &NewBatch) -> Result<Appended, SpoolError> {
        check_tallies(&batch.tallies)?;
        let tallies = encode_tallies(&batch.tallies);
        let bytes = batch.bytes.len().saturating_add(tallies.len());
        check_size(bytes, BATCH_BYTES_MAX)?;
        let place = Place::of(&self.connection, batch)?;
        if place.is_taken(&self.connection, batch)? {
            return Ok(Appended::default());
        }
        let (evicted, ()) =
            self.write(room::pages_for(bytes), batch.lane.class, |transaction| {
                place.insert(transaction, batch, &tallies)?;
                ledger::freeze(
                    transaction,
                    &batch.ledger_ids,
                    &batch.lane.service,
                    place.key(),
                )
            })?;
        self.tell_changed();
        self.budget.give_back(&self.connection, &self.files)?;
        Ok(evicted)
    }

    pub(crate) fn read(
        &self,
        lane: Lane,
        after: Option<([u8; 32], u32)>,
        bytes_max: usize,
        aside: bool,
    ) -> Result<Vec<StoredBatch>, SpoolError> {
        let bytes_max = bytes_max.min(READ_BYTES_MAX);
        let after = match after {
            Some((epoch_id, number)) => self
                .epoch(lane, epoch_id)?
                .map_or(-1, |id| key_of(id, number)),
            None => -1,
        };
        let mut statement = self.connection.prepare(
            "SELECT epoch_id, key % 65536 AS number, chain, length(batches.bytes) AS length,
                batches.bytes AS bytes
             FROM lanes
             JOIN epochs ON epochs.lane = lanes.id AND epochs.id >= ?3 / 65536
                 AND set_aside <= ?4
             JOIN batches
                 ON key >= max(?3 + 1, epochs.id * 65536) AND key < (epochs.id + 1) * 65536
             WHERE service = ?1 AND class = ?2
             ORDER BY epochs.id, key",
        )?;
        let mut rows =
            statement.query(params![lane.service, u8::from(lane.class), after, aside])?;
        let mut batches = Vec::new();
        let mut bytes = 0_usize;
        while let Some(row) = rows.next()? {
            bytes = bytes.saturating_add(row.get("length")?);
            if bytes_max < bytes && !batches.is_empty() {
                break;
            }
            batches.push(stored_batch(row)?);
        }
        Ok(batches)
    }

    pub(crate) fn ack(
        &mut self,
        lane: Lane,
        epoch_id: [u8; 32],
        next: u32,
    ) -> Result<Acked, SpoolError> {
        let mut acked = Acked::default();
        let Some(epoch) = self.epoch(lane, epoch_id)? else {
            return Ok(acked);
        };
        let end = key_of(epoch, next.min(NUMBERS_MAX));
        loop {
            let transaction = self.begin(0)?;
            let step = forget_step(&transaction, epoch, end)?;
            forget_epoch_if_empty(&transaction, epoch)?;
            transaction.commit()?;
            if step.batches == 0 {
                break;
            }
            acked.batches += step.batches;
            acked.readings += step.readings;
        }
        if acked.batches > 0 {
            self.budget.give_back(&self.connection, &self.files)?;
        }
        Ok(acked)
    }
}

/// Where a batch goes: its epoch is the newest of its lane.
struct Place {
    lane: i64,
    epoch: i64,
    number: u32,
    /// Numbers below this were appended, or passed over.
    count: u32,
    /// Chain hash of the batch before.
    head: [u8; 32],
}

impl Place {
    fn of(connection: &Connection, batch: &NewBatch) -> Result<Self, SpoolError> {
        if batch.number >= NUMBERS_MAX {
            return Err(SpoolError::TooMany {
                most: u64::from(NUMBERS_MAX),
            });
        }
        connection
            .query_row(
                "SELECT lanes.id, epochs.id, count, head FROM epochs JOIN lanes ON newest = epochs.id
                 WHERE epoch_id = ?1 AND service = ?2 AND class = ?3",
                params![
                    batch.epoch_id,
                    batch.lane.service,
                    u8::from(batch.lane.class)
                ],
                |row| {
                    Ok(Self {
                        lane: row.get(0)?,
                        epoch: row.get(1)?,
                        number: batch.number,
                        count: row.get(2)?,
                        head: row.get(3)?,
                    })
                },
            )
            .optional()?
            .ok_or(SpoolError::NotNewest)
    }

    fn key(&self) -> i64 {
        key_of(self.epoch, self.number)
    }

    /// Whether this very batch was appended before.
    fn is_taken(&self, connection: &Connection, batch: &NewBatch) -> Result<bool, SpoolError> {
        if self.count <= self.number {
            return Ok(false);
        }
        let held: Option<(Vec<u8>, [u8; 32])> = connection
            .query_row(
                "SELECT bytes, chain FROM batches WHERE key = ?1",
                [self.key()],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        match held {
            Some((bytes, chain)) if bytes == batch.bytes && chain == batch.chain => Ok(true),
            Some(_) => Err(SpoolError::Altered),
            // The newest may be gone already, but its chain hash names its bytes.
            None if self.number + 1 == self.count && self.head == batch.chain => Ok(true),
            None => Err(SpoolError::Passed),
        }
    }

    fn insert(
        &self,
        transaction: &Transaction<'_>,
        batch: &NewBatch,
        tallies: &[u8],
    ) -> Result<(), SpoolError> {
        let readings = readings_in(&batch.tallies);
        transaction.execute(
            "INSERT INTO batches
             SELECT ?1, coalesce(sum(appended_batches), 0), ?2, ?3, ?4, ?5, ?6, ?7 FROM lanes",
            params![
                self.key(),
                readings,
                batch.from_ms,
                batch.until_ms,
                batch.chain,
                tallies,
                batch.bytes
            ],
        )?;
        transaction.execute(
            "UPDATE lanes SET count = ?2, head = ?3, clean = 0,
                batches = batches + 1, bytes = bytes + ?4, readings = readings + ?5,
                appended_batches = appended_batches + 1,
                appended_readings = appended_readings + ?5
             WHERE id = ?1",
            params![
                self.lane,
                self.number + 1,
                batch.chain,
                batch.bytes.len() + tallies.len(),
                readings
            ],
        )?;
        Ok(())
    }
}

/// Forgets the oldest acknowledged batches of an epoch, below the key `end`: so many that the
/// transaction stays small.
fn forget_step(transaction: &Transaction<'_>, epoch: i64, end: i64) -> Result<Acked, SpoolError> {
    let mut step = Acked::default();
    let (mut bytes, mut last) = (0_u64, None);
    let mut statement = transaction.prepare(
        "SELECT key, readings, length(bytes) + length(tallies) FROM batches
         WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3",
    )?;
    let mut rows = statement.query(params![key_of(epoch, 0), end, DELETED_ROWS_MAX])?;
    while let Some(row) = rows.next()? {
        let row_bytes: u64 = row.get(2)?;
        if last.is_some() && FORGOTTEN_BYTES_MAX < bytes + row_bytes {
            break;
        }
        last = Some(row.get::<_, i64>(0)?);
        bytes += row_bytes;
        step.batches += 1;
        step.readings += row.get::<_, u64>(1)?;
    }
    let Some(last) = last else {
        return Ok(step);
    };
    let first = key_of(epoch, 0);
    transaction.execute(
        "DELETE FROM batches WHERE key BETWEEN ?1 AND ?2",
        [first, last],
    )?;
    ledger::erase(transaction, first, last)?;
    transaction.execute(
        "UPDATE lanes SET batches = batches - ?2, bytes = bytes - ?3, readings = readings - ?4,
            acked_readings = acked_readings + ?4
         WHERE id = (SELECT lane FROM epochs WHERE epochs.id = ?1)",
        params![epoch, step.batches, bytes, step.readings],
    )?;
    Ok(step)
}

fn stored_batch(row: &Row<'_>) -> rusqlite::Result<StoredBatch> {
    Ok(StoredBatch {
        epoch_id: row.get("epoch_id")?,
        number: row.get("number")?,
        chain: row.get("chain")?,
        bytes: row.get("bytes")?,
    })
}

/// `batches.key`: see `schema.sql`.
fn key_of(epoch: i64, number: u32) -> i64 {
    epoch
        .saturating_mul(i64::from(NUMBERS_MAX))
        .saturating_add(i64::from(number))
}

/// Numbers of an epoch (`docs/protocol.md` 3.2).
const NUMBERS_MAX: u32 = 65_536;

/// Most bytes of a batch with its tallies: 1.1 MiB, as of a message of the upload
/// (`docs/protocol.md` 4).
pub const BATCH_BYTES_MAX: usize = 1_153_433;

/// Bytes returned at once: the largest window (`docs/protocol.md` 4).
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes that one transaction forgets, unless one batch has more.
const FORGOTTEN_BYTES_MAX: u64 = 1024 * 1024;
