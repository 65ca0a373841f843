//! What a service pays for a gateway that begins a session and does not end it. Bytes are exact, so
//! they have bounds; times are not, and are printed: `cargo test --test memory -- --nocapture`.
//!
//! One test, since memory is counted for the whole process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test reports by panicking, and this one by figures, too"
)]

#[path = "session/foreign.rs"]
#[allow(dead_code, reason = "the session's tests use the rest")]
mod foreign;
#[path = "session/net.rs"]
#[allow(dead_code, reason = "the session's tests use the rest")]
mod net;

use std::time::Instant;

use channel::{ResponderConfig, Session, Statement, StaticKey as _};
use peak_alloc::PeakAlloc;

use net::{Key, Side, TestRng, World};

// 20
#[test]
fn ten_thousand_half_open_sessions_keep_few_bytes_each_at_every_stage() {
    let world = World::new();
    let statement = world.newest();
    let (hello, introduction) = honest(&world);
    let almost = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    let stages: [(&str, Vec<Vec<u8>>, usize); 5] = [
        ("nothing said", vec![], 6_000),
        ("preamble but for a byte", vec![almost(&hello[..72])], 6_000),
        ("message 1 but for a byte", vec![almost(&hello)], 9_000),
        ("message 1", vec![hello.clone()], 9_000),
        (
            "message 3 but for a byte",
            vec![hello, almost(&introduction)],
            9_000,
        ),
    ];
    for (stage, said, bytes_max) in stages {
        // The slow stages need no ten thousand for an average.
        let count = if said.is_empty() { 10_000 } else { 500 };
        let before = ALLOCATED.current_usage();
        let mut sessions = Vec::with_capacity(count);
        for _ in 0..count {
            sessions.push(half_open(&world, &statement, &said));
        }
        let each = (ALLOCATED.current_usage() - before) / count;
        println!("{stage}: {each} bytes");
        assert!(each <= bytes_max, "{stage}: {each} bytes");
    }
    print_times(&world, &statement);
}

/// What a service computes before it refuses.
fn print_times(world: &World, statement: &Statement) {
    let (hello, introduction) = honest(world);
    let altered = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let preamble = hello[..72].to_vec();
    let lies = [
        ("bogus preamble", vec![], altered(&preamble)),
        ("true preamble", vec![], preamble.clone()),
        (
            "bogus message 1",
            vec![preamble.clone()],
            altered(&hello[72..]),
        ),
        ("true message 1", vec![preamble], hello[72..].to_vec()),
        ("bogus message 3", vec![hello], altered(&introduction)),
    ];
    for (lie, said, last) in lies {
        let mut sides: Vec<_> = (0..200)
            .map(|_| Side::new(half_open(world, statement, &said), &world.service_key))
            .collect();
        let began = Instant::now();
        for side in &mut sides {
            // The service's ECDH, too, where it is asked for.
            let _ = side.feed(world.start, &last);
        }
        println!("{lie}: {} us", began.elapsed().as_micros() / 200);
    }
}

/// A service that was told this much, and that nobody reads from.
fn half_open(world: &World, statement: &Statement, said: &[Vec<u8>]) -> Session {
    let config = ResponderConfig {
        statement: statement.clone(),
        static_key: world.service_key.public(),
    };
    let session = Session::respond(config, Box::new(TestRng::new(4)), world.start).unwrap();
    let mut side = Side::new(session, &world.service_key);
    for bytes in said {
        side.feed(world.start, bytes).unwrap();
        side.take();
    }
    side.session
}

/// What a gateway says to the service of [`half_open`]: up to message 1, and message 3.
fn honest(world: &World) -> (Vec<u8>, Vec<u8>) {
    let mut gateway = world.gateway(1);
    let hello = gateway.take();
    let config = ResponderConfig {
        statement: world.newest(),
        static_key: world.service_key.public(),
    };
    let session = Session::respond(config, Box::new(TestRng::new(4)), world.start).unwrap();
    let mut service = Side::new(session, &world.service_key);
    assert!(service.key_does == Key::Works);
    service.feed(world.start, &hello).unwrap();
    gateway.feed(world.start, &service.take()).unwrap();
    (hello, gateway.take())
}

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;
