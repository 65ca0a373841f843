//! What travels: readings, batches, and the messages of upload, enrolment and relay.
//!
//! Pure: bytes go in, values come out. Nothing here opens a file or a socket, asks a clock or
//! draws a random number. `docs/protocol.md` has the formats; section numbers refer to it.
//!
//! Each message has one encoding. A decoder refuses every other: long forms, unsorted or unknown
//! keys, duplicates, trailing bytes.

mod cbor;
mod closed;
mod error;
mod ledger;
mod mac;
mod reading;
mod senml;
mod unit;
mod value;

pub mod batch;
pub mod carried;
pub mod enrol;
pub mod relay;
pub mod ticket;
pub mod tpm;
pub mod upload;

pub use error::WireError;
pub use mac::same_mac;
pub use reading::{
    Class, ClockState, Measurement, NAME_BYTES_MAX, Quality, Reading, Time, is_name,
};
pub use unit::Unit;
pub use value::{Decimal, Value};
