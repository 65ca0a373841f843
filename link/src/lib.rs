//! Sockets for the channel: from an [`Address`] to named streams of messages, end to end encrypted.
//!
//! A gateway calls [`connect`], a service [`accept`]; both get a [`Link`] and split it. The
//! [`Driver`] moves the bytes and must be polled for anything to happen; [`Streams`] opens and
//! accepts [`Messages`]. A service behind a relay is found through [`relay::register`].
//!
//! Nothing here spawns a task, and nothing is global: whoever holds the [`Driver`] decides where
//! it runs. The session itself, with its rules, is `channel`'s; formats are those of protocol.md
//! 2 (session), 4 (messages) and 6 (relay).
//!
//! # Memory
//!
//! A link holds at most what its peer may send unasked: 16 streams of 256 KiB, plus one message
//! under way per stream, one read of the socket and one record that came, and 80 KiB of records to
//! be sent. An idle one holds none of them. A consumer that does not take its messages stops the
//! peer, through the windows of yamux, and no other stream.

mod address;
mod bytes;
mod control;
mod dial;
mod driver;
mod error;
mod handshake;
mod inbox;
mod messages;
mod pipe;
mod pump;
pub mod relay;
mod renewal;
mod streams;

pub use address::{Address, AddressError};
pub use bytes::ByteStream;
pub use dial::{Patience, dial, dial_within};
pub use driver::{Driver, Link};
pub use error::{LinkError, Stage};
pub use handshake::{KeepStatement, PeerHello, Registry, accept, connect, connect_over};
pub use messages::{MESSAGE_BYTES_MAX, Messages, Receiver, Sender};
pub use streams::{StreamName, Streams};
