//! Lanes and their epochs.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use wire::Class;
use wire::batch::LossReason;

use super::{Store, check_size};
use crate::ledger::{self, Found};
use crate::{Lane, LaneState, NewEpoch, Newest, SpoolError, StoredHeader, UnsignedHeader, room};

impl Store {
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

    pub(crate) fn unsigned_headers(&self) -> Result<Vec<UnsignedHeader>, SpoolError> {
        let mut statement = self.connection.prepare(
            "SELECT epoch_id, header FROM epochs WHERE signed = 0 AND set_aside = 0
             ORDER BY id LIMIT ?1",
        )?;
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
        ledger::thaw_epoch(&transaction, &epoch_id)?;
        transaction.commit()?;
        // What stood behind it may go now.
        self.tell_changed();
        Ok(())
    }

    pub(crate) fn note_exported(
        &mut self,
        epoch_id: [u8; 32],
        next: u32,
    ) -> Result<(), SpoolError> {
        let transaction = self.begin(0)?;
        transaction.execute(
            "UPDATE epochs SET exported = max(exported, ?2) WHERE epoch_id = ?1",
            params![epoch_id, next],
        )?;
        Ok(transaction.commit()?)
    }

    pub(crate) fn exported(&self, epoch_id: [u8; 32]) -> Result<u32, SpoolError> {
        let exported = self
            .connection
            .query_row(
                "SELECT exported FROM epochs WHERE epoch_id = ?1",
                [epoch_id],
                |row| row.get(0),
            )
            .optional()?;
        Ok(exported.unwrap_or(0))
    }

    /// `epochs.id` of an epoch, if it is one of this lane.
    pub(super) fn epoch(&self, lane: Lane, epoch_id: [u8; 32]) -> Result<Option<i64>, SpoolError> {
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

fn insert_epoch(transaction: &Transaction<'_>, epoch: &NewEpoch) -> Result<(), SpoolError> {
    let lane = id_of(transaction, epoch.lane)?;
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
pub(super) fn id_of(transaction: &Transaction<'_>, lane: Lane) -> Result<i64, SpoolError> {
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

/// Most bytes of an epoch's header: 1120 of them are the key, 64 the signature, and the rest is
/// a few hundred (`docs/protocol.md` 3.1).
pub const HEADER_BYTES_MAX: usize = 4096;

/// Most lanes that were ever used: 256 services. A lane is never forgotten, as its chain goes on.
pub const LANES_MAX: u64 = 768;

/// Headers returned at once: 256 KiB.
const HEADERS_AT_ONCE_MAX: u32 = 64;
