//! Every byte that a peer controls, as functions that a fuzzer calls: [`TARGETS`].
//!
//! A target panics if something is wrong: a decoder that takes what it would not write, a session
//! that goes on after an error, asks its key twice, hands out bytes that nobody sealed or keeps
//! more than it may. `make fuzz` searches for such bytes (`fuzzer/`); what it found to be
//! interesting is kept in `corpus/` and played again by `cargo test`.
//!
//! Random bytes never pass a MAC or a signature, so most targets have two doors: bytes as they
//! come, and bytes that this crate seals or signs before it hands them over, as a peer does who has
//! keys and lies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a finding is reported by panicking"
)]

mod input;
mod messages;
mod sealed;
mod session;
mod tpm;

// The peers of the session's own tests: one honest, with everything noted, and one that shares no
// line with the session and may lie.
#[path = "../../channel/tests/session/foreign.rs"]
#[allow(dead_code, reason = "the session's tests use the rest")]
mod foreign;
#[path = "../../channel/tests/session/net.rs"]
#[allow(dead_code, reason = "the session's tests use the rest")]
mod net;

use peak_alloc::PeakAlloc;

/// What a fuzzer calls.
pub struct Target {
    /// Names the folder of its corpus.
    pub name: &'static str,
    /// Returns whether something was accepted, so that a corpus can be seen to get somewhere.
    run: fn(&[u8]) -> bool,
    /// How much more than before the call it may hold at any time, whatever the bytes are.
    bytes_max: usize,
    /// How much more for each byte of input.
    bytes_each_max: usize,
    /// Inputs that are accepted, and others that come near to it.
    seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// Runs the target on `bytes`, and returns whether something was accepted.
    ///
    /// # Panics
    ///
    /// If something is wrong with the code under test.
    #[must_use]
    pub fn run(&self, bytes: &[u8]) -> bool {
        ALLOCATED.reset_peak_usage();
        let before = ALLOCATED.current_usage();
        let accepted = (self.run)(bytes);
        let held = ALLOCATED.peak_usage().saturating_sub(before);
        let bound = self.bytes_max + self.bytes_each_max * bytes.len();
        assert!(held <= bound, "{held} bytes held, the bound is {bound}");
        accepted
    }

    /// Where a search begins.
    #[must_use]
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "service",
        run: session::service,
        bytes_max: SESSION_BYTES_MAX,
        bytes_each_max: 8,
        seeds: session::service_seeds,
    },
    Target {
        name: "gateway",
        run: session::gateway,
        bytes_max: SESSION_BYTES_MAX,
        bytes_each_max: 8,
        seeds: session::gateway_seeds,
    },
    Target {
        name: "records",
        run: session::records,
        bytes_max: SESSION_BYTES_MAX,
        bytes_each_max: 8,
        seeds: session::records_seeds,
    },
    Target {
        name: "statement",
        run: sealed::statement,
        bytes_max: SEALED_BYTES_MAX,
        bytes_each_max: 8,
        seeds: sealed::statement_seeds,
    },
    Target {
        name: "header",
        run: sealed::header,
        bytes_max: SEALED_BYTES_MAX,
        bytes_each_max: 8,
        seeds: sealed::header_seeds,
    },
    Target {
        name: "sealed-batch",
        run: sealed::batch,
        bytes_max: SEALED_BYTES_MAX + OPENER_BYTES_MAX,
        bytes_each_max: 8,
        seeds: sealed::batch_seeds,
    },
    Target {
        name: "batch",
        run: messages::batch,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::seeds,
    },
    Target {
        name: "ledger",
        run: messages::ledger,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::seeds,
    },
    Target {
        name: "upload",
        run: messages::upload,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::seeds,
    },
    Target {
        name: "enrolment",
        run: messages::enrolment,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::seeds,
    },
    Target {
        name: "relay",
        run: messages::relay,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::seeds,
    },
    Target {
        name: "ticket",
        run: messages::ticket,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::ticket_seeds,
    },
    Target {
        name: "tpm",
        run: tpm::structures,
        bytes_max: MESSAGE_BYTES_MAX,
        bytes_each_max: 100,
        seeds: messages::seeds,
    },
];

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Two ends of a session with what they say to each other, of which one record is the longest.
const SESSION_BYTES_MAX: usize = 512 * 1024;

/// A statement or header with its keys.
const SEALED_BYTES_MAX: usize = 128 * 1024;

/// `EpochOpener` keeps 65,536 keys, twice while its list grows.
const OPENER_BYTES_MAX: usize = 2 * 65_536 * 50;

/// What a decoder sets aside for a message of no length.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
