//! What is kept apart: authentic perhaps, but not to be believed now.

use rusqlite::{Connection, params};

use super::{SinkError, SqliteSink};
use crate::registry::now_ms;

/// Why something is kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its gateway is suspended.
    Suspended,
    /// Its gateway is revoked; whatever time the header claims, gateway clocks prove nothing.
    Revoked,
    /// It came by hand, of a chain that no session of its gateway announced.
    Unannounced,
    /// Another batch was first under its number: somebody else holds the epoch's key.
    Conflict,
}

impl Reason {
    /// The word in the table.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Revoked => "revoked",
            Self::Unannounced => "unannounced",
            Self::Conflict => "conflict",
        }
    }
}

/// Something to be kept apart.
pub struct Suspect<'a> {
    /// Fingerprint of the gateway.
    pub gateway: [u8; 32],
    /// The epoch.
    pub epoch_id: [u8; 32],
    /// The batch; `None` for the epoch's header.
    pub number: Option<u32>,
    /// SHA-256 of the header, or of the batch's ciphertext.
    pub hash: [u8; 32],
    /// Why.
    pub reason: Reason,
    /// As it came.
    pub sealed: &'a [u8],
}

impl SqliteSink {
    /// Keeps something apart; the same again changes nothing.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn set_aside(&self, suspect: &Suspect<'_>) -> Result<(), SinkError> {
        Ok(insert(&self.lock(), suspect)?)
    }

    /// Writes down that a session of a gateway announced a chain.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn announce(&self, gateway: &[u8; 32], chain_id: &[u8; 16]) -> Result<(), SinkError> {
        // Looked up first: every session says it again, and a write costs the disk a sync.
        if !self.is_announced(gateway, chain_id)? {
            self.lock()
                .prepare_cached("INSERT INTO announced VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
                .execute(params![gateway, chain_id])?;
        }
        Ok(())
    }

    /// Whether a session of a gateway announced a chain.
    ///
    /// # Errors
    ///
    /// [`SinkError::Database`].
    pub fn is_announced(&self, gateway: &[u8; 32], chain_id: &[u8; 16]) -> Result<bool, SinkError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT 1 FROM announced WHERE gateway = ?1 AND chain_id = ?2")?;
        Ok(statement.exists(params![gateway, chain_id])?)
    }
}

/// Keeps something apart, in the caller's transaction.
pub(super) fn insert(connection: &Connection, suspect: &Suspect<'_>) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            suspect.epoch_id,
            suspect.number.map_or(HEADER, i64::from),
            suspect.hash,
            suspect.gateway,
            suspect.reason.word(),
            now_ms(),
            suspect.sealed,
        ])?;
    Ok(())
}

/// Takes out what is believed now, in the caller's transaction.
pub(super) fn release(
    connection: &Connection,
    epoch_id: &[u8; 32],
    number: Option<u32>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM quarantine WHERE epoch_id = ?1 AND number = ?2 AND reason != 'conflict'",
        )?
        .execute(params![epoch_id, number.map_or(HEADER, i64::from)])?;
    Ok(())
}

/// Stands in the place of a number for an epoch's header.
const HEADER: i64 = -1;
