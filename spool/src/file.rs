//! The spool's files: made, recognised, opened, set aside when damaged.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use crate::SpoolError;

/// The names of all files of one spool.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    database: PathBuf,
    log: PathBuf,
}

impl Files {
    /// Names the files in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            database: folder.join(DATABASE_NAME),
            log: folder.join(format!("{DATABASE_NAME}-wal")),
        }
    }

    /// The database.
    pub(crate) fn database(&self) -> &Path {
        &self.database
    }

    /// Length of the database file.
    pub(crate) fn database_bytes(&self) -> Result<u64, SpoolError> {
        length(&self.database)
    }

    /// Length of the write-ahead log.
    pub(crate) fn log_bytes(&self) -> Result<u64, SpoolError> {
        length(&self.log)
    }

    /// Bytes that the file system has free for this user.
    pub(crate) fn free_bytes(&self) -> Result<u64, SpoolError> {
        let system = nix::sys::statvfs::statvfs(&self.folder)
            .map_err(|errno| SpoolError::from_io(&self.folder, errno.into()))?;
        #[allow(
            clippy::useless_conversion,
            reason = "on 32-bit systems these have 32 bits"
        )]
        let (blocks, block_bytes) = (
            u64::from(system.blocks_available()),
            u64::from(system.fragment_size()),
        );
        Ok(blocks.saturating_mul(block_bytes))
    }

    /// Length of what was set aside.
    pub(crate) fn damaged_bytes(&self) -> Result<u64, SpoolError> {
        self.damaged()?.iter().map(|path| length(path)).sum()
    }

    /// Deletes what was set aside.
    pub(crate) fn remove_damaged(&self) -> Result<(), SpoolError> {
        for path in self.damaged()? {
            remove(&path)?;
        }
        Ok(())
    }

    /// Renames the database and its log to `spool.db.damaged-N`, and deletes an older `N`.
    ///
    /// The database goes first: should the power fail in between, a log without its database is
    /// thrown away by [`open`], whereas a database without its log would pass for a sound one
    /// that lacks its latest batches.
    pub(crate) fn set_aside(&self) -> Result<(), SpoolError> {
        let older = self.damaged()?;
        let number = older
            .iter()
            .filter_map(|path| damaged_number(path))
            .max()
            .map_or(1, |number| number.saturating_add(1));
        let to = self.folder.join(format!("{DAMAGED_PREFIX}{number}"));
        let log_to = self.folder.join(format!("{DAMAGED_PREFIX}{number}-wal"));
        rename(&self.database, &to)?;
        rename(&self.log, &log_to)?;
        for path in older {
            remove(&path)?;
        }
        self.sync_folder()
    }

    /// Makes the folder (0700) and an empty file (0600) unless they are there.
    ///
    /// SQLite gives the log the mode of the database.
    fn prepare(&self) -> Result<(), SpoolError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|error| SpoolError::from_io(&self.folder, error))?;
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.database);
        match made {
            Ok(_) => {
                remove(&self.log)?;
                self.sync_folder()
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(SpoolError::from_io(&self.database, error)),
        }
    }

    /// Takes files that were copied here with another mode away from others.
    fn restrict(&self) -> Result<(), SpoolError> {
        for path in [&self.database, &self.log] {
            match fs::set_permissions(path, Permissions::from_mode(0o600)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SpoolError::from_io(path, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Makes new and changed names durable.
    fn sync_folder(&self) -> Result<(), SpoolError> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| SpoolError::from_io(&self.folder, error))
    }

    /// What was set aside: a database, and perhaps its log.
    fn damaged(&self) -> Result<Vec<PathBuf>, SpoolError> {
        let listed = fs::read_dir(&self.folder)
            .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
            .map_err(|error| SpoolError::from_io(&self.folder, error))?;
        Ok(listed
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| damaged_number(path).is_some())
            .collect())
    }

    /// When a file that was set aside was last changed, in milliseconds since 1970.
    fn damaged_ms(&self) -> Result<Option<i64>, SpoolError> {
        let changed = |path: &PathBuf| {
            let time = fs::metadata(path).and_then(|metadata| metadata.modified());
            let since = time.ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            i64::try_from(since.as_millis()).ok()
        };
        Ok(self
            .damaged()?
            .iter()
            .map(|path| changed(path).unwrap_or(0))
            .max())
    }
}

/// Opens the database, makes it if there is none, and sets a damaged one aside for a new one.
///
/// Reads the schema and one row, whatever the backlog; a log left by a power cut, which SQLite
/// replays here, is bounded by [`crate::room::Budget`].
///
/// # Errors
///
/// [`SpoolError::NotOurs`], [`SpoolError::Newer`] and [`SpoolError::InUse`] leave the file as it
/// is. [`SpoolError::Disk`] if the system does not let us.
pub(crate) fn open(files: &Files) -> Result<Connection, SpoolError> {
    match connect(files) {
        Err(SpoolError::Corrupt { path, source }) => {
            tracing::error!(path = %path.display(), ?source, "spool is damaged, starting a new one");
            files.set_aside()?;
            connect(files)
        }
        done => done,
    }
}

/// The chain id that was born with the file.
pub(crate) fn chain_id(connection: &Connection) -> Result<[u8; 16], SpoolError> {
    Ok(connection.query_row("SELECT chain_id FROM file", [], |row| row.get(0))?)
}

/// Runs a `PRAGMA` to its end, and returns what its first row says, if that is a number.
///
/// To its end, because some do their work row by row.
pub(crate) fn pragma(connection: &Connection, sql: &str) -> Result<u64, SpoolError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut first = None;
    while let Some(row) = rows.next()? {
        first.get_or_insert(row.get::<_, u64>(0).unwrap_or(0));
    }
    Ok(first.unwrap_or(0))
}

fn connect(files: &Files) -> Result<Connection, SpoolError> {
    files.prepare()?;
    let at = |error: SpoolError| error.at(&files.database);
    // The thread of the crate is the only user, so SQLite needs no mutex of its own.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(&files.database, flags)
        .map_err(SpoolError::from)
        .map_err(at)?;
    identify(&connection, files)
        .and_then(|blank| {
            if blank {
                create(&mut connection, files)?;
            }
            files.restrict()?;
            settle(&connection)?;
            migrate(&mut connection)
        })
        .map_err(at)?;
    Ok(connection)
}

/// Returns whether the file is blank; else it is a spool of this format, or refused.
fn identify(connection: &Connection, files: &Files) -> Result<bool, SpoolError> {
    connection.busy_timeout(PREDECESSOR_TIME_MAX)?;
    // One process only. It also keeps the index of the log in memory instead of a third file.
    pragma(connection, "PRAGMA locking_mode = EXCLUSIVE")?;
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i32>(0));
    let application = number("PRAGMA application_id")?;
    let format = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    match (application, format) {
        (0, 0) if tables == 0 => Ok(true),
        (APPLICATION_ID, FORMAT | FORMAT_1) => Ok(false),
        (APPLICATION_ID, found) if found > FORMAT => Err(SpoolError::Newer {
            path: files.database.clone(),
            found,
        }),
        _ => Err(SpoolError::NotOurs {
            path: files.database.clone(),
        }),
    }
}

/// Makes the tables. Identity and tables are one transaction: a file is blank or whole.
fn create(connection: &mut Connection, files: &Files) -> Result<(), SpoolError> {
    // These two count only before the first table is made.
    pragma(connection, &format!("PRAGMA page_size = {PAGE_BYTES}"))?;
    pragma(connection, "PRAGMA auto_vacuum = INCREMENTAL")?;
    pragma(connection, "PRAGMA journal_mode = WAL")?;
    let damaged_ms = files.damaged_ms()?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(include_str!("schema.sql"))?;
    // SQLite's generator is seeded by the system's; the id need not be secret, only unlike others.
    transaction.execute(
        "INSERT INTO file (id, chain_id, damaged_ms) VALUES (1, randomblob(16), ?1)",
        params![damaged_ms],
    )?;
    pragma(
        &transaction,
        &format!("PRAGMA application_id = {APPLICATION_ID}"),
    )?;
    pragma(&transaction, &format!("PRAGMA user_version = {FORMAT}"))?;
    Ok(transaction.commit()?)
}

/// Brings a file of format 1 to this one, which knows what was carried by hand.
fn migrate(connection: &mut Connection) -> Result<(), SpoolError> {
    let format: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if format != FORMAT_1 {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction
        .execute_batch("ALTER TABLE epochs ADD COLUMN exported INTEGER NOT NULL DEFAULT 0")?;
    pragma(&transaction, &format!("PRAGMA user_version = {FORMAT}"))?;
    Ok(transaction.commit()?)
}

/// What holds for this connection, not for the file.
fn settle(connection: &Connection) -> Result<(), SpoolError> {
    // FULL: the log is on the medium before a commit returns.
    pragma(connection, "PRAGMA synchronous = FULL")?;
    // `room.rs` decides when the log is moved into the database.
    pragma(connection, "PRAGMA wal_autocheckpoint = 0")?;
    pragma(connection, "PRAGMA foreign_keys = ON")?;
    // No file outside the folder.
    pragma(connection, "PRAGMA temp_store = MEMORY")?;
    pragma(connection, &format!("PRAGMA cache_size = -{CACHE_KIB}"))?;
    chain_id(connection).map(drop)
}

/// `N` of `spool.db.damaged-N` and `spool.db.damaged-N-wal`.
fn damaged_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix(DAMAGED_PREFIX)?;
    name.strip_suffix("-wal").unwrap_or(name).parse().ok()
}

/// Length of a file; 0 if there is none.
fn length(path: &Path) -> Result<u64, SpoolError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(SpoolError::from_io(path, error)),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), SpoolError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SpoolError::from_io(from, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SpoolError::from_io(path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Name of the database in the spool's folder.
pub const DATABASE_NAME: &str = "spool.db";

/// What a damaged database is called, before its number.
const DAMAGED_PREFIX: &str = "spool.db.damaged-";

/// Marks the file as ours (SQLite file format, 1.3.15): "GWSP".
const APPLICATION_ID: i32 = 0x4757_5350;

/// Version of `schema.sql`.
pub(crate) const FORMAT: i32 = 2;

/// The version before, which did not know what was carried by hand.
const FORMAT_1: i32 = 1;

/// Bytes of a page. Every page that an append touches goes to the log whole, so small pages write
/// least: at 6 kB a batch, log and database together take 2.7 bytes for each byte appended with
/// pages of 1 KiB, 3.7 with 2 KiB and 4.8 with 4 KiB.
pub(crate) const PAGE_BYTES: u64 = 1024;

/// SQLite's page cache: one batch of the largest size.
const CACHE_KIB: u32 = 1152;

/// Smallest limit: a batch of the largest size, the log's share for writing it, and as much again
/// for what is already there.
pub const MAX_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// How long to wait for a spool of this process that is just being closed.
const PREDECESSOR_TIME_MAX: Duration = Duration::from_secs(5);
