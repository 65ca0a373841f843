//! How many handshakes a core makes in a second, both sides in one thread with software keys,
//! beside the same core's key exchanges (a key made, and one ECDH) on P-256 with `p256`, which the
//! channel uses, and with `ring`, which is the fastest at hand.
//!
//! A handshake has two such exchanges and four more ECDH, which comes to five exchanges. What would
//! worry us: a handshake that costs more than six of `p256`, since the rest (ML-KEM-768, hashes,
//! ciphers) should be small beside them.
//! `docs/benches.md` keeps the figures.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench reports by panicking, and on standard output"
)]

mod fixture;

use std::hint::black_box;

use channel::{SoftwareStaticKey, StaticKey as _};
use comfy_table::{Table, presets};
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::SystemRandom;

use fixture::{Pair, SUITES, median, rng, seconds};

fn main() {
    let pair = Pair::new();
    let peer = SoftwareStaticKey::generate(&mut rng()).public();
    let random = SystemRandom::new();

    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let [p256, ring, handshakes @ ..] = &mut times;
        p256.push(seconds(CALLS, || {
            let key = SoftwareStaticKey::generate(&mut rng());
            black_box(key.ecdh_now(&peer).unwrap());
        }));
        ring.push(seconds(CALLS, || {
            let key = EphemeralPrivateKey::generate(&ECDH_P256, &random).unwrap();
            black_box(key.compute_public_key().unwrap());
            let peer = UnparsedPublicKey::new(&ECDH_P256, peer.as_bytes());
            agree_ephemeral(key, &peer, |secret| black_box(secret[0])).unwrap();
        }));
        for (times, (suite, _)) in handshakes.iter_mut().zip(SUITES) {
            times.push(seconds(CALLS, || drop(black_box(pair.open(suite)))));
        }
    }

    let [p256, ring, handshakes @ ..] = times.map(median);
    let names = SUITES.map(|(_, name)| format!("handshake, {name}"));
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "both sides, one core",
            "us",
            "in a second",
            "exchanges of p256\n(goal: 6 at most)",
            "exchanges of ring",
        ]);
    let row = |name: &str, time: f64| {
        [
            name.to_owned(),
            format!("{:.0}", time * 1e6),
            format!("{:.0}", 1.0 / time),
            format!("{:.1}", time / p256),
            format!("{:.1}", time / ring),
        ]
    };
    table.add_row(row("key exchange, p256", p256));
    table.add_row(row("key exchange, ring", ring));
    for (name, time) in names.iter().zip(handshakes) {
        table.add_row(row(name, time));
    }
    println!("{table}");
}

/// Odd, for a median.
const ROUNDS: u32 = 11;

/// Of each kind in a round: for the handshakes some 50 ms.
const CALLS: u32 = 40;
