//! snow, as it is: that we drive it as others drive theirs, and where it surprises. A new version
//! that surprises otherwise shows here first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod cacophony;
mod traps;

#[path = "../session/foreign.rs"]
#[allow(dead_code, reason = "the session's tests use the rest")]
mod foreign;
#[path = "../session/net.rs"]
#[allow(dead_code, reason = "the session's tests use the rest")]
mod net;
