//! Where readings go.

pub mod sqlite;

use wire::{Class, batch::Batch};

/// An epoch as its verified header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// Fingerprint of the gateway's identity.
    pub gateway: [u8; 32],
    /// Names the epoch.
    pub epoch_id: [u8; 32],
    /// Its lane.
    pub class: Class,
    /// Its chain.
    pub chain_id: [u8; 16],
    /// Its place in the chain.
    pub index: u64,
    /// The run of the daemon that made it.
    pub run_id: [u8; 16],
    /// The header as signed.
    pub header: Vec<u8>,
    /// Whether the header was signed by a later run than the one that made it.
    pub adopted: bool,
    /// What the header says of the epoch before: its id, number of batches and last chain hash.
    pub previous: Option<([u8; 32], u32, [u8; 32])>,
}

/// A batch that was opened.
pub struct OpenedBatch<'a> {
    /// Its epoch.
    pub epoch_id: [u8; 32],
    /// Its number there.
    pub number: u32,
    /// The chain hash of the batch before, as the gateway sealed it.
    pub prev: [u8; 32],
    /// Its own chain hash.
    pub chain: [u8; 32],
    /// SHA-256 of its ciphertext.
    pub ciphertext: [u8; 32],
    /// The batch as it came, to be kept if it contradicts another.
    pub sealed: &'a [u8],
    /// The gateway's name.
    pub gateway_name: &'a str,
    /// What was in it.
    pub content: &'a Batch,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Its rows are committed.
    New,
    /// It was there already, the same bytes.
    Duplicate,
    /// Another batch is there under its number: somebody else holds the epoch's key. The first
    /// stays.
    Conflict,
}

/// Something about a chain that somebody must look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Another epoch stands at the same place of the chain: a rolled-back disk, a cloned process,
    /// or an abused TPM.
    Fork,
    /// What was received of an epoch is not what the next header says of its end.
    WrongHead,
    /// The header names an epoch before that is not known here.
    Jump,
    /// Batches of the epoch before are missing, and the ledger does not explain it.
    Gap {
        /// Their numbers, first and last, rising.
        missing: Vec<(u32, u32)>,
    },
    /// A batch does not fit the one before or after it.
    BrokenChain,
}
