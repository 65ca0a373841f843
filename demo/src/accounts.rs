//! Counts readings from two independent books: the gateway's own counters, which are on its disk,
//! and the rows in the service's database.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::site::number;

/// The books, after everything has come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// Readings that the gateway put on its disk, over all its runs.
    pub taken: u64,
    /// Rows at the service.
    pub delivered: u64,
    /// Readings on the gateway's disk that nobody acknowledged.
    pub in_spool: u64,
    /// Readings that the gateway's ledger gives as lost.
    pub in_ledger: u64,
    /// Numbers that the service misses between the first and the last of each sensor and run.
    pub gaps: u64,
    /// Rows with a number that another row has.
    pub twice: u64,
    /// Runs of the gateway that the service has seen.
    pub runs: u64,
    /// Ends of a run that the gateway's ledger gives as unknown: what was in its memory then, at
    /// most the batch interval, was never taken.
    pub unclean_stops: u64,
    /// Different sensors that the service has seen.
    pub sensors: u64,
}

impl Accounts {
    /// Reads both books: `status` is the gateway's, `readings` the service's database.
    ///
    /// # Errors
    ///
    /// If the database cannot be read.
    pub fn read(status: &Value, readings: &Path) -> anyhow::Result<Self> {
        let taken = number(status, "/spool/stored_readings");
        let in_ledger = number(status, "/spool/lost_readings");
        let database = open(readings)?;
        let count = |sql: &str| -> anyhow::Result<u64> {
            Ok(database.query_row(sql, [], |row| row.get(0))?)
        };
        Ok(Self {
            taken,
            delivered: count("SELECT count(*) FROM readings")?,
            in_spool: number(status, "/spool/held_readings"),
            in_ledger,
            gaps: count(
                "SELECT coalesce(sum(span - numbers), 0) FROM (
                   SELECT max(sequence) + 1 AS span, count(DISTINCT sequence) AS numbers
                   FROM readings GROUP BY run_id, sensor_number)",
            )?,
            twice: count(
                "SELECT count(*) - count(DISTINCT hex(run_id) || sensor_number || '/' || sequence)
                 FROM readings",
            )?,
            runs: count("SELECT count(DISTINCT run_id) FROM readings")?,
            unclean_stops: count("SELECT count(*) FROM ledger WHERE reason = 'unclean_stop'")?,
            sensors: count("SELECT count(DISTINCT sensor) FROM readings")?,
        })
    }

    /// Readings that are nowhere: neither delivered nor held nor in the ledger, and holes between
    /// those delivered.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let found = self.delivered - self.twice + self.in_spool + self.in_ledger;
        self.taken.saturating_sub(found).max(self.gaps)
    }

    /// Whether every reading is accounted for, once.
    #[must_use]
    pub fn hold(&self) -> bool {
        0 < self.delivered
            && self.missing() == 0
            && self.twice == 0
            && self.taken == self.delivered + self.in_spool + self.in_ledger
    }
}

/// How many readings a gateway has put on its disk, as its spool itself counts.
///
/// # Errors
///
/// If there is no spool.
pub fn stored_readings(spool: &Path) -> anyhow::Result<u64> {
    let sum = "SELECT sum(appended_readings) FROM lanes";
    Ok(Connection::open(spool)?.query_row(sum, [], |row| row.get(0))?)
}

/// Opens a service's database to look only.
///
/// # Errors
///
/// If there is none.
pub fn open(readings: &Path) -> anyhow::Result<Connection> {
    Ok(Connection::open_with_flags(
        readings,
        OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Accounts = Accounts {
        taken: 10,
        delivered: 7,
        in_spool: 2,
        in_ledger: 1,
        gaps: 0,
        twice: 0,
        runs: 1,
        unclean_stops: 0,
        sensors: 1,
    };

    #[test]
    fn books_that_balance_hold() {
        assert!(EVEN.hold());
    }

    #[test]
    fn a_reading_that_is_nowhere_is_missing() {
        let accounts = Accounts {
            delivered: 6,
            ..EVEN
        };
        assert_eq!(accounts.missing(), 1);
        assert!(!accounts.hold());
    }

    #[test]
    fn a_hole_between_delivered_readings_is_missing_although_the_sums_agree() {
        let accounts = Accounts { gaps: 1, ..EVEN };
        assert_eq!(accounts.missing(), 1);
        assert!(!accounts.hold());
    }

    #[test]
    fn a_reading_counted_twice_does_not_hold() {
        let accounts = Accounts {
            delivered: 8,
            twice: 1,
            ..EVEN
        };
        assert!(!accounts.hold());
    }
}
