//! What the spool does on request, on the thread that owns the connection.

use std::collections::BTreeSet;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use tokio::sync::watch;
use wire::Class;
use wire::batch::{LedgerEntry, LossReason, Tally, encode_tallies};

use crate::file::{self, Files};
use crate::ledger::{self, Found};
use crate::room::{self, Budget, DELETED_ROWS_MAX, Pages};
use crate::{
    Acked, Appended, Lane, LaneState, LaneStatus, Limits, Loss, MAX_BYTES_MIN, NewBatch, NewEpoch,
    Newest, SpoolError, SpoolState, Status, StoredBatch, StoredHeader,
};

/// The open file, and what is known about it in memory.
pub(crate) struct Store {
    connection: Connection,
    files: Files,
    budget: Budget,
    /// Ledger entries handed out to be sealed, and not yet appended in a batch.
    handed_out: BTreeSet<u64>,
    /// Counts appended batches and signed headers.
    changed: watch::Sender<u64>,
}

impl Store {
    /// Opens the file, or makes it.
    pub(crate) fn open(
        files: Files,
        limits: Limits,
        changed: watch::Sender<u64>,
    ) -> Result<Self, SpoolError> {
        if limits.max_bytes < MAX_BYTES_MIN {
            return Err(SpoolError::LimitTooSmall {
                max_bytes: limits.max_bytes,
            });
        }
        let connection = file::open(&files)?;
        let damaged_bytes = files.damaged_bytes()?;
        let mut store = Self {
            connection,
            files,
            budget: Budget::new(limits, damaged_bytes),
            handed_out: BTreeSet::new(),
            changed,
        };
        // Besides a larger one there would hardly be room for the log.
        if limits.max_bytes / 2 < damaged_bytes {
            store.remove_damaged()?;
        }
        room::set_pages_max(&store.connection, &store.budget)?;
        Ok(store)
    }

    /// Closes the file, for good; returns what names it.
    pub(crate) fn close(self) -> Files {
        self.files
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    pub(crate) fn chain_id(&self) -> Result<[u8; 16], SpoolError> {
        file::chain_id(&self.connection)
    }

    pub(crate) fn lane(&self, lane: Lane) -> Result<LaneState, SpoolError> {
        let found = self
            .connection
            .query_row(
                "SELECT lanes.id, batches, bytes, epoch_id, chain_index, count, head, clean
                 FROM lanes LEFT JOIN epochs ON epochs.id = newest
                 WHERE service = ?1 AND class = ?2",
                params![lane.service, u8::from(lane.class)],
                |row| {
                    let state = LaneState {
                        newest: newest(row)?,
                        oldest: None,
                        batches: row.get("batches")?,
                        bytes: row.get("bytes")?,
                    };
                    Ok((row.get::<_, i64>(0)?, state))
                },
            )
            .optional()?;
        let Some((id, mut state)) = found else {
            return Ok(LaneState::default());
        };
        state.oldest = self.oldest(id)?;
        Ok(state)
    }

    /// The oldest batch of the lane's first epoch that is to be sent and has one.
    ///
    /// Only the newest epoch may have none, so this looks at two epochs at most, and at those
    /// that are set aside.
    fn oldest(&self, lane: i64) -> Result<Option<([u8; 32], u32)>, SpoolError> {
        Ok(self
            .connection
            .query_row(
                "SELECT epoch_id, key % 65536 FROM epochs
                 JOIN batches ON key >= epochs.id * 65536 AND key < (epochs.id + 1) * 65536
                 WHERE lane = ?1 AND set_aside = 0 ORDER BY epochs.id, key LIMIT 1",
                [lane],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?)
    }

    pub(crate) fn open_epoch(&mut self, epoch: &NewEpoch) -> Result<(), SpoolError> {
        check_size(epoch.unsigned_header.len(), HEADER_BYTES_MAX)?;
        let pages = room::pages_for(epoch.unsigned_header.len());
        self.write(pages, epoch.lane.class, |transaction| {
            insert_epoch(transaction, epoch)
        })?;
        Ok(())
    }

    pub(crate) fn sign_header(
        &mut self,
        epoch_id: [u8; 32],
        header: &[u8],
    ) -> Result<(), SpoolError> {
        check_size(header.len(), HEADER_BYTES_MAX)?;
        let pages = room::pages_for(header.len());
        self.write(pages, Class::Critical, |transaction| {
            // An epoch that is not here was evicted meanwhile and needs no header; of one that is
            // signed the first signature stays, as it may have been sent.
            transaction.execute(
                "UPDATE epochs SET header = ?2, signed = 1 WHERE epoch_id = ?1 AND signed = 0",
                params![epoch_id, header],
            )?;
            Ok(())
        })?;
        self.tell_changed();
        Ok(())
    }

    pub(crate) fn header(&self, epoch_id: [u8; 32]) -> Result<Option<StoredHeader>, SpoolError> {
        Ok(self
            .connection
            .query_row(
                "SELECT signed, header FROM epochs WHERE epoch_id = ?1",
                [epoch_id],
                |row| {
                    let header = row.get(1)?;
                    Ok(if row.get(0)? {
                        StoredHeader::Signed(header)
                    } else {
                        StoredHeader::Unsigned(header)
                    })
                },
            )
            .optional()?)
    }

    pub(crate) fn unsigned_headers(&self) -> Result<Vec<([u8; 32], Vec<u8>)>, SpoolError> {
        let mut statement = self
            .connection
            .prepare("SELECT epoch_id, header FROM epochs WHERE signed = 0 ORDER BY id LIMIT ?1")?;
        let headers =
            statement.query_map([HEADERS_AT_ONCE_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(headers.collect::<rusqlite::Result<_>>()?)
    }

    pub(crate) fn close_epoch(
        &mut self,
        lane: Lane,
        epoch_id: [u8; 32],
        clean: bool,
    ) -> Result<(), SpoolError> {
        let transaction = self.begin(0)?;
        let changed = transaction.execute(
            "UPDATE lanes SET clean = ?4 WHERE service = ?1 AND class = ?2
             AND newest = (SELECT id FROM epochs WHERE epoch_id = ?3)",
            params![lane.service, u8::from(lane.class), epoch_id, clean],
        )?;
        transaction.commit()?;
        if changed == 0 {
            return Err(SpoolError::NotNewest);
        }
        Ok(())
    }

    pub(crate) fn set_aside(&mut self, epoch_id: [u8; 32]) -> Result<(), SpoolError> {
        let transaction = self.begin(0)?;
        transaction.execute(
            "UPDATE epochs SET set_aside = 1 WHERE epoch_id = ?1",
            [epoch_id],
        )?;
        Ok(transaction.commit()?)
    }

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
        for id in &batch.ledger_ids {
            self.handed_out.remove(id);
        }
        self.tell_changed();
        self.budget.give_back(&self.connection, &self.files)?;
        Ok(evicted)
    }

    pub(crate) fn read(
        &self,
        lane: Lane,
        after: Option<([u8; 32], u32)>,
        bytes_max: usize,
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
             JOIN epochs ON epochs.lane = lanes.id AND epochs.id >= ?3 / 65536 AND set_aside = 0
             JOIN batches
                 ON key >= max(?3 + 1, epochs.id * 65536) AND key < (epochs.id + 1) * 65536
             WHERE service = ?1 AND class = ?2
             ORDER BY epochs.id, key",
        )?;
        let mut rows = statement.query(params![lane.service, u8::from(lane.class), after])?;
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

    pub(crate) fn ledger_open(
        &mut self,
        service: [u8; 32],
    ) -> Result<Vec<LedgerEntry>, SpoolError> {
        let handed_out = self.handed_out.clone();
        let transaction = self.begin(0)?;
        ledger::fold(&transaction, &service, &handed_out)?;
        let entries = ledger::hand_out(&transaction, &service)?;
        transaction.commit()?;
        self.handed_out.extend(entries.iter().map(|entry| entry.id));
        Ok(entries)
    }

    pub(crate) fn record_loss(&mut self, loss: &Loss) -> Result<(), SpoolError> {
        check_tallies(&loss.tallies)?;
        let bytes = encode_tallies(&loss.tallies).len() + loss.batches.len() * 64;
        check_size(bytes, LOSS_BYTES_MAX)?;
        self.write(room::pages_for(bytes), Class::Critical, |transaction| {
            let found = Found {
                lane: lane_id(transaction, loss.lane)?,
                reason: loss.reason,
                tallies: loss.tallies.clone(),
                from_ms: loss.from_ms,
                until_ms: loss.until_ms,
                batches: loss.batches.clone(),
            };
            ledger::record(transaction, &found)
        })?;
        Ok(())
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) -> Result<(), SpoolError> {
        check_size(key.len(), KEY_BYTES_MAX)?;
        check_size(value.len(), VALUE_BYTES_MAX)?;
        let pages = room::pages_for(key.len() + value.len());
        self.write(pages, Class::Critical, |transaction| {
            let changed = transaction.execute(
                "INSERT INTO kept SELECT ?1, ?2
                 WHERE EXISTS (SELECT 1 FROM kept WHERE key = ?1)
                 OR (SELECT count(*) FROM kept) < ?3
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                params![key, value, KEYS_MAX],
            )?;
            if changed == 0 {
                return Err(SpoolError::TooMany { most: KEYS_MAX });
            }
            Ok(())
        })?;
        Ok(())
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        Ok(self
            .connection
            .query_row("SELECT value FROM kept WHERE key = ?1", [key], |row| {
                row.get(0)
            })
            .optional()?)
    }

    pub(crate) fn status(&self) -> Result<Status, SpoolError> {
        let mut statement = self.connection.prepare(
            "SELECT lanes.*, (SELECT from_ms FROM batches WHERE lanes.batches > 0
                AND key >= 65536 * (SELECT min(id) FROM epochs WHERE epochs.lane = lanes.id)
                ORDER BY key LIMIT 1) AS oldest_ms
             FROM lanes ORDER BY service, class",
        )?;
        let lanes = statement
            .query_map([], lane_status)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let used_bytes = Pages::of(&self.connection)?.used_bytes();
        let sum = |of: fn(&LaneStatus) -> u64| lanes.iter().map(of).sum();
        Ok(Status {
            state: SpoolState::Disk,
            bytes: used_bytes.saturating_add(self.files.log_bytes()?),
            max_bytes: self.budget.max_bytes(),
            appended_readings: sum(|lane| lane.appended_readings),
            acked_readings: sum(|lane| lane.acked_readings),
            lost_readings: sum(|lane| lane.lost_readings),
            lanes,
        })
    }

    /// Begins a transaction that stores `pages` at most, after making room for it in the log.
    fn begin(&mut self, pages: u64) -> Result<Transaction<'_>, SpoolError> {
        self.budget.keep_log(&self.connection, &self.files, pages)?;
        Ok(self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?)
    }

    /// Makes room for `pages`, then writes, the last step of the one and all of the other in one
    /// transaction. Drops nothing more urgent than `class`.
    fn write<T>(
        &mut self,
        pages: u64,
        class: Class,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, SpoolError>,
    ) -> Result<(Appended, T), SpoolError> {
        let mut evicted = Appended::default();
        loop {
            let mut allowed = self.budget.pages_allowed(&self.connection, &self.files)?;
            if self.budget.has_damaged() && !Pages::of(&self.connection)?.fit(pages, allowed) {
                self.remove_damaged()?;
                allowed = self.budget.pages_allowed(&self.connection, &self.files)?;
            }
            let transaction = self.begin(pages)?;
            let has_room = room::make(&transaction, (pages, class), allowed, &mut evicted)?;
            if has_room {
                let written = write(&transaction)?;
                transaction.commit()?;
                return Ok((evicted, written));
            }
            transaction.commit()?;
        }
    }

    /// Gives up a damaged predecessor: what it holds cannot be sent, what comes in can.
    fn remove_damaged(&mut self) -> Result<(), SpoolError> {
        tracing::warn!("the damaged spool that was set aside is deleted to make room");
        self.files.remove_damaged()?;
        self.budget = self.budget.without_damaged();
        room::set_pages_max(&self.connection, &self.budget)
    }

    /// `epochs.id` of an epoch, if it is one of this lane.
    fn epoch(&self, lane: Lane, epoch_id: [u8; 32]) -> Result<Option<i64>, SpoolError> {
        Ok(self
            .connection
            .query_row(
                "SELECT epochs.id FROM epochs JOIN lanes ON lanes.id = lane
                 WHERE epoch_id = ?1 AND service = ?2 AND class = ?3",
                params![epoch_id, lane.service, u8::from(lane.class)],
                |row| row.get(0),
            )
            .optional()?)
    }

    fn tell_changed(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
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
        let readings: u64 = batch.tallies.iter().map(|tally| tally.count).sum();
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

/// Forgets an epoch without batches, unless it is the newest of its lane.
pub(crate) fn forget_epoch_if_empty(
    transaction: &Transaction<'_>,
    epoch: i64,
) -> Result<(), SpoolError> {
    transaction.execute(
        "DELETE FROM epochs WHERE id = ?1
         AND id IS NOT (SELECT newest FROM lanes WHERE lanes.id = epochs.lane)
         AND NOT EXISTS (SELECT 1 FROM batches WHERE key >= ?1 * 65536 AND key < (?1 + 1) * 65536)",
        [epoch],
    )?;
    Ok(())
}

/// What was decoded from a row. If it cannot be decoded the file is damaged: we wrote it.
pub(crate) fn decoded<T, E: std::error::Error + Send + Sync + 'static>(
    result: Result<T, E>,
) -> rusqlite::Result<T> {
    result
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}

fn insert_epoch(transaction: &Transaction<'_>, epoch: &NewEpoch) -> Result<(), SpoolError> {
    let lane = lane_id(transaction, epoch.lane)?;
    let known: Option<(i64, u64)> = transaction
        .query_row(
            "SELECT lane, chain_index FROM epochs WHERE epoch_id = ?1",
            [epoch.epoch_id],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    if let Some(known) = known {
        // The epoch id is a hash of the header.
        return if known == (lane, epoch.index) {
            Ok(())
        } else {
            Err(SpoolError::Altered)
        };
    }
    let before: Option<(i64, u64)> = transaction
        .query_row(
            "SELECT epochs.id, chain_index FROM epochs JOIN lanes ON newest = epochs.id
             WHERE lanes.id = ?1",
            [lane],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    if before.is_some_and(|(_, index)| epoch.index <= index) {
        return Err(SpoolError::Passed);
    }
    transaction.execute(
        "INSERT INTO epochs (lane, epoch_id, chain_index, header) VALUES (?1, ?2, ?3, ?4)",
        params![lane, epoch.epoch_id, epoch.index, epoch.unsigned_header],
    )?;
    transaction.execute(
        "UPDATE lanes SET newest = ?2, count = 0, head = ?3, clean = 0 WHERE id = ?1",
        params![lane, transaction.last_insert_rowid(), epoch.epoch_id],
    )?;
    match before {
        Some((id, _)) => forget_epoch_if_empty(transaction, id),
        None => Ok(()),
    }
}

/// `lanes.id` of a lane, which is made if there is none.
///
/// The first lane of a service in a file that replaces a damaged one tells the service so.
fn lane_id(transaction: &Transaction<'_>, lane: Lane) -> Result<i64, SpoolError> {
    let known = transaction
        .query_row(
            "SELECT id FROM lanes WHERE service = ?1 AND class = ?2",
            params![lane.service, u8::from(lane.class)],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    let (lanes, of_service): (u64, u64) = transaction.query_row(
        "SELECT count(*), count(*) FILTER (WHERE service = ?1) FROM lanes",
        [lane.service],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if lanes >= LANES_MAX {
        return Err(SpoolError::TooMany { most: LANES_MAX });
    }
    transaction.execute(
        "INSERT INTO lanes (service, class) VALUES (?1, ?2)",
        params![lane.service, u8::from(lane.class)],
    )?;
    let id = transaction.last_insert_rowid();
    let damaged_ms: Option<i64> =
        transaction.query_row("SELECT damaged_ms FROM file", [], |row| row.get(0))?;
    if let Some(until_ms) = damaged_ms.filter(|_| of_service == 0) {
        let unknown = Found {
            lane: id,
            reason: LossReason::Damaged,
            tallies: Vec::new(),
            from_ms: 0,
            until_ms,
            batches: Vec::new(),
        };
        ledger::record(transaction, &unknown)?;
    }
    Ok(id)
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

fn newest(row: &Row<'_>) -> rusqlite::Result<Option<Newest>> {
    let Some(epoch_id) = row.get("epoch_id")? else {
        return Ok(None);
    };
    Ok(Some(Newest {
        epoch_id,
        index: row.get("chain_index")?,
        count: row.get("count")?,
        head: row.get("head")?,
        clean: row.get("clean")?,
    }))
}

fn stored_batch(row: &Row<'_>) -> rusqlite::Result<StoredBatch> {
    Ok(StoredBatch {
        epoch_id: row.get("epoch_id")?,
        number: row.get("number")?,
        chain: row.get("chain")?,
        bytes: row.get("bytes")?,
    })
}

fn lane_status(row: &Row<'_>) -> rusqlite::Result<LaneStatus> {
    Ok(LaneStatus {
        lane: Lane {
            service: row.get("service")?,
            class: decoded(Class::try_from(row.get::<_, u8>("class")?))?,
        },
        batches: row.get("batches")?,
        bytes: row.get("bytes")?,
        readings: row.get("readings")?,
        oldest_ms: row.get("oldest_ms")?,
        appended_readings: row.get("appended_readings")?,
        acked_readings: row.get("acked_readings")?,
        lost_readings: row.get("lost_readings")?,
    })
}

/// `batches.key`: see `schema.sql`.
fn key_of(epoch: i64, number: u32) -> i64 {
    epoch * i64::from(NUMBERS_MAX) + i64::from(number)
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), SpoolError> {
    if bytes_max < bytes {
        return Err(SpoolError::Oversized { bytes, bytes_max });
    }
    Ok(())
}

/// Refuses tallies that the ledger could not add up, before they are on the disk.
fn check_tallies(tallies: &[Tally]) -> Result<(), SpoolError> {
    let sound = tallies
        .iter()
        .all(|tally| tally.first <= tally.last && tally.last.max(tally.count) <= COUNT_MAX);
    if sound {
        Ok(())
    } else {
        Err(SpoolError::Tally)
    }
}

/// Numbers of an epoch (`docs/protocol.md` 3.2).
const NUMBERS_MAX: u32 = 65_536;

/// Most bytes of a batch with its tallies: 1.1 MiB, as of a message of the upload
/// (`docs/protocol.md` 4).
pub const BATCH_BYTES_MAX: usize = 1_153_433;

/// Most bytes of an epoch's header: 1120 of them are the key, 64 the signature, and the rest is
/// a few hundred (`docs/protocol.md` 3.1).
pub const HEADER_BYTES_MAX: usize = 4096;

/// Most bytes of a small value: a statement with all its keys has about 11,000.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

/// Most bytes of a small value's key.
pub const KEY_BYTES_MAX: usize = 96;

/// Most small values: one for each service that [`LANES_MAX`] allows, and as many others.
pub const KEYS_MAX: u64 = 512;

/// Most lanes that were ever used: 256 services. A lane is never forgotten, as its chain goes on.
pub const LANES_MAX: u64 = 768;

/// Most bytes of one recorded loss, with 64 for each range of batches.
const LOSS_BYTES_MAX: usize = 256 * 1024;

/// Headers returned at once: 256 KiB.
const HEADERS_AT_ONCE_MAX: u32 = 64;

/// Bytes returned at once: the largest window (`docs/protocol.md` 4).
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes that one transaction forgets, unless one batch has more.
const FORGOTTEN_BYTES_MAX: u64 = 1024 * 1024;

/// Largest count: with sums of a thousand of these SQLite's integers do not overflow.
const COUNT_MAX: u64 = (1 << 53) - 1;
