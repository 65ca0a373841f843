//! The session, both sides of it, on a simulated wire and clock. Numbers in the names of tests of
//! protocol.md 9 stand above them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod foreign;
mod handshake;
mod impostor;
mod net;
mod records;
mod renewal;
mod time;
mod vector;
mod weather;
