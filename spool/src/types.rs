//! What goes into the spool and comes out of it.

use std::fmt;

use wire::Class;
use wire::batch::{LossReason, LostBatches, Tally};

/// How much the spool may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of all files of the spool together, write-ahead log included; at least
    /// [`MAX_BYTES_MIN`](crate::MAX_BYTES_MIN).
    pub max_bytes: u64,
    /// The spool stops growing when less than this would be left on the file system for others.
    pub min_free_bytes: u64,
}

/// A service and a class: a chain of its own, sent and evicted strictly oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Fingerprint of the service's identity.
    pub service: [u8; 32],
    /// How urgent its batches are.
    pub class: Class,
}

/// What the sealer and the uplink must know about a lane when they start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneState {
    /// The lane's newest epoch, which the next epoch names in its field 8; kept even when all its
    /// batches are gone. `None` before the first.
    pub newest: Option<Newest>,
    /// Epoch and number of the oldest batch to send; `None` if there is nothing to send.
    pub oldest: Option<([u8; 32], u32)>,
    /// Batches held, those of epochs set aside included.
    pub batches: u64,
    /// Their sealed bytes.
    pub bytes: u64,
}

/// The newest epoch of a lane, as far as it was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Its id.
    pub epoch_id: [u8; 32],
    /// Its place in the chain.
    pub index: u64,
    /// One more than the highest number appended.
    pub count: u32,
    /// Chain hash of that batch; the epoch id while there is none.
    pub head: [u8; 32],
    /// Whether it was closed by a clean stop or rotation.
    pub clean: bool,
}

/// An epoch that was just opened in RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEpoch {
    /// Where its batches go.
    pub lane: Lane,
    /// Its id.
    pub epoch_id: [u8; 32],
    /// Its place in the chain, above that of the lane's newest epoch.
    pub index: u64,
    /// The header before it is signed.
    pub unsigned_header: Vec<u8>,
}

/// An epoch's header as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredHeader {
    /// Not signed yet; the epoch's batches cannot be sent.
    Unsigned(Vec<u8>),
    /// Signed, ready to be sent.
    Signed(Vec<u8>),
}

/// An epoch id, and the epoch's header that waits for a signature.
pub type UnsignedHeader = ([u8; 32], Vec<u8>);

/// A sealed batch on its way to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBatch {
    /// Where it goes.
    pub lane: Lane,
    /// The lane's newest epoch.
    pub epoch_id: [u8; 32],
    /// Its number in the epoch, 0 to 65,535; rising, gaps allowed.
    pub number: u32,
    /// Chain hash up to and including this batch.
    pub chain: [u8; 32],
    /// What it holds, in the clear, for the ledger should it be evicted.
    pub tallies: Vec<Tally>,
    /// Wall time of its first reading, milliseconds since 1970.
    pub from_ms: i64,
    /// Wall time of its last reading, milliseconds since 1970.
    pub until_ms: i64,
    /// The sealed batch, as it travels.
    pub bytes: Vec<u8>,
    /// The ledger entries from [`Spool::ledger_open`](crate::Spool::ledger_open) sealed into it.
    pub ledger_ids: Vec<u64>,
}

/// What an append cost others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Batches evicted to make room. Their losses are in the ledger.
    pub evicted_batches: u64,
    /// Readings that were in them.
    pub evicted_readings: u64,
}

/// A batch as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    /// Its epoch.
    pub epoch_id: [u8; 32],
    /// Its number in the epoch.
    pub number: u32,
    /// The chain hash it was appended with, to tell damage on the disk from damage on the way.
    pub chain: [u8; 32],
    /// The sealed batch, as it travels.
    pub bytes: Vec<u8>,
}

/// What an acknowledgement let the spool forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Batches forgotten now.
    pub batches: u64,
    /// Readings that were in them.
    pub readings: u64,
}

/// Readings lost without ever having been appended, or declared lost by the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The lane they were meant for.
    pub lane: Lane,
    /// Why they are lost.
    pub reason: LossReason,
    /// What is lost; empty when unknown.
    pub tallies: Vec<Tally>,
    /// Wall time of the first, milliseconds since 1970.
    pub from_ms: i64,
    /// Wall time of the last, milliseconds since 1970.
    pub until_ms: i64,
    /// The sealed batches among them, oldest first.
    pub batches: Vec<LostBatches>,
}

/// Where the spool keeps what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpoolState {
    /// In its file.
    Disk,
    /// In memory, because the disk does not take it.
    Memory,
}

impl fmt::Display for SpoolState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        })
    }
}

/// The spool at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where batches go.
    pub state: SpoolState,
    /// Bytes in use on the disk: pages that hold something, and the write-ahead log.
    pub bytes: u64,
    /// The limit for the whole folder.
    pub max_bytes: u64,
    /// Every lane that was ever used, in order of service and class.
    pub lanes: Vec<LaneStatus>,
    /// Readings appended since the file was made.
    pub appended_readings: u64,
    /// Readings acknowledged since the file was made.
    pub acked_readings: u64,
    /// Readings written to the ledger since the file was made.
    pub lost_readings: u64,
}

/// A lane at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// Which lane.
    pub lane: Lane,
    /// Batches held.
    pub batches: u64,
    /// Their sealed bytes.
    pub bytes: u64,
    /// Readings in them.
    pub readings: u64,
    /// Wall time of the oldest reading held, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Readings of this lane appended since the file was made.
    pub appended_readings: u64,
    /// Readings of this lane acknowledged since the file was made.
    pub acked_readings: u64,
    /// Readings of this lane written to the ledger since the file was made.
    pub lost_readings: u64,
}
