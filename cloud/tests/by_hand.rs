//! What somebody carried to the service in a file is stored as if it had come over a session.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::{convert::Infallible, fs, path::PathBuf, time::Duration};

use channel::{Epoch, HeaderSigner, SealedBatch, SigningKey};
use cloud::{
    by_hand::{self, Desk, Report},
    keys::{self, Which},
};
use rand_core::{TryCryptoRng, TryRng};
use support::{
    Cloud, REGISTRY,
    gateway::{Gateway, Lane, cloud_and_gateway, one_reading},
};
use tempfile::TempDir;
use wire::carried::{Label, Piece};
use wire::upload::ToService;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_stored_once_and_a_later_ack_covers_it() {
    let (cloud, gateway) = announced().await;
    let mut lane = gateway.lane(&cloud).await;
    let batches: Vec<_> = (0..5).map(|n| lane.seal(&one_reading(n))).collect();
    let file = Carried::of(&cloud, &gateway, &[(&lane, &batches)]);

    let report = file.open(&cloud).unwrap();
    assert!(report.is_clean(), "{}", text(&report));
    assert_eq!((report.new, report.known), (5, 0));
    let report = file.open(&cloud).unwrap();
    assert!(report.is_clean());
    assert_eq!((report.new, report.known), (0, 5));
    assert_eq!(readings(&cloud), 5);

    // The gateway, which has not heard of it, sends the first of them over its session.
    let mut uplink = gateway.uplink(&cloud).await;
    let known = uplink.hello().await;
    assert_eq!((known[0].epoch_id, known[0].next), (lane.epoch.id(), 5));
    uplink.send(&lane.header()).await;
    uplink.send(&ToService::Batch(batches[0].encode())).await;
    assert_eq!(uplink.answer().await, lane.ack(5));
    assert_eq!(readings(&cloud), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_come_in_any_order_the_last_first() {
    let (cloud, gateway) = announced().await;
    let mut lane = gateway.lane(&cloud).await;
    let mut batches: Vec<_> = (0..6).map(|n| lane.seal(&one_reading(n))).collect();
    batches.reverse();

    let report = Carried::of(&cloud, &gateway, &[(&lane, &batches)])
        .open(&cloud)
        .unwrap();

    assert!(report.is_clean());
    assert_eq!(report.new, 6);
    let order: String = cloud.reading(
        "SELECT group_concat(sequence, ' ') FROM (SELECT sequence FROM readings ORDER BY number)",
    );
    assert_eq!(order, "0 1 2 3 4 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_and_forks_are_told_exactly_until_they_are_filled() {
    let (cloud, gateway) = announced().await;
    let mut first = gateway.lane(&cloud).await;
    let batches: Vec<_> = (0..9).map(|n| first.seal(&one_reading(n))).collect();
    let terms = gateway.terms(&cloud, 1, Some(first.previous()));
    let mut never = gateway.lane_of(terms, &cloud.record_key()).await;
    let late: Vec<_> = (9..12).map(|n| never.seal(&one_reading(n))).collect();
    let terms = gateway.terms(&cloud, 2, Some(never.previous()));
    let mut third = gateway.lane_of(terms.clone(), &cloud.record_key()).await;
    let last = [third.seal(&one_reading(12))];
    let rival = gateway.lane_of(terms, &cloud.record_key()).await;
    let parts = [
        batches[..2].to_vec(),
        batches[3..4].to_vec(),
        batches[8..].to_vec(),
    ];

    let report = Carried::of(
        &cloud,
        &gateway,
        &[(&first, &parts.concat()), (&third, &last), (&rival, &[])],
    )
    .open(&cloud)
    .unwrap();

    // The end of the first epoch is not known, as the header that says it never came.
    let told = text(&report);
    assert!(
        told.contains("missing from greenhouse-7, normal, epoch 1: batches 0 to 2\n"),
        "{told}"
    );
    assert!(
        told.contains("fork of greenhouse-7, normal, place 2: 2 epochs"),
        "{told}"
    );
    assert!(!told.contains("epoch 0"), "{told}");

    let report = Carried::of(&cloud, &gateway, &[(&never, &late)])
        .open(&cloud)
        .unwrap();
    let told = text(&report);
    assert!(
        told.contains("missing from greenhouse-7, normal, epoch 0: batches 2, 4 to 7\n"),
        "{told}"
    );
    assert!(!told.contains("epoch 1"), "{told}");

    let report = Carried::of(&cloud, &gateway, &[(&first, &batches)])
        .open(&cloud)
        .unwrap();
    assert_eq!((report.new, report.known), (5, 4));
    assert!(!text(&report).contains("missing"), "{}", text(&report));
    assert_eq!(readings(&cloud), 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_costs_the_batches_it_hits_and_no_other() {
    let (cloud, gateway) = announced().await;
    let mut lane = gateway.lane(&cloud).await;
    let batches: Vec<_> = (0..4).map(|n| lane.seal(&one_reading(n))).collect();
    let file = Carried::of(&cloud, &gateway, &[(&lane, &batches)]);
    let whole = fs::read(&file.path).unwrap();
    let at = |batch: &SealedBatch| {
        let bytes = batch.encode();
        let found = whole
            .windows(bytes.len())
            .position(|window| window == bytes);
        found.unwrap()
    };

    let mut flipped = whole.clone();
    flipped[at(&batches[1]) + 60] ^= 4;
    fs::write(&file.path, flipped).unwrap();
    let report = file.open(&cloud).unwrap();
    assert_eq!(report.new, 3);
    let told = text(&report);
    assert!(told.contains("are damaged"), "{told}");
    assert!(
        told.contains("1 of 6 headers and batches are missing"),
        "{told}"
    );
    assert!(!report.is_clean());

    // Cut in the third batch. The second is whole in this copy.
    fs::write(&file.path, &whole[..at(&batches[2]) + 10]).unwrap();
    let report = file.open(&cloud).unwrap();
    assert_eq!((report.new, report.known), (1, 1));
    assert!(text(&report).contains("the file was cut"));

    // Without its header, a batch is opened by the one that is stored.
    let header = file.pieces[1].encode();
    let found = whole
        .windows(header.len())
        .position(|window| window == header);
    let mut headless = whole.clone();
    headless[found.unwrap() + 20] ^= 1;
    fs::write(&file.path, headless).unwrap();
    let report = file.open(&cloud).unwrap();
    assert_eq!((report.new, report.known), (0, 4));
    assert_eq!(readings(&cloud), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_none_or_for_another_service_stores_nothing_and_says_so() {
    let (cloud, gateway) = announced().await;
    let (other, there) = announced().await;
    let mut lane = there.lane(&other).await;
    let batches = [lane.seal(&one_reading(0))];
    let foreign = Carried::of(&other, &there, &[(&lane, &batches)]);
    let error = format!("{:#}", foreign.open(&cloud).unwrap_err());
    assert!(error.contains("is for another service, sv-"), "{error}");

    // Even with a label that lies.
    let mut pieces = foreign.pieces.clone();
    pieces[0] = label(&cloud, &gateway);
    let report = Carried::new(pieces).open(&cloud).unwrap();
    assert!(
        text(&report).contains("not enrolled here: gi-"),
        "{}",
        text(&report)
    );

    for bytes in [b"".as_slice(), b"holiday pictures", &[0xD9; 5000]] {
        fs::write(&foreign.path, bytes).unwrap();
        let error = foreign.open(&cloud).unwrap_err().to_string();
        assert!(
            error.contains("no file of gatewayctl spool export"),
            "{error}"
        );
    }
    let other_version = Carried::new(vec![Piece::OtherVersion]);
    let error = other_version.open(&cloud).unwrap_err().to_string();
    assert!(error.contains("update gateway-cloud"), "{error}");
    assert_eq!(readings(&cloud), 0);
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM epoch"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_revoked_gateway_signed_goes_to_quarantine_whatever_time_it_claims() {
    let (cloud, gateway) = announced().await;
    for (state, new) in [("revoked", 0), ("suspended", 0), ("retired", 1)] {
        cloud.change(REGISTRY, &format!("UPDATE gateway SET state = '{state}'"));
        let mut terms = gateway.terms(&cloud, 0, None);
        // Long before it was revoked.
        terms.opened.wall_ms = 1;
        let mut lane = gateway.lane_of(terms, &cloud.record_key()).await;
        let batches = [lane.seal(&one_reading(0))];
        let file = Carried::of(&cloud, &gateway, &[(&lane, &batches)]);

        let report = file.open(&cloud).unwrap();

        assert_eq!(report.new, new, "{state}");
        assert_eq!(report.in_quarantine(), 1 - new, "{state}");
        let kept: Vec<u8> = if new == 0 {
            let sealed: Vec<u8> = cloud.reading(&format!(
                "SELECT sealed FROM quarantine WHERE number = 0 AND reason = '{state}'"
            ));
            sealed
        } else {
            batches[0].encode()
        };
        assert_eq!(kept, batches[0].encode());
    }
    assert_eq!(readings(&cloud), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_no_session_announced_stays_in_quarantine_until_one_does() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let batches = [lane.seal(&one_reading(0)), lane.seal(&one_reading(1))];
    let file = Carried::of(&cloud, &gateway, &[(&lane, &batches)]);

    let report = file.open(&cloud).unwrap();
    assert_eq!((report.new, report.in_quarantine()), (0, 2));
    assert!(text(&report).contains("no session of the gateway announced this chain"));
    assert_eq!(readings(&cloud), 0);
    let held: String = cloud.reading(
        "SELECT group_concat(concat_ws(' ', number, reason), '|')
         FROM (SELECT * FROM quarantine ORDER BY number)",
    );
    assert_eq!(held, "-1 unannounced|0 unannounced|1 unannounced");
    // Twice is once.
    file.open(&cloud).unwrap();
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM quarantine"), 3);

    gateway.uplink(&cloud).await.hello().await;
    let report = file.open(&cloud).unwrap();
    assert!(report.is_clean(), "{}", text(&report));
    assert_eq!(report.new, 2);
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM quarantine"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_epochs_open_with_a_rotated_record_key_for_as_long_as_it_is_kept() {
    let (cloud, gateway) = announced().await;
    let mut late = gateway.lane(&cloud).await;
    let late_batches = [late.seal(&one_reading(0))];
    let overlap = Duration::from_secs(86_400);
    let rotation = keys::rotate(cloud.folder(), Which::Record, None, overlap).unwrap();
    let cloud = cloud.restart().await;
    assert_eq!(Some(cloud.record_key().fingerprint()), rotation.key);
    let terms = gateway.terms(&cloud, 1, Some(late.previous()));
    let mut lane = gateway.lane_of(terms, &cloud.record_key()).await;
    let batches = [lane.seal(&one_reading(1))];

    let both = Carried::of(
        &cloud,
        &gateway,
        &[(&late, &late_batches), (&lane, &batches)],
    );
    let report = both.open(&cloud).unwrap();
    assert!(report.is_clean(), "{}", text(&report));
    assert_eq!(report.new, 2);

    // The old half is destroyed: what is sealed to it opens for nobody, and all else does.
    fs::remove_file(cloud.folder().join("keys/record.key")).unwrap();
    let cloud = cloud.restart().await;
    let lost = [late.seal(&one_reading(2))];
    let report = Carried::of(&cloud, &gateway, &[(&late, &lost), (&lane, &batches)])
        .open(&cloud)
        .unwrap();
    assert_eq!((report.new, report.known), (0, 1));
    let told = text(&report);
    assert!(
        told.contains("sealed to a record key that is gone: rk-"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_forged_with_the_record_key_in_a_closed_epoch_is_set_aside_and_stores_nothing() {
    let (cloud, gateway) = announced().await;
    // Whoever has the record key has the epoch's key too. The same randomness stands for that: it
    // gives a second copy of the epoch, which seals under the same keys.
    let terms = gateway.terms(&cloud, 0, None);
    let open = || Epoch::open(terms.clone(), &cloud.record_key(), &mut Counter(0)).unwrap();
    let (mut forger, _) = open();
    let (epoch, unsigned) = open();
    let digest = unsigned.digest(HeaderSigner::Own);
    let signature = gateway.identity.sign(digest).await.unwrap();
    let mut lane = Lane {
        epoch,
        header: unsigned.finish(signature),
    };
    let genuine = [lane.seal(&one_reading(0)), lane.seal(&one_reading(1))];
    let terms = gateway.terms(&cloud, 1, Some(lane.previous()));
    let next = gateway.lane_of(terms, &cloud.record_key()).await;
    let whole = Carried::of(&cloud, &gateway, &[(&lane, &genuine), (&next, &[])]);
    assert!(whole.open(&cloud).unwrap().is_clean());

    let forged = forger.seal(&one_reading(77).encode()).unwrap();
    assert_eq!((forged.epoch_id, forged.number), (lane.epoch.id(), 0));
    let report = Carried::of(&cloud, &gateway, &[(&lane, std::slice::from_ref(&forged))])
        .open(&cloud)
        .unwrap();

    assert_eq!((report.new, report.in_quarantine()), (0, 1));
    assert!(text(&report).contains("somebody else holds the epoch's key"));
    let kept: Vec<u8> = cloud.reading("SELECT sealed FROM quarantine WHERE reason = 'conflict'");
    assert_eq!(kept, forged.encode());
    let sequences: String = cloud.reading("SELECT group_concat(sequence) FROM readings");
    assert_eq!(sequences, "0,1");
}

/// Counts, in the place of randomness.
struct Counter(u8);

impl TryRng for Counter {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0 = self.0.wrapping_add(1);
        Ok(self.0.into())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(1);
        Ok(self.0.into())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            self.0 = self.0.wrapping_add(1);
            *byte = self.0;
        }
        Ok(())
    }
}

impl TryCryptoRng for Counter {}

/// A service to which the gateway has announced its chain.
async fn announced() -> (Cloud, Gateway) {
    let (cloud, gateway) = cloud_and_gateway().await;
    gateway.uplink(&cloud).await.hello().await;
    (cloud, gateway)
}

fn readings(cloud: &Cloud) -> u64 {
    cloud.reading("SELECT count(*) FROM readings")
}

/// What a person reads of a report.
fn text(report: &Report) -> String {
    let (mut out, mut prose) = (Vec::new(), Vec::new());
    let path = PathBuf::from("stick.sealed");
    report.print(&path, &mut out, &mut prose).unwrap();
    String::from_utf8([out, prose].concat()).unwrap()
}

/// A file on a stick.
struct Carried {
    pieces: Vec<Piece>,
    path: PathBuf,
    _folder: TempDir,
}

impl Carried {
    fn of(cloud: &Cloud, gateway: &Gateway, lanes: &[(&Lane, &[SealedBatch])]) -> Self {
        let mut pieces = vec![label(cloud, gateway)];
        for (lane, batches) in lanes {
            pieces.push(Piece::Header(lane.header.clone()));
            let encoded = batches.iter().map(SealedBatch::encode);
            pieces.extend(encoded.map(Piece::Batch));
        }
        let end = Piece::End {
            pieces: pieces.len() as u64,
        };
        pieces.push(end);
        Self::new(pieces)
    }

    fn new(pieces: Vec<Piece>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stick.sealed");
        let bytes: Vec<u8> = pieces.iter().flat_map(Piece::encode).collect();
        fs::write(&path, bytes).unwrap();
        Self {
            pieces,
            path,
            _folder: folder,
        }
    }

    fn open(&self, cloud: &Cloud) -> anyhow::Result<Report> {
        let desk = Desk {
            keys: &cloud.keys,
            registry: &cloud.registry,
            sink: &cloud.sink,
        };
        by_hand::open(&self.path, &desk)
    }
}

fn label(cloud: &Cloud, gateway: &Gateway) -> Piece {
    Piece::Label(Label {
        gateway: *gateway.fingerprint().bytes(),
        service: *cloud.fingerprint().bytes(),
    })
}
