//! What the spool does on request, on the thread that owns the connection.

mod batches;
mod lanes;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use tokio::sync::watch;
use wire::Class;
use wire::batch::{LedgerEntry, Tally, encode_tallies};

use crate::file::{self, Files};
use crate::ledger::{self, Found};
use crate::room::{self, Budget, Pages};
use crate::{
    Appended, Lane, LaneStatus, Limits, Loss, MAX_BYTES_MIN, SpoolError, SpoolState, Status,
};

pub use batches::BATCH_BYTES_MAX;
pub use lanes::{HEADER_BYTES_MAX, LANES_MAX};

pub(crate) use lanes::forget_epoch_if_empty;

/// The open file, and what is known about it in memory.
///
/// Its requests are those of [`Spool`](crate::Spool), where they are described.
pub(crate) struct Store {
    connection: Connection,
    files: Files,
    budget: Budget,
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

    pub(crate) fn ledger_open(
        &mut self,
        service: [u8; 32],
    ) -> Result<Vec<LedgerEntry>, SpoolError> {
        let transaction = self.begin(0)?;
        let entries = ledger::hand_out(&transaction, &service)?;
        transaction.commit()?;
        Ok(entries)
    }

    pub(crate) fn record_loss(&mut self, loss: &Loss) -> Result<(), SpoolError> {
        check_tallies(&loss.tallies)?;
        let bytes = encode_tallies(&loss.tallies).len() + loss.batches.len() * 64;
        check_size(bytes, LOSS_BYTES_MAX)?;
        self.write(room::pages_for(bytes), Class::Critical, |transaction| {
            let found = Found {
                lane: lanes::id_of(transaction, loss.lane)?,
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
        let sum = |of: fn(&LaneStatus) -> u64| lanes.iter().map(of).fold(0, u64::saturating_add);
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

    fn tell_changed(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// What was decoded from a row. If it cannot be decoded the file is damaged: we wrote it.
pub(crate) fn decoded<T, E: std::error::Error + Send + Sync + 'static>(
    result: Result<T, E>,
) -> rusqlite::Result<T> {
    result
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
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

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), SpoolError> {
    if bytes_max < bytes {
        return Err(SpoolError::Oversized { bytes, bytes_max });
    }
    Ok(())
}

/// Readings that these tallies count.
pub(crate) fn readings_in(tallies: &[Tally]) -> u64 {
    let counts = tallies.iter().map(|tally| tally.count);
    counts.fold(0, u64::saturating_add)
}

/// Refuses tallies that the ledger could not add up, before they are on the disk.
fn check_tallies(tallies: &[Tally]) -> Result<(), SpoolError> {
    let sound = tallies
        .iter()
        .all(|tally| tally.first <= tally.last && tally.last <= COUNT_MAX);
    if sound && readings_in(tallies) <= COUNT_MAX {
        Ok(())
    } else {
        Err(SpoolError::Tally)
    }
}

/// Most bytes of a small value: a statement with all its keys has about 11,000.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

/// Most bytes of a small value's key.
pub const KEY_BYTES_MAX: usize = 96;

/// Most small values: one for each service that [`LANES_MAX`] allows, and as many others.
pub const KEYS_MAX: u64 = 512;

/// Most bytes of one recorded loss, with 64 for each range of batches.
const LOSS_BYTES_MAX: usize = 256 * 1024;

/// Largest sequence number, and largest count of a batch or loss: what JSON readers keep exact. A
/// thousand of these may be added up before SQLite's integers overflow.
const COUNT_MAX: u64 = (1 << 53) - 1;
