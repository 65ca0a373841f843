//! What is missing of the chains, exactly, at this moment.

use rusqlite::{Connection, params};
use wire::Class;

use super::{SinkError, SqliteSink};

/// Batches of a closed epoch that neither came nor are explained by the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The lane's class.
    pub class: Class,
    /// The chain.
    pub chain_id: [u8; 16],
    /// The epoch's place in the chain.
    pub index: u64,
    /// The epoch.
    pub epoch_id: [u8; 32],
    /// Its missing numbers, first and last, rising.
    pub missing: Vec<(u32, u32)>,
}

/// Epochs that stand at one place of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The lane's class.
    pub class: Class,
    /// The chain.
    pub chain_id: [u8; 16],
    /// The place.
    pub index: u64,
    /// How many stand there.
    pub epochs: u64,
}

impl SqliteSink {
    /// All gaps of a gateway, in the order of chain, class and index. An epoch that never came is
    /// one, if a later header says that it has batches.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn gaps(&self, gateway: &[u8; 32]) -> Result<Vec<Gap>, SinkError> {
        let connection = self.lock();
        let mut closed = connection.prepare_cached(
            "SELECT class, chain_id, idx, epoch_id, last FROM epoch
                WHERE gateway = ?1 AND next < last
             UNION ALL
             SELECT class, chain_id, idx - 1, before_id, before_count FROM epoch AS after
                WHERE gateway = ?1 AND 0 < before_count
                AND NOT EXISTS (SELECT 1 FROM epoch WHERE epoch_id = after.before_id)
             ORDER BY chain_id, class, idx",
        )?;
        let mut rows = closed.query([gateway])?;
        let mut gaps = Vec::new();
        while let Some(row) = rows.next()? {
            let epoch_id = row.get(3)?;
            let missing = missing(&connection, gateway, &epoch_id, row.get(4)?)?;
            if !missing.is_empty() {
                gaps.push(Gap {
                    class: class(row.get(0)?),
                    chain_id: row.get(1)?,
                    index: row.get(2)?,
                    epoch_id,
                    missing,
                });
            }
        }
        Ok(gaps)
    }

    /// All forks of a gateway's chains.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn forks(&self, gateway: &[u8; 32]) -> Result<Vec<Fork>, SinkError> {
        let connection = self.lock();
        let mut forked = connection.prepare_cached(
            "SELECT class, chain_id, idx, count(*) FROM epoch WHERE gateway = ?1
             GROUP BY chain_id, class, idx HAVING 1 < count(*)",
        )?;
        let rows = forked.query_map([gateway], |row| {
            Ok(Fork {
                class: class(row.get(0)?),
                chain_id: row.get(1)?,
                index: row.get(2)?,
                epochs: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// The numbers of an epoch below `count` that neither came, nor were declared gone, nor are in the
/// gateway's ledger.
pub(super) fn missing(
    connection: &Connection,
    gateway: &[u8; 32],
    epoch_id: &[u8; 32],
    count: u32,
) -> rusqlite::Result<Vec<(u32, u32)>> {
    let mut expected = connection.prepare_cached(
        "WITH RECURSIVE
            known (id, next) AS (SELECT id, next FROM epoch WHERE epoch_id = ?3),
            expected (n) AS (
                SELECT n FROM (SELECT coalesce((SELECT next FROM known), 0) AS n) WHERE n < ?2
                UNION ALL SELECT n + 1 FROM expected WHERE n + 1 < ?2)
         SELECT n FROM expected
         WHERE NOT EXISTS (SELECT 1 FROM batch WHERE epoch = (SELECT id FROM known) AND number = n)
         AND NOT EXISTS (SELECT 1 FROM ledger_batches
            WHERE gateway = ?1 AND epoch_id = ?3 AND n BETWEEN first AND last)",
    )?;
    let mut rows = expected.query(params![gateway, count, epoch_id])?;
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    while let Some(row) = rows.next()? {
        let number = row.get(0)?;
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            Some(_) | None => ranges.push((number, number)),
        }
    }
    Ok(ranges)
}

/// How many numbers are in some ranges.
pub(crate) fn count(ranges: &[(u32, u32)]) -> u64 {
    let lengths = ranges
        .iter()
        .map(|(first, last)| u64::from(last - first) + 1);
    lengths.sum()
}

/// Only classes are written, so what is none cannot be read; the least urgent stands for it.
fn class(number: u8) -> Class {
    Class::try_from(number).unwrap_or(Class::Bulk)
}
