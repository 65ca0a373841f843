//! Which gateways are known, which tickets are out, and what was done about either.

mod ticket;

use std::{
    path::Path,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use channel::PublicKey;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

pub use self::ticket::{Claim, Invitation, TicketRefusal};

/// The registry's SQLite file. Several processes may have it open: `invite` while `serve` runs.
///
/// Calls block for as long as the disk needs; call them where that is allowed.
pub struct Registry {
    connection: Mutex<Connection>,
}

/// A gateway as sessions need it.
#[derive(Clone, Debug)]
pub struct GatewayRecord {
    /// Fingerprint of its identity key.
    pub fingerprint: [u8; 32],
    /// What the operator calls it.
    pub name: String,
    /// Whether it may come in.
    pub state: GatewayState,
    /// The key that signs its epochs.
    pub identity: PublicKey,
    /// Its labels, `key=value`.
    pub labels: Vec<String>,
    /// The relay of its newest session, or `direct`.
    pub via: Option<String>,
    /// When something of it was committed last, in milliseconds since 1970.
    pub ack_ms: Option<i64>,
}

/// Whether a gateway may come in (protocol.md 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayState {
    /// It may.
    Enrolled,
    /// The operator or a policy keeps it out for now.
    Suspended,
    /// It was replaced.
    Retired,
    /// Never again.
    Revoked,
}

impl GatewayState {
    /// The word in the registry and on screens.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Suspended => "suspended",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

impl FromStr for GatewayState {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> anyhow::Result<Self> {
        let all = [
            Self::Enrolled,
            Self::Suspended,
            Self::Retired,
            Self::Revoked,
        ];
        let found = all.into_iter().find(|state| state.word() == word);
        found.with_context(|| format!("unknown state {word:?} in the registry"))
    }
}

/// A gateway whose evidence was verified.
#[derive(Clone, Debug)]
pub struct NewGateway {
    /// Fingerprint of its identity key.
    pub fingerprint: [u8; 32],
    /// The key that signs its epochs.
    pub identity: PublicKey,
    /// Its Noise static key.
    pub channel: PublicKey,
    /// The key that vouches for both.
    pub attestation: PublicKey,
    /// TPMT_PUBLIC of its endorsement key.
    pub endorsement: Vec<u8>,
    /// TPM Names of identity, channel and attestation key.
    pub names: [[u8; 34]; 3],
}

impl Registry {
    /// Opens the registry of a state folder, or makes it.
    ///
    /// # Errors
    ///
    /// If the disk refuses or a newer version made the file.
    pub fn open(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        let connection =
            Connection::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        connection.busy_timeout(BUSY_TIME_MAX)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let registry = Self {
            connection: Mutex::new(connection),
        };
        registry.change(|transaction| {
            let version: i64 =
                transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            ensure!(
                version <= SCHEMA_VERSION,
                "{} was made by a newer version; update gateway-cloud",
                path.display()
            );
            if version == 0 {
                transaction.execute_batch(include_str!("registry/schema.sql"))?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            Ok(())
        })?;
        Ok(registry)
    }

    /// The gateway with exactly this channel key.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn by_channel_key(&self, key: &PublicKey) -> anyhow::Result<Option<GatewayRecord>> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached(&format!("{SELECT_GATEWAY} WHERE channel = ?1"))?;
        let found = statement
            .query_row([key.as_bytes()], |row| Ok(gateway_record(row)))
            .optional()?;
        found.transpose()
    }

    /// The gateway with this identity.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn by_identity(&self, fingerprint: &[u8; 32]) -> anyhow::Result<Option<GatewayRecord>> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached(&format!("{SELECT_GATEWAY} WHERE fingerprint = ?1"))?;
        let found = statement
            .query_row([fingerprint], |row| Ok(gateway_record(row)))
            .optional()?;
        found.transpose()
    }

    /// All gateways by name.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn gateways(&self) -> anyhow::Result<Vec<GatewayRecord>> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached(&format!("{SELECT_GATEWAY} ORDER BY name"))?;
        let rows = statement.query_map([], |row| Ok(gateway_record(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Notes that a session was opened.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn note_session(&self, fingerprint: &[u8; 32], via: &str) -> anyhow::Result<()> {
        self.lock()
            .prepare_cached("UPDATE gateway SET via = ?2, session_ms = ?3 WHERE fingerprint = ?1")?
            .execute(params![fingerprint, via, now_ms()])?;
        Ok(())
    }

    /// Notes that something was committed.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn note_ack(&self, fingerprint: &[u8; 32]) -> anyhow::Result<()> {
        self.lock()
            .prepare_cached("UPDATE gateway SET ack_ms = ?2 WHERE fingerprint = ?1")?
            .execute(params![fingerprint, now_ms()])?;
        Ok(())
    }

    /// Runs `change` as one transaction, on the medium when it returns.
    fn change<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = change(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic interrupted was rolled back when it was dropped.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn gateway_record(row: &Row<'_>) -> anyhow::Result<GatewayRecord> {
    let labels: String = row.get("labels")?;
    Ok(GatewayRecord {
        fingerprint: row.get("fingerprint")?,
        name: row.get("name")?,
        state: row.get::<_, String>("state")?.parse()?,
        identity: PublicKey::parse(&row.get::<_, Vec<u8>>("identity")?)?,
        labels: labels.lines().map(str::to_owned).collect(),
        via: row.get("via")?,
        ack_ms: row.get("ack_ms")?,
    })
}

fn audit(
    transaction: &Transaction<'_>,
    event: &str,
    name: &str,
    fingerprint: Option<&[u8; 32]>,
    detail: &str,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO audit (time_ms, event, name, fingerprint, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![now_ms(), event, name, fingerprint, detail])?;
    Ok(())
}

/// The service's own wall clock, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

const SELECT_GATEWAY: &str =
    "SELECT fingerprint, name, state, identity, labels, via, ack_ms FROM gateway";

const FILE: &str = "registry.db";

const SCHEMA_VERSION: i64 = 1;

/// Every transaction is a few rows; ten seconds is a disk in trouble.
const BUSY_TIME_MAX: Duration = Duration::from_secs(10);
