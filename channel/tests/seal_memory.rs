//! What is left of keys and plaintext in the memory of a process that seals, looked at from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod fixture;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use channel::{Epoch, EpochClock, EpochTerms, Fingerprint, KeyKind, Previous, RecordPublicKey};
use fixture::{ListedRng, rng, vector};
use rand_core::{TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

/// The keys of the vectors are looked for, so the test knows them and the process does not: it
/// computes them from randomness that it is sent.
#[test]
fn neither_key_nor_plaintext_is_in_the_process_after_its_batch_or_epoch() {
    let mut process = Process::start();
    process.send(&vector("xwing_randomness"));
    process.await_line("open");
    let keys = |number: u32| {
        let of = |kind: &str| {
            (
                format!("{kind}_{number}"),
                vector(&format!("{kind}_{number}")),
            )
        };
        [of("chain_key"), of("batch_key")]
    };
    let [chain_key_0, batch_key_0] = keys(0);
    let randomness = vector("xwing_randomness");
    let plaintext = (0..PLAINTEXT_BYTES).map(plain_byte).collect::<Vec<u8>>();
    let past = |more: &[&(String, Vec<u8>)]| {
        let mut wanted = vec![
            ("randomness of ML-KEM".to_owned(), randomness[..32].to_vec()),
            ("randomness of X25519".to_owned(), randomness[32..].to_vec()),
            ("plaintext".to_owned(), plaintext[..64].to_vec()),
        ];
        wanted.extend(more.iter().map(|&key| key.clone()));
        wanted
    };

    // The search would find it: the open epoch has its key, once, in words that are not moved.
    let image = process.image();
    assert_eq!(
        found(&image, std::slice::from_ref(&chain_key_0)),
        ["chain_key_0"]
    );
    assert_eq!(found(&image, &past(&[&batch_key_0])), [""; 0]);

    // The plaintext is the caller's until it is sealed.
    process.go_on();
    process.await_line("holding");
    let image = process.image();
    assert_eq!(found(&image, &past(&[])), ["plaintext"]);

    process.go_on();
    process.await_line("sealed");
    let [chain_key_1, batch_key_1] = keys(1);
    let image = process.image();
    assert_eq!(
        found(&image, std::slice::from_ref(&chain_key_1)),
        ["chain_key_1"]
    );
    assert_eq!(
        found(&image, &past(&[&chain_key_0, &batch_key_0, &batch_key_1])),
        [""; 0]
    );

    process.go_on();
    process.await_line("ended");
    let image = process.image();
    let [chain_key_2, batch_key_2] = keys(2);
    let all = [
        &chain_key_0,
        &batch_key_0,
        &chain_key_1,
        &batch_key_1,
        &chain_key_2,
        &batch_key_2,
    ];
    assert_eq!(found(&image, &past(&all)), [""; 0]);
    // And it is the epoch of the vectors that was there.
    let id = ("epoch id".to_owned(), vector("epoch_id"));
    assert_eq!(found(&image, &[id]), ["epoch id"]);
}

/// What the process does.
#[test]
#[ignore = "is run by the test above, in a process of its own"]
fn seal_in_a_process_that_is_looked_at() {
    // Neither side of a pipe buffers, so that what is read is where it is meant to be, and only there.
    let mut input = File::open("/dev/stdin").unwrap();
    let (mut epoch, _) = Epoch::open(
        terms(),
        &RecordPublicKey::from_bytes(&vector("xwing_public")).unwrap(),
        &mut PipeRng(&mut input),
    )
    .unwrap();
    let id = epoch.id();
    say("open");
    wait(&mut input);
    let mut plaintext: Vec<u8> = (0..PLAINTEXT_BYTES).map(plain_byte).collect();
    say("holding");
    wait(&mut input);
    let batch = epoch.seal(&plaintext).unwrap();
    // As the caller has to.
    plaintext.zeroize();
    say("sealed");
    wait(&mut input);
    drop(epoch);
    say("ended");
    wait(&mut input);
    // What may be kept is kept to the end.
    assert_eq!(batch.epoch_id, id);
}

fn say(line: &str) {
    // Past the capture of the test harness.
    let mut output = File::options().write(true).open("/dev/stdout").unwrap();
    writeln!(output, "\nprocess: {line}").unwrap();
}

fn wait(input: &mut File) {
    input.read_exact(&mut [0]).unwrap();
}

/// Not in the program's image: it is computed.
fn plain_byte(place: u32) -> u8 {
    Sha256::digest(place.to_be_bytes())[7]
}

/// The terms of the vectors.
fn terms() -> EpochTerms {
    let counted = |from: u8| -> [u8; 16] { Vec::from_iter(from..from + 16).try_into().unwrap() };
    EpochTerms {
        gateway: Fingerprint::of(KeyKind::GatewayIdentity, &vector("identity_public")),
        service: Fingerprint::of(KeyKind::ServiceIdentity, &vector("service_public")),
        class: 1,
        chain_id: counted(0x50),
        index: 1000,
        run_id: counted(0x70),
        previous: Some(Previous {
            epoch_id: [0x81; 32],
            count: 65_536,
            head: [0x83; 32],
            clean: false,
        }),
        opened: EpochClock {
            boot_id: counted(0xA0),
            boottime_ms: 123_456_789,
            wall_ms: -1,
            clock: 1,
        },
    }
}

/// Randomness that the process is sent; it goes where it is wanted and nowhere else.
struct PipeRng<'a>(&'a mut File);

impl TryRng for PipeRng<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("keys are made of bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("keys are made of bytes")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.read_exact(bytes).unwrap();
        Ok(())
    }
}

impl TryCryptoRng for PipeRng<'_> {}

/// The process, and both pipes to it.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--ignored",
                "--nocapture",
                "seal_in_a_process_that_is_looked_at",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
    }

    fn go_on(&mut self) {
        self.send(b"\n");
    }

    fn await_line(&mut self, expected: &str) {
        for line in self.output.by_ref().lines() {
            if let Some(said) = line.unwrap().strip_prefix("process: ") {
                assert_eq!(said, expected);
                return;
            }
        }
        panic!("the process ended before it said {expected:?}");
    }

    /// All memory that the process can write: heap, stacks of all threads, globals.
    fn image(&self) -> Vec<Vec<u8>> {
        let id = self.child.id();
        let maps = fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
        let mut memory = File::open(format!("/proc/{id}/mem")).unwrap();
        let mut image = Vec::new();
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, mode) = (words.next().unwrap(), words.next().unwrap());
            if !mode.starts_with("rw") {
                continue;
            }
            let (begin, end) = range.split_once('-').unwrap();
            let [begin, end] = [begin, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            memory.seek(SeekFrom::Start(begin)).unwrap();
            let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
            memory.read_exact(&mut bytes).unwrap();
            image.push(bytes);
        }
        assert!(image.len() > 3, "heap, stack and globals at least");
        image
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The names of those that are in the image. Half of one, in a register or a word that was spilled,
/// is one too.
fn found(image: &[Vec<u8>], wanted: &[(String, Vec<u8>)]) -> Vec<String> {
    let is_there = |secret: &[u8]| {
        secret.chunks(16).any(|half| {
            image
                .iter()
                .any(|bytes| bytes.windows(half.len()).any(|window| window == half))
        })
    };
    let there = wanted.iter().filter(|(_, secret)| is_there(secret));
    there.map(|(name, _)| name.clone()).collect()
}

const PLAINTEXT_BYTES: u32 = 5000;

#[test]
fn the_search_finds_half_of_a_secret() {
    let secret = ("secret".to_owned(), rng(1).0[..32].to_vec());
    let image = [vec![0; 7], [&[9; 5], &secret.1[16..], &[9; 3]].concat()];
    assert_eq!(found(&image, &[secret]), ["secret"]);
    assert_eq!(
        found(&image, &[("other".to_owned(), ListedRng(vec![8; 32]).0)]),
        [""; 0]
    );
}
