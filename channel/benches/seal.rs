//! What a batch costs: sealing it on the gateway and opening it at the service, beside the bare
//! cipher over the same bytes in the same run.
//!
//! What would worry us: a ratio to the bare cipher above 3 for sealing a thousand readings, or one
//! that grows; the rest is the chain's SHA-256 over the ciphertext, two or three HMACs, and copying.
//! `docs/benches.md` keeps the figures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench reports by panicking, and on standard output"
)]

#[path = "../tests/fixture/mod.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod fixture;

use std::hint::black_box;
use std::time::Instant;

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use channel::{
    Epoch, EpochClock, EpochOpener, EpochTerms, Fingerprint, Header, KeyKind, RecordKey,
    SealedBatch, SigningKey, SoftwareSigningKey, UnsignedHeader,
};
use fixture::{rng, vector};

fn main() {
    println!("batch             bytes    bare      seal             open");
    for (name, bytes) in [
        ("1 reading", READING_BYTES),
        ("100 readings", 100 * READING_BYTES),
        ("1000 readings", 1000 * READING_BYTES),
        ("the largest", channel::BATCH_PLAINTEXT_BYTES_MAX),
    ] {
        measure(name, bytes);
    }
    let (pair, plaintext) = (Pair::new(), vec![7; READING_BYTES]);
    let open = median(200, || {
        black_box(pair.epoch());
    });
    let (mut epoch, header) = pair.epoch();
    let header = pair.verify(&header);
    let batch = epoch.seal(&plaintext).unwrap();
    let accept = median(200, || {
        let mut opener = EpochOpener::new(&header, &pair.record).unwrap();
        black_box(opener.open(&batch).unwrap());
    });
    println!("an epoch: {open:.0} us to open it on the gateway, {accept:.0} us at the service");
}

fn measure(name: &str, bytes: usize) {
    let pair = Pair::new();
    let (mut epoch, header) = pair.epoch();
    let header = pair.verify(&header);
    let mut opener = EpochOpener::new(&header, &pair.record).unwrap();
    let plaintext = vec![7; bytes];
    let rounds = (64 * 1024 * 1024 / (bytes + 4096)).clamp(50, 2000);

    let cipher = ChaCha20Poly1305::new(&[3; 32].into());
    let mut buffer = Vec::with_capacity(bytes + 16);
    let bare = median(rounds, || {
        buffer.clear();
        buffer.extend_from_slice(&plaintext);
        cipher
            .encrypt_in_place(&Nonce::default(), b"", &mut buffer)
            .unwrap();
        black_box(&buffer);
    });
    let mut batches = Vec::new();
    let seal = median(rounds.min(200), || {
        batches.push(epoch.seal(&plaintext).unwrap());
    });
    let mut sealed = batches.iter().cycle();
    let open = median(rounds.min(200), || {
        let batch: &SealedBatch = sealed.next().unwrap();
        black_box(opener.open(batch).unwrap());
    });
    let rate = |us: f64| bytes as f64 / us;
    println!(
        "{name:<14} {bytes:>8} {bare:>7.1} us {seal:>7.1} us {:>5.0} MB/s ({:.2}) {open:>7.1} us {:>5.0} MB/s ({:.2})",
        rate(seal),
        seal / bare,
        rate(open),
        open / bare
    );
}

/// Microseconds.
fn median(rounds: usize, mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Pair {
    identity: SoftwareSigningKey,
    record: RecordKey,
    service: Fingerprint,
}

impl Pair {
    fn new() -> Self {
        Self {
            identity: SoftwareSigningKey::generate(&mut rng(1)),
            record: RecordKey::from_bytes(&vector("xwing_seed")).unwrap(),
            service: Fingerprint::new(KeyKind::ServiceIdentity, [7; 32]),
        }
    }

    fn epoch(&self) -> (Epoch, UnsignedHeader) {
        let terms = EpochTerms {
            gateway: Fingerprint::of(KeyKind::GatewayIdentity, self.identity.public().as_bytes()),
            service: self.service,
            class: 1,
            chain_id: [1; 16],
            index: 0,
            run_id: [2; 16],
            previous: None,
            opened: EpochClock {
                boot_id: [3; 16],
                boottime_ms: 4,
                wall_ms: 5,
                clock: 0,
            },
        };
        Epoch::open(terms, &self.record.public(), &mut rng(2)).unwrap()
    }

    fn verify(&self, header: &UnsignedHeader) -> Header {
        use coset::{CborSerializable as _, CoseSign1Builder, HeaderBuilder, iana};
        let protected = HeaderBuilder::new().algorithm(iana::Algorithm::ES256);
        let signed = CoseSign1Builder::new()
            .protected(protected.build())
            .payload(header.payload().to_vec())
            .create_signature(b"gatewayd/1 epoch", |message| {
                self.identity.sign_now(message).to_vec()
            })
            .build();
        let signed = signed.to_vec().unwrap();
        Header::verify(&signed, &self.identity.public(), &self.service).unwrap()
    }
}

/// A reading of one channel in a batch, as `wire` encodes it, with decimal, unit and all numbers.
const READING_BYTES: usize = 92;
