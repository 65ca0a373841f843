//! A process that seals is killed a thousand times, and its spool rolled back, copied and lost: no
//! key is used twice with one nonce.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use channel::{
    EpochOpener, Header, HeaderSigner, KeyKind, PublicKey, RecordKey, SealedBatch, SigningKey,
    SoftwareSigningKey, Statement, StatementContent, UnsignedHeader,
};
use getrandom::SysRng;
use rand_core::{Rng, UnwrapErr};
use spool::Limits;
use wire::{Class, batch::Batch};

use super::{lane::OpenLane, *};
use crate::fixture::rng;

/// Every batch is told before the spool has it, and opened here: what its cipher added to the
/// plaintext is a function of key and nonce alone, and never comes twice.
#[test]
fn a_thousand_kills_and_rollbacks_never_use_a_key_and_nonce_twice() {
    let seen = std::thread::scope(|scope| {
        // Each with a spool of its own, so that two cores have something to do.
        let lines = [0, 1].map(|_| scope.spawn(|| Lineage::new().live(KILLS / 2)));
        lines.map(|line| line.join().unwrap())
    });
    for line in &seen {
        assert!(
            KILLS / 4 < line.epochs,
            "most lives open an epoch: {line:?}"
        );
        assert!(line.epochs < line.batches, "{line:?}");
        assert!(0 < line.rollbacks && 0 < line.losses, "{line:?}");
        assert!(
            0 < line.forks,
            "a rollback that is none proves nothing: {line:?}"
        );
    }
}

/// What the process does until it is killed.
#[test]
#[ignore = "is run by the test above, in a process of its own"]
fn seal_until_killed() {
    let folder = std::env::var_os("GATEWAYD_TEST_SPOOL").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(seal_for_ever(Path::new(&folder)));
}

async fn seal_for_ever(folder: &Path) {
    let mut secrets = Vec::new();
    std::io::stdin().read_to_end(&mut secrets).unwrap();
    let service = SoftwareSigningKey::from_bytes(&secrets[..32]).unwrap();
    let gateway = PublicKey::parse(&secrets[32..97]).unwrap();
    let record = RecordPublicKey::from_bytes(&secrets[97..]).unwrap();
    let statement = Statement::issue(
        StatementContent {
            serial: 1,
            channel_keys: vec![service.public()],
            record_keys: vec![record],
            online_keys: Vec::new(),
        },
        &service,
    );
    let parties = Parties {
        gateway: Fingerprint::of(KeyKind::GatewayIdentity, gateway.as_bytes()),
        service: Fingerprint::of(KeyKind::ServiceIdentity, service.public().as_bytes()),
        statement: Arc::new(statement.unwrap()),
    };
    let limits = Limits {
        max_bytes: spool::MAX_BYTES_MIN,
        min_free_bytes: 0,
    };
    let clock = Clock::new().unwrap();
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    let run = Run {
        id,
        sensors: Arc::default(),
        clock: clock.clone(),
        spool: Spool::open(folder, limits).unwrap(),
        gateway: watch::Sender::new(Some(parties.gateway)).subscribe(),
        progress: Progress::new(clock),
    };
    let Ok(mut lane) = OpenLane::open(Class::Normal, &parties, &run).await else {
        panic!("no epoch");
    };
    let newest = run.spool.lane(lane.place()).await.unwrap().newest.unwrap();
    let header = run.spool.header(newest.epoch_id).await.unwrap().unwrap();
    let spool::StoredHeader::Unsigned(payload) = header else {
        panic!("nobody signs here");
    };
    tell(&payload);
    let batch = Batch::default();
    loop {
        let Ok(()) = lane.seal(&batch, &[0; 64], Vec::new()) else {
            panic!("not sealed");
        };
        tell(lane.unstored().unwrap());
        let Ok(()) = lane.flush(&run).await else {
            panic!("not stored");
        };
    }
}

/// A message of its length first. A cut one is no batch that anybody has seen.
fn tell(bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    let message = [MARK, &length, bytes].concat();
    std::io::stderr().write_all(&message).unwrap();
}

/// One spool through many lives.
struct Lineage {
    service: SoftwareSigningKey,
    gateway: SoftwareSigningKey,
    record: RecordKey,
    openers: HashMap<[u8; 32], EpochOpener>,
    places: HashSet<([u8; 16], u64)>,
    /// What the cipher added: the first 64 bytes for this key and nonce.
    streams: HashSet<Vec<u8>>,
    folder: tempfile::TempDir,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    epochs: usize,
    batches: usize,
    rollbacks: usize,
    losses: usize,
    forks: usize,
}

impl Lineage {
    fn new() -> Self {
        Self {
            service: SoftwareSigningKey::generate(&mut rng()),
            gateway: SoftwareSigningKey::generate(&mut rng()),
            record: RecordKey::generate(&mut rng()),
            openers: HashMap::new(),
            places: HashSet::new(),
            streams: HashSet::new(),
            folder: tempfile::tempdir().unwrap(),
            seen: Seen::default(),
        }
    }

    fn live(mut self, lives: usize) -> Seen {
        let mut random = UnwrapErr(SysRng);
        let now = self.folder.path().join("now");
        let kept = self.folder.path().join("kept");
        for _ in 0..lives {
            self.one_life(&now, random.next_u32() % 30_000);
            match random.next_u32() % 16 {
                0..4 => copy(&now, &kept),
                4..8 if kept.exists() => {
                    copy(&kept, &now);
                    self.seen.rollbacks += 1;
                }
                8 if now.exists() => {
                    fs::remove_dir_all(&now).unwrap();
                    self.seen.losses += 1;
                }
                _ => {}
            }
        }
        self.seen
    }

    /// Starts the process, kills it after so many microseconds, and looks at what it said.
    fn one_life(&mut self, folder: &Path, microseconds: u32) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--ignored",
                "--nocapture",
                "sealer::kills::seal_until_killed",
            ])
            .env("GATEWAYD_TEST_SPOOL", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut secrets = self.service.to_bytes().to_vec();
        secrets.extend(self.gateway.public().as_bytes());
        secrets.extend(self.record.public().to_bytes());
        child.stdin.take().unwrap().write_all(&secrets).unwrap();
        // The moment is random on purpose: in starting, sealing, appending, or between them. A
        // third of the lives is let go until the first word, however slow the machine is.
        let mut said = Vec::new();
        let mut output = child.stderr.take().unwrap();
        if !microseconds.is_multiple_of(3) {
            let mut first = [0; 1];
            if output.read(&mut first).unwrap() == 1 {
                said.push(first[0]);
            }
        }
        std::thread::sleep(Duration::from_micros(microseconds.into()));
        child.kill().unwrap();
        output.read_to_end(&mut said).unwrap();
        child.wait().unwrap();
        self.hear(&said);
    }

    fn hear(&mut self, mut said: &[u8]) {
        let mut header = true;
        while let Some(rest) = said.strip_prefix(MARK) {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return;
            };
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
            let Some((message, rest)) = rest.split_at_checked(length) else {
                return;
            };
            if std::mem::take(&mut header) {
                self.hear_header(message);
            } else {
                self.hear_batch(message);
            }
            said = rest;
        }
        assert!(said.is_empty(), "{}", String::from_utf8_lossy(said));
    }

    fn hear_header(&mut self, payload: &[u8]) {
        let header = UnsignedHeader::from_payload(payload).unwrap();
        let digest = header.digest(HeaderSigner::Own);
        let signing = self.gateway.sign(digest);
        let signature = futures::executor::block_on(signing).unwrap();
        let pin = Fingerprint::of(KeyKind::ServiceIdentity, self.service.public().as_bytes());
        let header =
            Header::verify(&header.finish(signature), &self.gateway.public(), &pin).unwrap();
        let opener = EpochOpener::new(&header, &self.record).unwrap();
        assert!(
            self.openers.insert(header.epoch_id(), opener).is_none(),
            "an epoch twice"
        );
        let place = (header.terms().chain_id, header.terms().index);
        self.seen.forks += usize::from(!self.places.insert(place));
        self.seen.epochs += 1;
    }

    fn hear_batch(&mut self, bytes: &[u8]) {
        let sealed = SealedBatch::decode(bytes).unwrap();
        let opener = self.openers.get_mut(&sealed.epoch_id).unwrap();
        assert_eq!(opener.open(&sealed).unwrap()[..], [0; 64]);
        // The plaintext is zeros, so this is the stream itself.
        let stream = sealed.ciphertext[..64].to_vec();
        assert!(self.streams.insert(stream), "a key and nonce twice");
        self.seen.batches += 1;
    }
}

/// A spool's files as they lie there, log and all.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let Ok(files) = fs::read_dir(from) else {
        return;
    };
    fs::create_dir(to).unwrap();
    for file in files {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

const KILLS: usize = 1000;

/// Before each message, so that what the test harness prints is told from it.
const MARK: &[u8] = b"\0sealed\0";
