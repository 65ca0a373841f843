//! Readings into a SQLite file.

mod content;
mod gaps;
mod quarantine;

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{
    Connection, Error, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use wire::{Class, upload::LaneKnown};

use super::{Alarm, EpochRecord, OpenedBatch, Stored};

pub(crate) use gaps::count;
pub use gaps::{Fork, Gap};
pub use quarantine::{Reason, Suspect};

/// The file.
///
/// Calls block for as long as the disk needs; call them where that is allowed. Every call that
/// changes something is one transaction, on the medium when it returns.
pub struct SqliteSink {
    connection: Mutex<Connection>,
}

/// Why the file did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// SQLite or the disk refused. Nothing of the call was stored; try again.
    #[error("the database refused")]
    Database(#[source] Error),
    /// A number is above 2^63, which no column holds. Nothing was stored, and never will be.
    #[error("a number is too large for the database")]
    TooLarge,
    /// The file was made by a newer version, or is somebody else's.
    #[error("the file has schema {found}, this version knows {SCHEMA_VERSION}")]
    Version {
        /// What the file says.
        found: i64,
    },
    /// A batch of an epoch whose header is not stored.
    #[error("the epoch is unknown")]
    UnknownEpoch,
}

impl From<Error> for SinkError {
    fn from(error: Error) -> Self {
        if matches!(error, Error::ToSqlConversionFailure(_)) {
            Self::TooLarge
        } else {
            Self::Database(error)
        }
    }
}

impl SqliteSink {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    ///
    /// [`SinkError::Version`] for a file that is not ours.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIME_MAX)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        migrate(&connection)?;
        Ok(Self {
            connection: Mutex::new(connection),
        })
    }

    /// The newest epoch known of a lane, with the number from which it is open.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn lane(
        &self,
        gateway: &[u8; 32],
        class: Class,
        chain_id: &[u8; 16],
    ) -> Result<Option<LaneKnown>, SinkError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT idx, epoch_id, next FROM epoch
             WHERE gateway = ?1 AND chain_id = ?2 AND class = ?3 ORDER BY idx DESC, id DESC LIMIT 1",
        )?;
        let newest = statement.query_row(params![gateway, chain_id, u8::from(class)], |row| {
            Ok(LaneKnown {
                class,
                chain_id: *chain_id,
                index: row.get(0)?,
                epoch_id: row.get(1)?,
                next: row.get(2)?,
            })
        });
        Ok(newest.optional()?)
    }

    /// Stores a verified header, and checks what it says of the epoch before. The same header
    /// again changes nothing.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`], [`SinkError::TooLarge`].
    pub fn store_epoch(&self, epoch: &EpochRecord) -> Result<Vec<Alarm>, SinkError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut alarms = Vec::new();
        if epoch_row(&transaction, &epoch.epoch_id)?.is_none() {
            let rivals: i64 = transaction
                .prepare_cached(
                    "SELECT count(*) FROM epoch
                     WHERE gateway = ?1 AND chain_id = ?2 AND class = ?3 AND idx = ?4",
                )?
                .query_row(
                    params![
                        epoch.gateway,
                        epoch.chain_id,
                        u8::from(epoch.class),
                        epoch.index
                    ],
                    |row| row.get(0),
                )?;
            if 0 < rivals {
                alarms.push(Alarm::Fork);
            }
            transaction
                .prepare_cached(
                    "INSERT INTO epoch (gateway, epoch_id, class, chain_id, idx, run_id, header, adopted,
                        before_id, before_count, before_head)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                )?
                .execute(params![
                    epoch.gateway,
                    epoch.epoch_id,
                    u8::from(epoch.class),
                    epoch.chain_id,
                    epoch.index,
                    epoch.run_id,
                    epoch.header,
                    epoch.adopted,
                    epoch.previous.map(|(id, ..)| id),
                    epoch.previous.map(|(_, count, _)| count),
                    epoch.previous.map(|(.., head)| head),
                ])?;
            close_late(&transaction, epoch)?;
            quarantine::release(&transaction, &epoch.epoch_id, None)?;
            if let Some(previous) = epoch.previous {
                alarms.extend(close_previous(&transaction, epoch, previous)?);
            }
        }
        transaction.commit()?;
        Ok(alarms)
    }

    /// Stores a batch: rows, ledger, run events and watermark in one transaction. Returns what
    /// became of it, the watermark, and whether the chain is broken here.
    ///
    /// # Errors
    ///
    /// [`SinkError::UnknownEpoch`] if its header was not stored before; [`SinkError::Database`],
    /// [`SinkError::TooLarge`].
    pub fn store_batch(
        &self,
        batch: &OpenedBatch<'_>,
    ) -> Result<(Stored, u32, Option<Alarm>), SinkError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let epoch = epoch_row(&transaction, &batch.epoch_id)?.ok_or(SinkError::UnknownEpoch)?;
        let there: Option<[u8; 32]> = transaction
            .prepare_cached("SELECT ciphertext FROM batch WHERE epoch = ?1 AND number = ?2")?
            .query_row(params![epoch.id, batch.number], |row| row.get(0))
            .optional()?;
        let mut alarm = None;
        let stored = match there {
            Some(hash) if hash == batch.ciphertext => Stored::Duplicate,
            Some(_) => {
                let suspect = Suspect {
                    gateway: epoch.gateway,
                    epoch_id: batch.epoch_id,
                    number: Some(batch.number),
                    hash: batch.ciphertext,
                    reason: Reason::Conflict,
                    sealed: batch.sealed,
                };
                quarantine::insert(&transaction, &suspect)?;
                Stored::Conflict
            }
            None => {
                alarm = misfit(&transaction, &epoch, batch)?;
                content::insert(&transaction, &epoch, batch)?;
                quarantine::release(&transaction, &batch.epoch_id, Some(batch.number))?;
                Stored::New
            }
        };
        let next = advance(&transaction, &epoch)?;
        transaction.commit()?;
        Ok((stored, next, alarm))
    }

    /// The gateway of an epoch and its header as signed, if it is stored.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn header(&self, epoch_id: &[u8; 32]) -> Result<Option<Vec<u8>>, SinkError> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached("SELECT header FROM epoch WHERE epoch_id = ?1")?;
        Ok(statement
            .query_row([epoch_id], |row| row.get(0))
            .optional()?)
    }

    /// Writes down that a gateway holds nothing of an epoch below `from`; returns the watermark.
    ///
    /// # Errors
    ///
    /// [`SinkError::UnknownEpoch`], [`SinkError::Database`].
    pub fn declare_gone(&self, epoch_id: &[u8; 32], from: u32) -> Result<u32, SinkError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let epoch = epoch_row(&transaction, epoch_id)?.ok_or(SinkError::UnknownEpoch)?;
        if epoch.next < from {
            transaction
                .prepare_cached(
                    "INSERT INTO gone (epoch, first, last) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET last = max(last, excluded.last)",
                )?
                .execute(params![epoch.id, epoch.next, from - 1])?;
            transaction
                .prepare_cached("UPDATE epoch SET next = ?2 WHERE id = ?1")?
                .execute(params![epoch.id, from])?;
        }
        let next = advance(&transaction, &epoch)?;
        transaction.commit()?;
        Ok(next)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic interrupted was rolled back when it was dropped.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the tables, or adds what an earlier version lacked.
fn migrate(connection: &Connection) -> Result<(), SinkError> {
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let steps: &[&str] = match found {
        0 => &[include_str!("schema.sql"), include_str!("schema-2.sql")],
        1 => &[include_str!("schema-2.sql")],
        SCHEMA_VERSION => return Ok(()),
        _ => return Err(SinkError::Version { found }),
    };
    let steps = steps.concat();
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    ))?;
    Ok(())
}

struct EpochRow {
    id: i64,
    gateway: [u8; 32],
    run_id: [u8; 16],
    next: u32,
    /// How many batches it has and the chain hash of the last, once the next header has said it.
    end: Option<(u32, [u8; 32])>,
}

fn epoch_row(
    transaction: &Transaction<'_>,
    epoch_id: &[u8; 32],
) -> rusqlite::Result<Option<EpochRow>> {
    transaction
        .prepare_cached("SELECT * FROM epoch WHERE epoch_id = ?1")?
        .query_row([epoch_id], |row| {
            Ok(EpochRow {
                id: row.get("id")?,
                gateway: row.get("gateway")?,
                run_id: row.get("run_id")?,
                next: row.get("next")?,
                end: row.get::<_, Option<_>>("last")?.zip(row.get("head")?),
            })
        })
        .optional()
}

/// Fixes the end of the epoch before, as the next one's signed header names it. The first word
/// stays: a second one can only come from a fork.
fn close_previous(
    transaction: &Transaction<'_>,
    epoch: &EpochRecord,
    (previous_id, count, head): ([u8; 32], u32, [u8; 32]),
) -> rusqlite::Result<Vec<Alarm>> {
    let closed = transaction
        .prepare_cached(
            "UPDATE epoch SET last = coalesce(last, ?1), head = coalesce(head, ?2)
             WHERE epoch_id = ?3 AND gateway = ?4 AND chain_id = ?5 AND class = ?6 AND idx + 1 = ?7",
        )?
        .execute(params![
            count,
            head,
            previous_id,
            epoch.gateway,
            epoch.chain_id,
            u8::from(epoch.class),
            epoch.index,
        ])?;
    // An epoch without batches need not have been announced.
    if closed == 0 && count == 0 {
        return Ok(Vec::new());
    }
    if closed == 0 {
        return Ok(vec![Alarm::Jump]);
    }
    let Some(previous) = epoch_row(transaction, &previous_id)? else {
        return Ok(Vec::new());
    };
    let mut alarms = Vec::new();
    let newest: Option<(u32, [u8; 32])> = transaction
        .prepare_cached(
            "SELECT number, chain FROM batch WHERE epoch = ?1 ORDER BY number DESC LIMIT 1",
        )?
        .query_row([previous.id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if newest.is_some_and(|(number, chain)| misses_end((number, chain), (count, head))) {
        alarms.push(Alarm::WrongHead);
    }
    let missing = gaps::missing(transaction, &previous.gateway, &previous_id, count)?;
    if !missing.is_empty() {
        alarms.push(Alarm::Gap { missing });
    }
    Ok(alarms)
}

/// Fixes the end of an epoch that comes after the next one, as that said it.
fn close_late(transaction: &Transaction<'_>, epoch: &EpochRecord) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE epoch SET (last, head) = (
                SELECT before_count, before_head FROM epoch AS after WHERE before_id = ?1
                AND gateway = ?2 AND chain_id = ?3 AND class = ?4 AND idx = ?5 ORDER BY id LIMIT 1)
             WHERE epoch_id = ?1",
        )?
        .execute(params![
            epoch.epoch_id,
            epoch.gateway,
            epoch.chain_id,
            u8::from(epoch.class),
            epoch.index.saturating_add(1),
        ])?;
    Ok(())
}

/// Whether a new batch contradicts its neighbours, or the end of its epoch as far as that is known.
fn misfit(
    transaction: &Transaction<'_>,
    epoch: &EpochRow,
    batch: &OpenedBatch<'_>,
) -> rusqlite::Result<Option<Alarm>> {
    let mut neighbour = transaction
        .prepare_cached("SELECT prev, chain FROM batch WHERE epoch = ?1 AND number = ?2")?;
    let mut link = |number: u32, which: fn(&Row<'_>) -> rusqlite::Result<[u8; 32]>| {
        let found = neighbour.query_row(params![epoch.id, number], which);
        found.optional()
    };
    let before = match batch.number.checked_sub(1) {
        None => Some(batch.epoch_id),
        Some(before) => link(before, |row| row.get("chain"))?,
    };
    let after = link(batch.number.saturating_add(1), |row| row.get("prev"))?;
    let broken = before.is_some_and(|chain| chain != batch.prev)
        || after.is_some_and(|prev| prev != batch.chain);
    if broken {
        return Ok(Some(Alarm::BrokenChain));
    }
    let wrong = epoch
        .end
        .is_some_and(|end| misses_end((batch.number, batch.chain), end));
    Ok(wrong.then_some(Alarm::WrongHead))
}

/// Whether a batch lies beyond the end of its epoch, or is its last one and another than it should.
fn misses_end((number, chain): (u32, [u8; 32]), (count, head): (u32, [u8; 32])) -> bool {
    count <= number || (number + 1 == count && chain != head)
}

/// Moves the watermark over what is committed, and returns it.
fn advance(transaction: &Transaction<'_>, epoch: &EpochRow) -> rusqlite::Result<u32> {
    let mut next: u32 = transaction
        .prepare_cached("SELECT next FROM epoch WHERE id = ?1")?
        .query_row([epoch.id], |row| row.get(0))?;
    let before = next;
    {
        let mut there =
            transaction.prepare_cached("SELECT 1 FROM batch WHERE epoch = ?1 AND number = ?2")?;
        while there.exists(params![epoch.id, next])? {
            next += 1;
        }
    }
    if next != before {
        transaction
            .prepare_cached("UPDATE epoch SET next = ?2 WHERE id = ?1")?
            .execute(params![epoch.id, next])?;
    }
    Ok(next)
}

const SCHEMA_VERSION: i64 = 2;

/// Another process of ours reads at most; a writer would be `gateway-cloud open` by hand.
const BUSY_TIME_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use wire::{
        Measurement, Quality, Reading, Time, Value,
        batch::{Batch, LedgerEntry, LossReason, LostBatches},
    };

    use super::*;

    #[test]
    fn a_chain_without_holes_raises_no_alarm() {
        let (sink, _folder) = sink();
        let epoch = epoch(1, 0);
        assert_eq!(sink.store_epoch(&epoch).unwrap(), []);
        assert_eq!(sink.store_epoch(&epoch).unwrap(), []);
        for number in 0..3 {
            let stored = store(&sink, &batch(1, number)).unwrap();
            assert_eq!(stored, (Stored::New, number + 1, None));
            let again = store(&sink, &batch(1, number)).unwrap();
            assert_eq!(again, (Stored::Duplicate, number + 1, None));
        }
        assert_eq!(sink.store_epoch(&after(&epoch, 3, 2)).unwrap(), []);
    }

    #[test]
    fn another_epoch_at_the_same_place_is_a_fork_and_both_are_kept() {
        let (sink, _folder) = sink();
        sink.store_epoch(&epoch(1, 0)).unwrap();
        assert_eq!(sink.store_epoch(&epoch(2, 0)).unwrap(), [Alarm::Fork]);
        for epoch in [1, 2] {
            let (stored, ..) = store(&sink, &batch(epoch, 0)).unwrap();
            assert_eq!(stored, Stored::New);
        }
        // Another lane, chain or gateway is another place.
        let mut elsewhere = [epoch(3, 0), epoch(4, 0), epoch(5, 0)];
        elsewhere[0].class = Class::Bulk;
        elsewhere[1].chain_id = [9; 16];
        elsewhere[2].gateway = [9; 32];
        for epoch in elsewhere {
            assert_eq!(sink.store_epoch(&epoch).unwrap(), []);
        }
    }

    #[test]
    fn missing_batches_are_a_gap_unless_the_ledger_explains_them() {
        let (sink, _folder) = sink();
        let first = epoch(1, 0);
        sink.store_epoch(&first).unwrap();
        store(&sink, &batch(1, 0)).unwrap();
        store(&sink, &batch(1, 4)).unwrap();
        // 1, 2, 3 and 5 are missing.
        let gap = [Alarm::Gap {
            missing: vec![(1, 3), (5, 5)],
        }];
        assert_eq!(sink.store_epoch(&after(&first, 6, 5)).unwrap(), gap);

        let (sink, _folder) = self::sink();
        sink.store_epoch(&first).unwrap();
        let mut explains = batch(1, 0);
        explains.content.ledger = vec![entry((1, 3)), entry_of(2, (5, 5))];
        store(&sink, &explains).unwrap();
        store(&sink, &batch(1, 4)).unwrap();
        assert_eq!(sink.store_epoch(&after(&first, 6, 5)).unwrap(), []);
    }

    #[test]
    fn an_epoch_that_ends_otherwise_than_the_next_header_says_is_an_alarm() {
        let wrong_head = Some(Alarm::WrongHead);
        for (count, head) in [(2, 9), (1, 0), (0, 0)] {
            let (sink, _folder) = sink();
            let first = epoch(1, 0);
            sink.store_epoch(&first).unwrap();
            store(&sink, &batch(1, 0)).unwrap();
            store(&sink, &batch(1, 1)).unwrap();
            let alarms = sink.store_epoch(&after(&first, count, head)).unwrap();
            assert_eq!(alarms, [Alarm::WrongHead], "{count} {head}");
        }

        // The same if the end, or what is beyond it, comes late.
        let (sink, _folder) = sink();
        let first = epoch(1, 0);
        sink.store_epoch(&first).unwrap();
        store(&sink, &batch(1, 0)).unwrap();
        sink.store_epoch(&after(&first, 2, 9)).unwrap();
        let (_, _, alarm) = store(&sink, &batch(1, 1)).unwrap();
        assert_eq!(alarm, wrong_head);
        let (_, _, alarm) = store(&sink, &batch(1, 2)).unwrap();
        assert_eq!(alarm, wrong_head);
    }

    #[test]
    fn an_epoch_after_one_that_never_came_is_an_alarm() {
        let (sink, _folder) = sink();
        let never = epoch(1, 0);
        assert_eq!(
            sink.store_epoch(&after(&never, 3, 2)).unwrap(),
            [Alarm::Jump]
        );
        // One without batches need not come.
        assert_eq!(sink.store_epoch(&after(&epoch(7, 3), 0, 0)).unwrap(), []);
    }

    #[test]
    fn a_gateway_says_nothing_of_the_epochs_of_another() {
        let (sink, _folder) = sink();
        let ours = epoch(1, 0);
        sink.store_epoch(&ours).unwrap();
        let mut theirs = after(&ours, 1, 9);
        theirs.gateway = [9; 32];
        assert_eq!(sink.store_epoch(&theirs).unwrap(), [Alarm::Jump]);
        let (_, _, alarm) = store(&sink, &batch(1, 0)).unwrap();
        assert_eq!(alarm, None);
    }

    #[test]
    fn a_batch_that_does_not_fit_its_neighbours_is_an_alarm() {
        let broken = Some(Alarm::BrokenChain);
        let (sink, _folder) = sink();
        sink.store_epoch(&epoch(1, 0)).unwrap();
        let mut first = batch(1, 0);
        first.prev = [9; 32];
        assert_eq!(
            store(&sink, &first).unwrap(),
            (Stored::New, 1, broken.clone())
        );
        let mut second = batch(1, 1);
        second.prev = [9; 32];
        assert_eq!(
            store(&sink, &second).unwrap(),
            (Stored::New, 2, broken.clone())
        );
        // Number 3 comes before number 2, and does not follow it.
        let mut fourth = batch(1, 3);
        fourth.prev = [9; 32];
        assert_eq!(store(&sink, &fourth).unwrap(), (Stored::New, 2, None));
        assert_eq!(
            store(&sink, &batch(1, 2)).unwrap(),
            (Stored::New, 4, broken)
        );
    }

    #[test]
    fn of_two_batches_under_one_number_the_first_stays() {
        let (sink, _folder) = sink();
        sink.store_epoch(&epoch(1, 0)).unwrap();
        store(&sink, &batch(1, 0)).unwrap();
        let mut other = batch(1, 0);
        other.ciphertext = [9; 32];
        other.content.readings[0].sequence = 99;
        assert_eq!(store(&sink, &other).unwrap(), (Stored::Conflict, 1, None));
        let sequence: u64 = sink
            .lock()
            .query_row("SELECT sequence FROM readings", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sequence, 0);
    }

    #[test]
    fn a_batch_of_an_epoch_without_header_is_refused() {
        let (sink, _folder) = sink();
        let refused = store(&sink, &batch(1, 0));
        assert!(matches!(refused, Err(SinkError::UnknownEpoch)));
        assert!(matches!(
            sink.declare_gone(&[1; 32], 1),
            Err(SinkError::UnknownEpoch)
        ));
    }

    #[test]
    fn a_lane_is_known_by_its_newest_epoch() {
        let (sink, _folder) = sink();
        let first = epoch(1, 0);
        let lane = || sink.lane(&[3; 32], Class::Normal, &[4; 16]).unwrap();
        assert_eq!(lane(), None);
        sink.store_epoch(&first).unwrap();
        sink.store_epoch(&after(&first, 0, 0)).unwrap();
        store(&sink, &batch(1, 0)).unwrap();
        let known = lane().unwrap();
        assert_eq!((known.index, known.epoch_id, known.next), (1, [2; 32], 0));
    }

    #[test]
    fn a_file_of_the_version_before_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("readings.db");
        let file = Connection::open(&path).unwrap();
        file.execute_batch(&format!(
            "{} PRAGMA user_version = 1;
             INSERT INTO epoch (gateway, epoch_id, class, chain_id, idx, run_id, header, adopted)
             VALUES (x'{}', x'{}', 1, x'{}', 0, x'{}', x'00', 0);",
            include_str!("schema.sql"),
            "03".repeat(32),
            "01".repeat(32),
            "04".repeat(16),
            "05".repeat(16),
        ))
        .unwrap();
        drop(file);

        let sink = SqliteSink::open(&path).unwrap();
        // What came before over a session counts as announced.
        assert!(sink.is_announced(&[3; 32], &[4; 16]).unwrap());
        assert!(!sink.is_announced(&[3; 32], &[5; 16]).unwrap());
        let (stored, next, _) = store(&sink, &batch(1, 0)).unwrap();
        assert_eq!((stored, next), (Stored::New, 1));
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("readings.db");
        drop(SqliteSink::open(&path).unwrap());
        drop(SqliteSink::open(&path).unwrap());
        let file = Connection::open(&path).unwrap();
        file.pragma_update(None, "user_version", SCHEMA_VERSION + 1)
            .unwrap();
        let refused = SqliteSink::open(&path);
        assert!(matches!(refused, Err(SinkError::Version { found: 3 })));
    }

    fn sink() -> (SqliteSink, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let sink = SqliteSink::open(&folder.path().join("readings.db")).unwrap();
        (sink, folder)
    }

    /// The epoch whose id is `id` over and over.
    fn epoch(id: u8, index: u64) -> EpochRecord {
        EpochRecord {
            gateway: [3; 32],
            epoch_id: [id; 32],
            class: Class::Normal,
            chain_id: [4; 16],
            index,
            run_id: [5; 16],
            header: Vec::new(),
            adopted: false,
            previous: None,
        }
    }

    /// The epoch after `before`, which says that it has `count` batches and ends with `head`.
    fn after(before: &EpochRecord, count: u32, head: u32) -> EpochRecord {
        let [id, ..] = before.epoch_id;
        EpochRecord {
            previous: Some((before.epoch_id, count, chain(id, head))),
            ..epoch(id + 1, before.index + 1)
        }
    }

    fn entry(lost: (u32, u32)) -> LedgerEntry {
        entry_of(1, lost)
    }

    fn entry_of(id: u64, (first, last): (u32, u32)) -> LedgerEntry {
        LedgerEntry {
            id,
            chain_id: [4; 16],
            reason: LossReason::Damaged,
            tallies: Vec::new(),
            from_ms: 0,
            until_ms: 0,
            batches: vec![LostBatches {
                epoch_id: [1; 32],
                first,
                last,
            }],
            names: Vec::new(),
        }
    }

    struct TestBatch {
        epoch_id: [u8; 32],
        number: u32,
        prev: [u8; 32],
        ciphertext: [u8; 32],
        content: Batch,
    }

    /// A batch with one reading, chained to the one before.
    fn batch(epoch: u8, number: u32) -> TestBatch {
        let reading = Reading {
            sensor: "climate".into(),
            sensor_number: 0,
            sequence: number.into(),
            time: Time {
                wall_ms: 0,
                boottime_ms: 0,
                clock: wire::ClockState::Synchronised,
            },
            measurement: Measurement {
                channel: "temperature".into(),
                value: Value::Null,
                unit: None,
                quality: Quality::Invalid,
            },
        };
        TestBatch {
            epoch_id: [epoch; 32],
            number,
            prev: match number.checked_sub(1) {
                None => [epoch; 32],
                Some(before) => chain(epoch, before),
            },
            ciphertext: [0; 32],
            content: Batch {
                readings: vec![reading],
                ..Batch::default()
            },
        }
    }

    fn store(
        sink: &SqliteSink,
        batch: &TestBatch,
    ) -> Result<(Stored, u32, Option<Alarm>), SinkError> {
        sink.store_batch(&OpenedBatch {
            epoch_id: batch.epoch_id,
            number: batch.number,
            prev: batch.prev,
            chain: chain(batch.epoch_id[0], batch.number),
            ciphertext: batch.ciphertext,
            gateway_name: "greenhouse-7",
            sealed: b"sealed",
            content: &batch.content,
        })
    }

    /// Stands for the chain hash of this batch.
    fn chain(epoch: u8, number: u32) -> [u8; 32] {
        let mut hash = [epoch ^ 0xFF; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        hash
    }
}
