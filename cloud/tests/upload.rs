//! A service takes batches: what it acknowledges is committed, once, and exactly as it was sealed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use channel::{
    Admission, Epoch, Fingerprint, HeaderSigner, KeyKind, Purpose, RecordKey, SigningKey,
    SoftwareStaticKey,
};
use cloud::sink::{OpenedBatch, Stored};
use link::{LinkError, StreamName};
use sha2::{Digest, Sha256};
use support::{
    PATIENCE, READINGS, REGISTRY,
    gateway::{CHAIN, Gateway, RUN, cloud_and_gateway, one_reading, reading},
    rng,
};
use tokio::time::timeout;
use wire::{
    Class, Decimal, Value,
    batch::{Batch, LedgerEntry, LossReason, LostBatches, RunEvent, Tally},
    upload::{LaneKnown, ProblemCode, ToService},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_committed_value_by_value() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let mut uplink = gateway.uplink(&cloud).await;
    assert_eq!(uplink.hello().await, []);
    let values = [
        Value::Decimal(Decimal::parse("21.370").unwrap()),
        Value::Decimal(Decimal::parse("0.1").unwrap()),
        Value::Integer(i64::MIN),
        Value::Float(-0.5),
        Value::Bool(true),
        Value::Text("öffen".into()),
        Value::Bytes(vec![0, 255]),
        Value::Null,
    ];
    let batch = Batch {
        readings: (0..).zip(values).map(|(n, v)| reading(n, v)).collect(),
        ..Batch::default()
    };

    uplink.send(&lane.header()).await;
    uplink.send(&lane.sealed(&batch)).await;

    assert_eq!(uplink.answer().await, lane.ack(1));
    let rows: String = cloud.reading(
        "SELECT group_concat(concat_ws(' ', sequence, typeof(value), value, exact), '|'
            ORDER BY sequence) FROM readings WHERE sequence NOT IN (6)",
    );
    assert_eq!(
        rows,
        "0 real 21.37 21.37|1 real 0.1 0.1|2 integer -9223372036854775808|3 real -0.5\
         |4 integer 1|5 text öffen|7 null"
    );
    let bytes: Vec<u8> = cloud.reading("SELECT value FROM readings WHERE sequence = 6");
    assert_eq!(bytes, [0, 255]);
    let rest: String = cloud.reading(
        "SELECT concat_ws(' ', gateway, sensor, channel, unit, quality, time_ms, clock,
            boottime_ms, hex(run_id), sensor_number, number, row)
         FROM readings WHERE sequence = 3",
    );
    assert_eq!(
        rest,
        format!(
            "greenhouse-7 climate temperature Cel out_of_range 1700000000003 corrected 5003 \
             {} 4 0 3",
            "07".repeat(16)
        )
    );
    assert!(
        cloud
            .registered::<Option<i64>>("SELECT ack_ms FROM gateway")
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_ack_was_lost_is_acknowledged_and_not_stored_again() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let batch = lane.sealed(&one_reading(0));
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&batch).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
    uplink.session.cut();

    let cloud = cloud.restart().await;
    let mut uplink = gateway.uplink(&cloud).await;
    let known = LaneKnown {
        class: Class::Normal,
        chain_id: CHAIN,
        index: 0,
        epoch_id: lane.epoch.id(),
        next: 1,
    };
    assert_eq!(uplink.hello().await, [known]);
    uplink.send(&lane.header()).await;
    uplink.send(&batch).await;

    assert_eq!(uplink.answer().await, lane.ack(1));
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_between_commit_and_ack_acknowledges_after_it() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&lane.sealed(&one_reading(0))).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
    // The next one is committed, and that is all that happens.
    let content = one_reading(1);
    let sealed = lane.seal(&content);
    let opened = OpenedBatch {
        epoch_id: sealed.epoch_id,
        number: sealed.number,
        prev: sealed.prev,
        chain: sealed.chain(),
        ciphertext: Sha256::digest(&sealed.ciphertext).into(),
        sealed: &sealed.encode(),
        gateway_name: "greenhouse-7",
        content: &content,
    };
    assert_eq!(
        cloud.sink.store_batch(&opened).unwrap(),
        (Stored::New, 2, None)
    );

    let cloud = cloud.restart().await;
    let mut uplink = gateway.uplink(&cloud).await;
    let [known] = &uplink.hello().await[..] else {
        panic!("not one lane");
    };
    assert_eq!(known.next, 2);
    uplink.send(&lane.header()).await;
    uplink.send(&ToService::Batch(sealed.encode())).await;
    assert_eq!(uplink.answer().await, lane.ack(2));
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_others_hold_delays_the_ack_and_no_more() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&lane.sealed(&one_reading(0))).await;
    assert_eq!(uplink.answer().await, lane.ack(1));

    let held = cloud.hold(READINGS);
    uplink.send(&lane.sealed(&one_reading(1))).await;
    // Nothing can be awaited that shows that nothing comes.
    let early = timeout(Duration::from_millis(200), uplink.messages.recv()).await;
    assert!(early.is_err(), "acknowledged, and not committed");
    drop(held);
    assert_eq!(uplink.answer().await, lane.ack(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_are_noted_in_the_registry_once_a_second_at_most() {
    let (cloud, gateway) = cloud_and_gateway().await;
    cloud.change(
        REGISTRY,
        "CREATE TABLE note (at INTEGER);
         CREATE TRIGGER noted AFTER UPDATE OF ack_ms ON gateway BEGIN
            INSERT INTO note VALUES (1); END",
    );
    let start = Instant::now();
    let mut lane = gateway.lane(&cloud).await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    for number in 0..40_u32 {
        uplink.send(&lane.sealed(&one_reading(number.into()))).await;
        assert_eq!(uplink.answer().await, lane.ack(number + 1));
    }
    let notes: u64 = cloud.registered("SELECT count(*) FROM note");
    assert!(
        (1..=1 + start.elapsed().as_secs()).contains(&notes),
        "{notes}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_to_commit_acknowledges_nothing_and_goes_on() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let batch = lane.sealed(&one_reading(0));
    cloud.change(READINGS, "ALTER TABLE readings RENAME TO elsewhere");
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&batch).await;
    assert_eq!(uplink.session.ended().await, Admission::Busy);
    // The batch is not half there.
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM batch"), 0);

    cloud.change(READINGS, "ALTER TABLE elsewhere RENAME TO readings");
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&batch).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_that_upload_the_same_store_it_once() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let header = lane.header();
    let batches: Vec<_> = (0..50).map(|n| lane.sealed(&one_reading(n))).collect();
    let end = lane.ack(50);
    let upload = async || {
        let mut uplink = gateway.uplink(&cloud).await;
        uplink.hello().await;
        uplink.send(&header).await;
        for batch in &batches {
            uplink.send(batch).await;
        }
        while uplink.answer().await != end {}
    };

    tokio::join!(upload(), upload());

    let rows: String =
        cloud.reading("SELECT concat_ws(' ', count(*), count(DISTINCT sequence)) FROM readings");
    assert_eq!(rows, "50 50");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_on_one_database_store_what_both_are_sent_once() {
    // Enough for the two to meet in the middle of each other's transactions.
    const BATCHES: u64 = 500;
    let (cloud, gateway) = cloud_and_gateway().await;
    let beside = cloud.beside().await;
    let mut lane = gateway.lane(&cloud).await;
    let header = lane.header();
    let batches: Vec<_> = (0..BATCHES).map(|n| lane.sealed(&one_reading(n))).collect();
    let end = lane.ack(u32::try_from(BATCHES).unwrap());
    let upload = async |instance| {
        let mut uplink = gateway.uplink(instance).await;
        uplink.hello().await;
        uplink.send(&header).await;
        for batch in &batches {
            uplink.send(batch).await;
        }
        while uplink.answer().await != end {}
    };

    tokio::join!(upload(&cloud), upload(&beside));

    let rows: String =
        cloud.reading("SELECT concat_ws(' ', count(*), count(DISTINCT sequence)) FROM readings");
    assert_eq!(rows, format!("{BATCHES} {BATCHES}"));
}

/// A batch is committed before the next one is read, so what is sent too early waits in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_overruns_the_window_is_served_batch_by_batch_and_nothing_is_lost() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    // Four times the window, and no answer is read.
    let text = "x".repeat(128 * 1024);
    for sequence in 0..32 {
        let batch = Batch {
            readings: vec![reading(sequence, Value::Text(text.clone()))],
            ..Batch::default()
        };
        uplink.send(&lane.sealed(&batch)).await;
    }

    for next in 1..=32 {
        assert_eq!(uplink.answer().await, lane.ack(next));
    }
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_spool_was_rolled_back_both_branches_are_taken_and_kept() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut before = gateway.lane(&cloud).await;
    // What the spool opens at the same place after it was put back to before the first epoch.
    let mut after = gateway.lane(&cloud).await;
    for (lane, sequence) in [(&mut before, 1), (&mut after, 2)] {
        let mut uplink = gateway.uplink(&cloud).await;
        uplink.hello().await;
        uplink.send(&lane.header()).await;
        uplink.send(&lane.sealed(&one_reading(sequence))).await;
        assert_eq!(uplink.answer().await, lane.ack(1));
        uplink.session.cut();
    }

    let kept: String = cloud.reading(
        "SELECT group_concat(sequence, ' ') FROM (SELECT sequence FROM readings ORDER BY sequence)",
    );
    assert_eq!(kept, "1 2");
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM epoch"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_batch_is_named_and_the_session_goes_on() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let good = lane.seal(&one_reading(0));
    let mut altered = good.clone();
    altered.ciphertext[7] ^= 1;
    let mut moved = good.clone();
    moved.number = 1;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;

    for (batch, number) in [(altered, 0), (moved, 1)] {
        uplink.send(&ToService::Batch(batch.encode())).await;
        let problem = lane.problem(Some(number), ProblemCode::Altered);
        assert_eq!(uplink.answer().await, problem);
    }
    uplink.send(&ToService::Batch(good.encode())).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_rules_is_sent_away_and_leaves_nothing() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let other = Gateway::enrolled(&cloud, "other");
    let lane = gateway.lane(&cloud).await;
    let terms = |gateway: &Gateway| gateway.terms(&cloud, 0, None);
    let record_key = cloud.record_key();
    let (_, of_other) = other.open(terms(&other), &record_key).await;
    let (_, signed_by_other) = other.open(terms(&gateway), &record_key).await;
    let mut unannounced = terms(&gateway);
    unannounced.chain_id = [9; 16];
    let (_, unannounced) = gateway.open(unannounced, &record_key).await;
    let mut other_class = terms(&gateway);
    other_class.class = Class::Bulk.into();
    let (_, other_class) = gateway.open(other_class, &record_key).await;
    let mut other_service = terms(&gateway);
    other_service.service = Fingerprint::new(KeyKind::ServiceIdentity, [1; 32]);
    let (_, other_service) = gateway.open(other_service, &record_key).await;
    let below = ToService::Below {
        chain_id: CHAIN,
        epoch_id: lane.epoch.id(),
        from: 1,
    };
    let first_batch = gateway.lane(&cloud).await.sealed(&one_reading(0));

    for (message, what) in [
        (ToService::Header(of_other), "header of another gateway"),
        (
            ToService::Header(signed_by_other),
            "header signed by another",
        ),
        (
            ToService::Header(unannounced),
            "chain that hello did not name",
        ),
        (
            ToService::Header(other_class),
            "lane that hello did not name",
        ),
        (
            ToService::Header(other_service),
            "header for another service",
        ),
        (ToService::Header(b"no header".to_vec()), "no header at all"),
        (first_batch, "batch before its header"),
        (below, "an epoch before its header"),
        (ToService::Hello(Vec::new()), "second hello"),
    ] {
        let mut uplink = gateway.uplink(&cloud).await;
        uplink.hello().await;
        uplink.send(&message).await;
        let reason = uplink.session.ended().await;
        assert_eq!(reason, Admission::ProtocolError, "{what}");
    }
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM epoch"), 0);
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_to_an_unknown_record_key_is_named_and_the_lane_goes_on() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let foreign = RecordKey::generate(&mut rng()).public();
    let mut lost = gateway
        .lane_of(gateway.terms(&cloud, 0, None), &foreign)
        .await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;

    // All of it is on its way before the first answer comes.
    uplink.send(&lost.header()).await;
    uplink.send(&lost.sealed(&one_reading(0))).await;
    uplink.send(&lost.below(1)).await;
    let unopenable = |number| lost.problem(number, ProblemCode::Unopenable);
    assert_eq!(uplink.answer().await, unopenable(None));
    assert_eq!(uplink.answer().await, unopenable(Some(0)));
    assert_eq!(uplink.answer().await, unopenable(None));

    let terms = gateway.terms(&cloud, 1, Some(lost.previous()));
    let mut lane = gateway.lane_of(terms, &cloud.record_key()).await;
    uplink.send(&lane.header()).await;
    uplink.send(&lane.sealed(&one_reading(1))).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_signed_by_a_later_run_is_stored_as_adopted() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let (epoch, unsigned) = Epoch::open(
        gateway.terms(&cloud, 0, None),
        &cloud.record_key(),
        &mut rng(),
    )
    .unwrap();
    let digest = unsigned.digest(HeaderSigner::Adopted);
    let signature = gateway.identity.sign(digest).await.unwrap();
    lane.header = unsigned.finish(signature);
    lane.epoch = epoch;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&lane.sealed(&one_reading(0))).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
    assert!(cloud.reading::<bool>("SELECT adopted FROM epoch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_the_gateway_holds_no_more_are_declared_gone() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let batches: Vec<_> = (0..5).map(|n| lane.sealed(&one_reading(n))).collect();
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;

    for (message, next) in [
        (&batches[0], 1),
        (&lane.below(3), 3),
        (&batches[3], 4),
        // Behind the watermark it says nothing new.
        (&lane.below(2), 4),
        // Late, it still counts.
        (&batches[1], 4),
        (&batches[4], 5),
    ] {
        uplink.send(message).await;
        assert_eq!(uplink.answer().await, lane.ack(next));
    }
    let gone: String = cloud.reading("SELECT group_concat(concat_ws('-', first, last)) FROM gone");
    assert_eq!(gone, "1-2");
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_database_lacks_is_recorded_as_lost_at_the_service() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let batches: Vec<_> = (0..3).map(|n| lane.sealed(&one_reading(n))).collect();
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&batches[0]).await;
    assert_eq!(uplink.answer().await, lane.ack(1));
    cloud.change(READINGS, "PRAGMA wal_checkpoint(TRUNCATE)");
    let file = cloud.folder().join(READINGS);
    let backup = std::fs::read(&file).unwrap();
    for (batch, next) in batches[1..].iter().zip(2..) {
        uplink.send(batch).await;
        assert_eq!(uplink.answer().await, lane.ack(next));
    }
    uplink.session.cut();

    let cloud = cloud
        .restart_after(|folder| {
            std::fs::write(folder.join(READINGS), backup).unwrap();
        })
        .await;
    let mut uplink = gateway.uplink(&cloud).await;
    assert_eq!(uplink.hello().await[0].next, 1);
    // The gateway has forgotten them long since.
    uplink.send(&lane.header()).await;
    uplink.send(&lane.below(3)).await;
    assert_eq!(uplink.answer().await, lane.ack(3));

    let lost = "SELECT concat_ws(' ', count(*), first, last) FROM lost_at_service";
    assert_eq!(cloud.reading::<String>(lost), "1 1 2");
    // What a ledger explains was lost at the gateway.
    let entry = LedgerEntry {
        id: 1,
        chain_id: CHAIN,
        reason: LossReason::Full,
        tallies: Vec::new(),
        from_ms: 0,
        until_ms: 0,
        batches: vec![LostBatches {
            epoch_id: lane.epoch.id(),
            first: 1,
            last: 2,
        }],
        names: Vec::new(),
    };
    let batch = Batch {
        ledger: vec![entry],
        ..Batch::default()
    };
    uplink.send(&lane.sealed(&batch)).await;
    assert_eq!(uplink.answer().await, lane.ack(4));
    assert_eq!(
        cloud.reading::<i64>("SELECT count(*) FROM lost_at_service"),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_numbers_than_an_epoch_has_are_not_declared_gone() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let lane = gateway.lane(&cloud).await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&lane.below(channel::BATCHES_MAX + 1)).await;
    assert_eq!(uplink.session.ended().await, Admission::ProtocolError);
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM gone"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_entry_that_comes_twice_is_one_and_runs_are_kept() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let entry = LedgerEntry {
        id: 3,
        chain_id: CHAIN,
        reason: LossReason::Full,
        tallies: vec![Tally {
            sensor_number: 4,
            run_id: RUN,
            first: 10,
            last: 19,
            count: 10,
        }],
        from_ms: 1,
        until_ms: 2,
        batches: vec![LostBatches {
            epoch_id: [8; 32],
            first: 5,
            last: 6,
        }],
        names: vec![(4, "climate".into())],
    };
    let start = RunEvent::Start {
        run_id: RUN,
        sensors: vec![(4, "climate".into()), (5, "meter".into())],
    };
    let end = RunEvent::End {
        run_id: RUN,
        last: vec![(4, 99)],
    };
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    for (number, event) in [(1, start), (2, end)] {
        let batch = Batch {
            ledger: vec![entry.clone()],
            run_events: vec![event],
            ..Batch::default()
        };
        uplink.send(&lane.sealed(&batch)).await;
        assert_eq!(uplink.answer().await, lane.ack(number));
    }

    for (query, expected) in [
        (
            "concat_ws(' ', id, reason, from_ms, until_ms, readings) FROM ledger",
            "3 full 1 2 10",
        ),
        (
            "concat_ws(' ', sensor_number, first, last, readings, sensor) FROM ledger_tally",
            "4 10 19 10 climate",
        ),
        (
            "concat_ws(' ', id, first, last) FROM ledger_batches",
            "3 5 6",
        ),
    ] {
        let found: String = cloud.reading(&format!("SELECT {query}"));
        assert_eq!(found, expected);
        let table = query.rsplit(' ').next().unwrap();
        assert_eq!(
            cloud.reading::<i64>(&format!("SELECT count(*) FROM {table}")),
            1
        );
    }
    let runs: String = cloud
        .reading("SELECT group_concat(concat_ws(' ', sensor_number, sensor, last), '|') FROM run");
    assert_eq!(runs, "4 climate 99|5 meter");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_no_database_holds_are_refused_and_the_session_goes_on() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut lane = gateway.lane(&cloud).await;
    let tally = Tally {
        sensor_number: 4,
        run_id: RUN,
        first: 0,
        last: u64::MAX,
        count: u64::MAX,
    };
    let absurd = Batch {
        readings: one_reading(0).readings,
        ledger: vec![LedgerEntry {
            id: 3,
            chain_id: CHAIN,
            reason: LossReason::Full,
            tallies: vec![tally, tally],
            from_ms: 1,
            until_ms: 2,
            batches: Vec::new(),
            names: Vec::new(),
        }],
        ..Batch::default()
    };
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&lane.header()).await;
    uplink.send(&lane.sealed(&absurd)).await;
    let problem = lane.problem(Some(0), ProblemCode::Unopenable);
    assert_eq!(uplink.answer().await, problem);
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 0);

    uplink.send(&lane.sealed(&one_reading(1))).await;
    assert_eq!(uplink.answer().await, lane.ack(0));
    assert_eq!(cloud.reading::<i64>("SELECT count(*) FROM readings"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_epochs_in_one_session_do_not_push_out_the_open_one_of_another_lane() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let mut critical = gateway.terms(&cloud, 0, None);
    critical.class = 0;
    let mut critical = gateway.lane_of(critical, &cloud.record_key()).await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    uplink.send(&critical.header()).await;

    let mut previous = None;
    for index in 0..20 {
        let terms = gateway.terms(&cloud, index, previous);
        let mut lane = gateway.lane_of(terms, &cloud.record_key()).await;
        uplink.send(&lane.header()).await;
        uplink.send(&lane.sealed(&one_reading(index))).await;
        assert_eq!(uplink.answer().await, lane.ack(1));
        previous = Some(lane.previous());
    }
    uplink.send(&critical.sealed(&one_reading(99))).await;
    assert_eq!(uplink.answer().await, critical.ack(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_come_in_is_told_why() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let unknown = SoftwareStaticKey::generate(&mut rng());
    let refusal = async |key: &SoftwareStaticKey, purpose| match cloud.connect(key, purpose).await {
        Err(LinkError::Refused(admission)) => admission,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("admitted"),
    };
    assert_eq!(
        refusal(&unknown, Purpose::Deliver).await,
        Admission::UnknownGateway
    );
    for (state, expected) in [
        ("suspended", Admission::Suspended),
        ("revoked", Admission::Revoked),
        ("retired", Admission::Retired),
    ] {
        cloud.change(REGISTRY, &format!("UPDATE gateway SET state = '{state}'"));
        for purpose in [Purpose::Deliver, Purpose::Enrol] {
            assert_eq!(refusal(&gateway.channel, purpose).await, expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_due_ends_the_session() {
    let (cloud, gateway) = cloud_and_gateway().await;
    let stranger = SoftwareStaticKey::generate(&mut rng());
    for (first, second) in [
        (Some(StreamName::Upload), StreamName::Upload),
        (Some(StreamName::Upload), StreamName::Enroll),
        (None, StreamName::Command),
    ] {
        let uplink = gateway.session(&cloud).await;
        let mut open = Vec::new();
        for name in first.into_iter().chain([second]) {
            open.push(uplink.streams.open(name).await.unwrap());
        }
        assert_eq!(uplink.ended().await, Admission::ProtocolError);
    }
    let enrolling = cloud.connect(&stranger, Purpose::Enrol).await.unwrap();
    let _upload = enrolling.streams.open(StreamName::Upload).await.unwrap();
    assert_eq!(enrolling.ended().await, Admission::ProtocolError);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_says_so() {
    let (mut cloud, gateway) = cloud_and_gateway().await;
    let mut uplink = gateway.uplink(&cloud).await;
    uplink.hello().await;
    cloud.stop.cancel();
    assert_eq!(uplink.session.ended().await, Admission::GoingAway);
    let serving = timeout(PATIENCE, &mut cloud.serving).await;
    serving.unwrap().unwrap().unwrap();
}
