//! What survives: sealed batches on disk until a service has acknowledged them.
//!
//! One SQLite file, `spool.db`, in a folder of its own. Each [`Lane`] (a service and a class) is a
//! chain, kept, sent and evicted strictly oldest first. [`Spool::append`] returns when the batch
//! is on the medium; only [`Spool::ack`] lets the spool forget. When `max_bytes` are reached, the
//! oldest batch of the lowest class goes, and the loss is written to the ledger in the same
//! transaction. So at any time, in readings:
//!
//! ```text
//! appended = held + acknowledged + evicted        and every evicted reading is in the ledger
//! ```
//!
//! The spool cannot read what it keeps. Beside the sealed bytes it has sensor numbers, counts and
//! times, never names or values (`docs/protocol.md` 3.2).
//!
//! Where to read on: `spool.rs` has the handle and its thread, `store.rs` what a request does,
//! `room.rs` how the bounds on bytes are kept, `ledger.rs` the losses, `file.rs` how the file is
//! opened, and `schema.sql` how it is laid out.

mod error;
mod file;
mod ledger;
mod room;
mod spool;
mod store;
mod types;

pub use error::SpoolError;
pub use file::{DATABASE_NAME, MAX_BYTES_MIN};
pub use spool::Spool;
pub use store::{
    BATCH_BYTES_MAX, HEADER_BYTES_MAX, KEY_BYTES_MAX, KEYS_MAX, LANES_MAX, VALUE_BYTES_MAX,
};
pub use types::{
    Acked, Appended, Lane, LaneState, LaneStatus, Limits, Loss, NewBatch, NewEpoch, Newest,
    SpoolState, Status, StoredBatch, StoredHeader, UnsignedHeader,
};
