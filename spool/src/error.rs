use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why the spool did not do what it was asked.
///
/// Grouped by who must act. After [`Full`](Self::Full), [`Reserved`](Self::Reserved) and
/// [`Disk`](Self::Disk) the caller keeps what it wanted to store and offers the same bytes again
/// later, or gives it up and says so with [`Spool::record_loss`](crate::Spool::record_loss).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// All that is left in the spool is more urgent than what was offered, or it does not fit.
    #[error("the spool is full, and nothing less urgent is left to drop")]
    Full,

    /// The spool may not grow, as others need the rest of the file system.
    #[error(
        "the file system has {free_bytes} bytes free, of which {min_free_bytes} are for others"
    )]
    Reserved {
        /// Free bytes on the file system.
        free_bytes: u64,
        /// What is to stay free.
        min_free_bytes: u64,
    },

    /// The disk is full, read-only, not writable by this user, or fails.
    #[error("the disk does not take or give {}", path.display())]
    Disk {
        /// The file concerned.
        path: PathBuf,
        /// What the system said.
        source: Box<dyn Error + Send + Sync>,
    },

    /// Another process has the file open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file concerned.
        path: PathBuf,
    },

    /// The file is a database of another application. It was not touched.
    #[error("{} is not a spool: it belongs to another application", path.display())]
    NotOurs {
        /// The file concerned.
        path: PathBuf,
    },

    /// The file was written by a newer version. It was not touched.
    #[error("{} has format {found}, this version knows {known}", path.display(), known = crate::file::FORMAT)]
    Newer {
        /// The file concerned.
        path: PathBuf,
        /// Its format.
        found: i32,
    },

    /// The file is damaged. It was set aside, so that the next start makes a new one.
    #[error("{} is damaged and was set aside", path.display())]
    Corrupt {
        /// The file concerned.
        path: PathBuf,
        /// What was found; `None` on calls after the one that found it.
        source: Option<rusqlite::Error>,
    },

    /// The limit is too small for any use.
    #[error(
        "the spool's limit is {max_bytes} bytes, the least is {}",
        crate::MAX_BYTES_MIN
    )]
    LimitTooSmall {
        /// The limit given.
        max_bytes: u64,
    },

    /// The caller offered more bytes than the spool takes in one piece.
    #[error("{bytes} bytes were offered, the limit is {bytes_max}")]
    Oversized {
        /// What was offered.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },

    /// The caller wants more lanes or small values than the spool keeps.
    #[error("the spool keeps {most} of these at most")]
    TooMany {
        /// The limit.
        most: u64,
    },

    /// The caller names an epoch that is not the lane's newest.
    #[error("the epoch is not the newest of its lane")]
    NotNewest,

    /// The caller offers a number, or an epoch's index, that the lane has already passed.
    #[error("the lane is already past this batch or epoch")]
    Passed,

    /// The caller offers other bytes under a name that is taken. What is kept stays.
    #[error("other bytes are already kept under this name")]
    Altered,

    /// The caller's tallies cannot be added up: the last number is below the first, or beyond 2^53.
    #[error("a tally has impossible numbers")]
    Tally,

    /// The spool's thread has ended.
    #[error("the spool has stopped")]
    Stopped,

    /// A bug of ours: SQLite refuses what we asked.
    ///
    /// Inside the crate every error of SQLite starts as this one; `at` sorts them.
    #[error("the spool's database refused a request")]
    Internal(#[from] rusqlite::Error),
}

impl SpoolError {
    /// What the operator can do about it, in one line.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Full => "raise spool.max_size, or look why the services do not take their data",
            Self::Reserved { .. } => "free some of the disk, or lower spool.min_free",
            Self::Disk { .. } => "look at dmesg and df; recording goes on as soon as the disk does",
            Self::InUse { .. } => "end the other gatewayd; one process at a time may use the spool",
            Self::NotOurs { .. } => "move that file elsewhere, or choose another state folder",
            Self::Newer { .. } => "install the newer gatewayd again, or move the file elsewhere",
            Self::Corrupt { .. } => {
                "restart gatewayd: it starts a new spool; what was lost goes to the ledger"
            }
            Self::LimitTooSmall { .. } => "raise spool.max_size",
            Self::Stopped => "restart gatewayd",
            Self::Oversized { .. }
            | Self::TooMany { .. }
            | Self::NotNewest
            | Self::Passed
            | Self::Altered
            | Self::Tally
            | Self::Internal(_) => "this is a bug: send what `gatewayctl diag` writes",
        }
    }

    /// Sorts what SQLite said about the file at `path` by who must act.
    pub(crate) fn at(self, path: &Path) -> Self {
        let Self::Internal(error) = self else {
            return self;
        };
        let path = path.to_owned();
        // A row of ours that does not have the types we wrote is damage, too.
        if matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
        ) {
            return Self::Corrupt {
                path,
                source: Some(error),
            };
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt {
                path,
                source: Some(error),
            },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse { path },
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::NoLargeFileSupport,
            ) => Self::Disk {
                path,
                source: error.into(),
            },
            _ => Self::Internal(error),
        }
    }

    /// The system did not let us at the file at `path`.
    pub(crate) fn from_io(path: &Path, error: io::Error) -> Self {
        Self::Disk {
            path: path.to_owned(),
            source: error.into(),
        }
    }
}
