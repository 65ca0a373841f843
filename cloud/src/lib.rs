//! `gateway-cloud`: what a service runs to receive, relay and enrol.
//!
//! [`serve`] lets gateways in; [`enrol`] registers a new one, whose TPM the [`roots`] vouch for, and
//! [`receive`] takes batches of a known one, opens them and commits their readings to the [`sink`]
//! before it acknowledges them, and [`by_hand`] takes files that were carried here. [`relay`] is a process of its own that knows nothing of all this.

pub mod by_hand;
pub mod config;
pub mod enrol;
pub mod evidence;
pub mod invite;
pub mod keys;
pub mod list;
pub mod listen;
pub mod receive;
pub mod registry;
pub mod relay;
pub mod roots;
pub mod serve;
pub mod sink;
mod source;
pub mod tasks;
