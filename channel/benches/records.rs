//! What a record costs, sealed on one side and opened on the other: through [`channel::Session`],
//! beside the same cipher of `ring` in place, without a session, a type, a length or a copy.
//!
//! Goal: no less than 0.8 of ring's throughput, at every size and with both suites. What would
//! worry us at 64 B is work for each record (allocations, locks), at 64 KiB the cipher or copies.
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
use std::time::Instant;

use channel::{Event, Session, Suite};
use comfy_table::{Table, presets};
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use fixture::{Pair, SUITES, median, rng, seconds};

fn main() {
    let pair = Pair::new();
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "suite",
            "stream bytes\nin a record",
            "ring\nns",
            "session\nns",
            "ring\nMB/s",
            "session\nMB/s",
            "session / ring\n(goal 0.80)",
        ]);
    for (suite, name) in SUITES {
        let (mut gateway, mut service) = pair.open(suite);
        let mut bare = Bare::new(suite);
        for bytes in RECORD_BYTES {
            let mut plaintext = vec![0; bytes];
            rand_core::Rng::fill_bytes(&mut rng(), &mut plaintext);
            let calls = u32::try_from(ROUND_BYTES / (bytes + CALL_BYTES)).unwrap();
            let (mut alone, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                alone.push(seconds(calls, || bare.pass(&plaintext)));
                let together = (TRANSPORT_BYTES / bytes).max(1);
                let rounds = calls.div_ceil(u32::try_from(together).unwrap());
                let round = seconds(rounds, || {
                    pass(&mut gateway, &mut service, &plaintext, together);
                });
                ours.push(round / exact(together));
            }
            let (alone, ours) = (median(alone), median(ours));
            let rate = |seconds: f64| format!("{:.0}", exact(bytes) / seconds / 1e6);
            table.add_row([
                name.to_owned(),
                bytes.to_string(),
                format!("{:.0}", alone * 1e9),
                format!("{:.0}", ours * 1e9),
                rate(alone),
                rate(ours),
                format!("{:.2}", alone / ours),
            ]);
        }
    }
    println!("{table}");
}

/// So many records from the gateway to the service, carried together as a busy link does.
fn pass(gateway: &mut Session, service: &mut Session, plaintext: &[u8], together: usize) {
    let now = Instant::now();
    for _ in 0..together {
        gateway.send(now, plaintext).unwrap();
    }
    service.handle_bytes(now, gateway.transmit()).unwrap();
    gateway.transmitted(gateway.transmit().len());
    for _ in 0..together {
        match service.poll_event() {
            Some(Event::Data(bytes)) => assert_eq!(black_box(bytes).len(), plaintext.len()),
            _ => panic!("a record brings data"),
        }
    }
}

/// The same cipher of ring, with one buffer and a counter.
struct Bare {
    key: LessSafeKey,
    sealed: u64,
    buffer: Vec<u8>,
}

impl Bare {
    fn new(suite: Suite) -> Self {
        let algorithm = match suite {
            Suite::ChaChaPoly => &CHACHA20_POLY1305,
            Suite::AesGcm => &AES_256_GCM,
        };
        Self {
            key: LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).unwrap()),
            sealed: 0,
            buffer: Vec::new(),
        }
    }

    fn pass(&mut self, plaintext: &[u8]) {
        self.buffer.resize(plaintext.len(), 0);
        let nonce = || {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&self.sealed.to_be_bytes());
            Nonce::assume_unique_for_key(nonce)
        };
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(), Aad::empty(), &mut self.buffer);
        let tag = tag.unwrap();
        self.buffer.extend_from_slice(tag.as_ref());
        let opened = self
            .key
            .open_in_place(nonce(), Aad::empty(), &mut self.buffer);
        assert_eq!(black_box(opened.unwrap()).len(), plaintext.len());
        self.sealed += 1;
    }
}

/// What a link writes and reads at once when it is busy.
const TRANSPORT_BYTES: usize = 64 * 1024;

fn exact(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

/// A reading's size, a batch's, and as much as one record holds besides type and tag.
const RECORD_BYTES: [usize; 3] = [64, 1024, 65_535 - 16 - 1];

/// Odd, for a median.
const ROUNDS: u32 = 21;

/// Passed in one round: some 10 ms.
const ROUND_BYTES: usize = 8 * 1024 * 1024;

/// What a call costs beside its bytes, in bytes, so that rounds take about as long at each size.
const CALL_BYTES: usize = 500;
