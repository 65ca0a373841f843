//! How the bounds on bytes are kept.
//!
//! Three things take space: the database, its write-ahead log, and a damaged predecessor. SQLite
//! is told to keep the database below `max_page_count`, so that the bound holds even if the
//! arithmetic here were wrong. The log has no such limit, but it only grows by the pages that a
//! transaction changes: so every transaction is small by construction, and the log is moved into
//! the database and truncated *before* a transaction that might take it beyond its share. While
//! it is moved, both are on the disk, which is why the shares are added up:
//!
//! ```text
//! max_bytes = database (max_page_count) + log (log_bytes_max) + damaged predecessor
//! ```
//!
//! Free pages inside the file are used first. `auto_vacuum = INCREMENTAL` gives them back to the
//! file system once they are most of the file, and when the operator lowers the limit. Plain
//! `VACUUM` would want the space of a second copy, and without either the file would stay as
//! large as the longest outage made it.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use wire::Class;
use wire::batch::{LossReason, LostBatches};

use crate::file::{Files, PAGE_BYTES, pragma};
use crate::ledger::{self, Found};
use crate::store::{BATCH_BYTES_MAX, decoded, forget_epoch_if_empty};
use crate::{Appended, Limits, SpoolError};

/// What may be used, as of one transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    limits: Limits,
    /// Of a predecessor that was set aside.
    damaged_bytes: u64,
}

impl Budget {
    /// The limits, and what a damaged predecessor takes of them.
    pub(crate) fn new(limits: Limits, damaged_bytes: u64) -> Self {
        Self {
            limits,
            damaged_bytes,
        }
    }

    /// The limit for all files together.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.limits.max_bytes
    }

    /// The same without a damaged predecessor.
    pub(crate) fn without_damaged(self) -> Self {
        Self::new(self.limits, 0)
    }

    /// Whether a damaged predecessor takes space.
    pub(crate) fn has_damaged(&self) -> bool {
        self.damaged_bytes > 0
    }

    /// The log's share: a quarter, at least what the largest transaction needs in the smallest
    /// spool, at most what the largest needs in any and 1 MiB, so that the log of small batches
    /// is moved seldom.
    fn log_bytes_max(&self) -> u64 {
        (self.limits.max_bytes / 4).clamp(7 * MIB / 4, 5 * MIB)
    }

    /// The database's share, in pages.
    pub(crate) fn pages_max(&self) -> u64 {
        self.limits
            .max_bytes
            .saturating_sub(self.log_bytes_max())
            .saturating_sub(self.damaged_bytes)
            / PAGE_BYTES
    }

    /// Most bytes that one transaction adds to the log, if it stores `pages`.
    ///
    /// It changes these pages; the pages of as many rows as it deletes; some of the trees above
    /// and of the ledger; and the maps that say what each page is used for (one for about 200
    /// pages), at worst another one for each page used or freed.
    fn log_growth_bytes(&self, pages: u64) -> u64 {
        let freed = pages.saturating_add(pages_for(BATCH_BYTES_MAX));
        let maps = (self.limits.max_bytes / PAGE_BYTES / PAGES_PER_MAP).min(pages + freed) + 1;
        (pages + u64::from(DELETED_ROWS_MAX) + RESERVE_PAGES + maps) * FRAME_BYTES
    }

    /// Moves the log into the database if the next transaction, which stores `pages`, might take
    /// it beyond its share.
    pub(crate) fn keep_log(
        &self,
        connection: &Connection,
        files: &Files,
        pages: u64,
    ) -> Result<(), SpoolError> {
        let log_bytes = files.log_bytes()?;
        if log_bytes > 0 && log_bytes + self.log_growth_bytes(pages) > self.log_bytes_max() {
            pragma(connection, "PRAGMA wal_checkpoint(TRUNCATE)")?;
        }
        Ok(())
    }

    /// How many pages the database may have now: never more than its share, and not more than it
    /// has when others need the rest of the file system.
    pub(crate) fn pages_allowed(
        &self,
        connection: &Connection,
        files: &Files,
    ) -> Result<Allowed, SpoolError> {
        let pages = Pages::of(connection)?;
        let free_bytes = files.free_bytes()?;
        let min_free_bytes = self.limits.min_free_bytes;
        // The database's file follows its page count when the log is moved.
        let promised = (pages.all * PAGE_BYTES)
            .saturating_sub(files.database_bytes()?)
            .saturating_add(self.log_bytes_max().saturating_sub(files.log_bytes()?));
        let growth = free_bytes
            .saturating_sub(min_free_bytes)
            .saturating_sub(promised)
            / PAGE_BYTES;
        let max = self.pages_max();
        let pages = pages.all.saturating_add(growth).min(max);
        Ok(Allowed {
            pages,
            refusal: if pages < max {
                Refusal::Reserved {
                    free_bytes,
                    min_free_bytes,
                }
            } else {
                Refusal::Full
            },
        })
    }

    /// Gives free pages back to the file system, once they are most of the file.
    ///
    /// Only then, because the pages behind the free ones have to be moved: as these are at most a
    /// quarter of the file, each page is moved a third of a time on average, however long an
    /// outage was. A little is kept, so that the backlog of a short one does not move the end to
    /// and fro.
    pub(crate) fn give_back(
        &self,
        connection: &Connection,
        files: &Files,
    ) -> Result<(), SpoolError> {
        if !Pages::of(connection)?.are_mostly_free() {
            return Ok(());
        }
        self.keep_log(connection, files, 0)?;
        move_end(connection, MOVED_PAGES_MAX)?;
        if !Pages::of(connection)?.are_mostly_free() {
            // The file gets shorter when the log is moved.
            pragma(connection, "PRAGMA wal_checkpoint(TRUNCATE)")?;
        }
        Ok(())
    }
}

/// What [`Budget::pages_allowed`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pages: u64,
    refusal: Refusal,
}

#[derive(Clone, Copy, Debug)]
enum Refusal {
    Full,
    Reserved {
        free_bytes: u64,
        min_free_bytes: u64,
    },
}

impl From<Refusal> for SpoolError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Full,
            Refusal::Reserved {
                free_bytes,
                min_free_bytes,
            } => Self::Reserved {
                free_bytes,
                min_free_bytes,
            },
        }
    }
}

/// The database's pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    all: u64,
    free: u64,
}

impl Pages {
    /// Counts them: SQLite keeps both numbers in the header.
    pub(crate) fn of(connection: &Connection) -> Result<Self, SpoolError> {
        Ok(Self {
            all: pragma(connection, "PRAGMA page_count")?,
            free: pragma(connection, "PRAGMA freelist_count")?,
        })
    }

    /// Bytes of the pages that hold something.
    pub(crate) fn used_bytes(self) -> u64 {
        self.used() * PAGE_BYTES
    }

    /// Whether `pages` more fit, with the reserve.
    pub(crate) fn fit(self, pages: u64, allowed: Allowed) -> bool {
        self.used() + pages + RESERVE_PAGES <= allowed.pages
    }

    fn are_mostly_free(self) -> bool {
        self.free > KEPT_PAGES && self.free * 4 >= self.all * 3
    }

    fn used(self) -> u64 {
        self.all.saturating_sub(self.free)
    }
}

/// Tells SQLite the database's share.
pub(crate) fn set_pages_max(connection: &Connection, budget: &Budget) -> Result<(), SpoolError> {
    let sql = format!("PRAGMA max_page_count = {}", budget.pages_max());
    pragma(connection, &sql).map(drop)
}

/// Pages that a row of so many bytes takes: four bytes of each page link to the next, and a few
/// pages of the tree above may split.
pub(crate) fn pages_for(bytes: usize) -> u64 {
    const SPLIT_PAGES: u64 = 8;
    u64::try_from(bytes).unwrap_or(u64::MAX) / (PAGE_BYTES - 4) + SPLIT_PAGES
}

/// Takes one step towards room for `pages`, and returns whether there is room now.
///
/// Evicts the oldest batches of the lowest class, but none more urgent than `class`, and shrinks
/// a file that is beyond its share. If it returns `false` the caller commits, and calls again in
/// the next transaction.
pub(crate) fn make(
    transaction: &Transaction<'_>,
    (pages, class): (u64, Class),
    allowed: Allowed,
    evicted: &mut Appended,
) -> Result<bool, SpoolError> {
    let evictable_pages: u64 = transaction.query_row(
        "SELECT coalesce(sum(bytes / ?1 + 2 * batches), 0) FROM lanes WHERE class >= ?2",
        params![PAGE_BYTES - 4, u8::from(class)],
        |row| row.get(0),
    )?;
    // What cannot succeed shall cost nobody a batch.
    let now = Pages::of(transaction)?;
    if now.used() + pages + RESERVE_PAGES > allowed.pages.saturating_add(evictable_pages) {
        return Err(allowed.refusal.into());
    }
    for _ in 0..DELETED_ROWS_MAX {
        let now = Pages::of(transaction)?;
        if now.fit(pages, allowed) {
            return shrink(transaction, now, allowed);
        }
        let Some(readings) = evict_oldest(transaction, class)? else {
            return Err(allowed.refusal.into());
        };
        evicted.evicted_batches += 1;
        evicted.evicted_readings += readings;
    }
    Ok(false)
}

/// Shrinks a file that is beyond its share by one step; returns whether it is within it.
fn shrink(connection: &Connection, now: Pages, allowed: Allowed) -> Result<bool, SpoolError> {
    let excess = now.all.saturating_sub(allowed.pages);
    if excess == 0 {
        return Ok(true);
    }
    move_end(connection, excess.min(MOVED_PAGES_MAX))?;
    let after = Pages::of(connection)?.all;
    // Without progress there would be none the next time either.
    Ok(after <= allowed.pages || after == now.all)
}

/// Moves the last pages of the file to free ones, and cuts the file by so many.
fn move_end(connection: &Connection, pages: u64) -> Result<(), SpoolError> {
    pragma(connection, &format!("PRAGMA incremental_vacuum({pages})")).map(drop)
}

/// Moves the oldest batch of the lowest class from its lane to the ledger; returns its readings.
///
/// Among lanes of one class it is the batch that was appended first. `None` if there is no batch
/// but more urgent ones.
fn evict_oldest(transaction: &Transaction<'_>, class: Class) -> Result<Option<u64>, SpoolError> {
    let found = transaction
        .query_row(OLDEST_OF_LOWEST_CLASS, [u8::from(class)], |row| {
            let tallies: Vec<u8> = row.get("tallies")?;
            let number: u32 = row.get("number")?;
            let batch = Found {
                lane: row.get("lane")?,
                reason: LossReason::Full,
                tallies: decoded(wire::batch::decode_tallies(&tallies))?,
                from_ms: row.get("from_ms")?,
                until_ms: row.get("until_ms")?,
                batches: vec![LostBatches {
                    epoch_id: row.get("epoch_id")?,
                    first: number,
                    last: number,
                }],
            };
            Ok((
                row.get::<_, i64>("key")?,
                row.get::<_, i64>("epoch")?,
                row.get::<_, u64>("bytes")?,
                row.get::<_, u64>("readings")?,
                batch,
            ))
        })
        .optional()?;
    let Some((key, epoch, bytes, readings, batch)) = found else {
        return Ok(None);
    };
    transaction.execute("DELETE FROM batches WHERE key = ?1", [key])?;
    transaction.execute(
        "UPDATE lanes SET batches = batches - 1, bytes = bytes - ?2, readings = readings - ?3
         WHERE id = ?1",
        params![batch.lane, bytes, readings],
    )?;
    ledger::thaw(transaction, key)?;
    ledger::record(transaction, &batch)?;
    forget_epoch_if_empty(transaction, epoch)?;
    Ok(Some(readings))
}

/// A lane's oldest epoch has its oldest batch, since only the newest epoch may be empty.
const OLDEST_OF_LOWEST_CLASS: &str = "
    SELECT lanes.id AS lane, epochs.id AS epoch, epochs.epoch_id, key, key % 65536 AS number,
        batches.readings, from_ms, until_ms, tallies,
        length(batches.bytes) + length(tallies) AS bytes
    FROM lanes
    JOIN epochs ON epochs.id = (SELECT min(id) FROM epochs WHERE epochs.lane = lanes.id)
    JOIN batches ON key = (SELECT min(key) FROM batches WHERE key >= epochs.id * 65536)
    WHERE lanes.batches > 0 AND class >= ?1
    ORDER BY class DESC, arrival
    LIMIT 1";

const MIB: u64 = 1024 * 1024;

/// A page in the log has a header of 24 bytes (SQLite file format, 4.1).
const FRAME_BYTES: u64 = PAGE_BYTES + 24;

/// A map of pages has five bytes for each (SQLite file format, 1.8).
const PAGES_PER_MAP: u64 = PAGE_BYTES / 5;

/// Rows that one transaction deletes at most, as each may change a page.
pub(crate) const DELETED_ROWS_MAX: u32 = 128;

/// Pages kept for what an eviction writes to the ledger, and for small changes.
///
/// An eviction adds a few hundred bytes; transactions that touch more of the ledger touch pages
/// that are there.
const RESERVE_PAGES: u64 = 256;

/// Free pages that are not given back: 1 MiB.
const KEPT_PAGES: u64 = 1024;

/// Pages moved in one transaction; each may change its parent's page and two maps as well.
const MOVED_PAGES_MAX: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_BYTES_MIN;

    #[test]
    fn the_shares_are_within_the_limit_and_the_largest_transaction_within_its_share() {
        for max_bytes in (0..=18).map(|doubled| MAX_BYTES_MIN << doubled) {
            for damaged_bytes in [0, max_bytes / 2] {
                let limits = Limits {
                    max_bytes,
                    min_free_bytes: 0,
                };
                let budget = Budget::new(limits, damaged_bytes);
                let database_bytes = budget.pages_max() * PAGE_BYTES;
                assert!(database_bytes + budget.log_bytes_max() + damaged_bytes <= max_bytes);
                let growth = budget.log_growth_bytes(pages_for(BATCH_BYTES_MAX));
                assert!(
                    growth <= budget.log_bytes_max(),
                    "{growth} of {max_bytes} bytes"
                );
            }
        }
    }

    #[test]
    fn the_largest_batch_fits_the_smallest_spool() {
        let limits = Limits {
            max_bytes: MAX_BYTES_MIN,
            min_free_bytes: 0,
        };
        let pages = pages_for(BATCH_BYTES_MAX) + RESERVE_PAGES;
        assert!(pages < Budget::new(limits, 0).pages_max());
    }
}
