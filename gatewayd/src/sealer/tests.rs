//! What the sealer puts on the medium, opened on the other side.

use std::{collections::BTreeMap, path::Path};

use channel::{
    EpochOpener, Header, HeaderSigner, RecordKey, SealedBatch, SigningKey, UnsignedHeader,
};
use link::KeepStatement;
use spool::{Lane, Loss, StoredHeader};
use tempfile::TempDir;
use wire::{
    Class, ClockState, Measurement, Quality, Reading, Time, Value,
    batch::{Batch, LossReason, RunEvent},
};

use super::{lane::OpenLane, *};
use crate::{
    fixture::{Keys, open_spool, service},
    service::Service,
};

#[tokio::test]
async fn readings_wait_until_the_statement_is_known_and_are_sealed_then() {
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(folder.path(), Keys::new());
    let pin = gateway.keys.pin();
    gateway
        .service
        .set_peer(pin, Vec::new(), true)
        .await
        .unwrap();
    gateway.outlet.hold(&[taken(0, 0, Class::Normal)]);
    gateway.outlet.store().await.unwrap();
    assert_eq!(gateway.spool.status().await.unwrap().lanes, []);

    gateway.learn_statement(1).await;
    gateway.outlet.store().await.unwrap();

    let opened = gateway.open(Class::Normal).await;
    assert_eq!(opened.len(), 1);
    let (terms, batch) = &opened[0];
    assert_eq!(terms.gateway, gateway.keys.gateway());
    assert_eq!(batch.readings, [taken(0, 0, Class::Normal).reading]);
    assert_eq!(batch.base_name, format!("{}/", gateway.keys.gateway()));
}

#[tokio::test]
async fn each_class_is_a_lane_and_the_first_batch_names_the_sensors() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    let classes = [Class::Critical, Class::Normal, Class::Bulk];
    for (class, sequence) in classes.into_iter().zip(0..) {
        gateway.outlet.hold(&[taken(1, sequence, class)]);
    }
    gateway.outlet.store().await.unwrap();

    let mut starts = Vec::new();
    for (class, sequence) in classes.into_iter().zip(0_u64..) {
        let opened = gateway.open(class).await;
        assert_eq!(opened.len(), 1, "{class}");
        let (terms, batch) = &opened[0];
        assert_eq!((terms.class, terms.index), (class.into(), 0));
        assert_eq!(batch.readings[0].sequence, sequence);
        starts.extend(batch.run_events.clone());
    }
    let sensors = vec![(0, "a".to_owned()), (1, "b".to_owned())];
    assert_eq!(
        starts,
        [RunEvent::Start {
            run_id: gateway.outlet_run,
            sensors
        }]
    );
}

#[tokio::test]
async fn a_chain_goes_on_over_restarts_and_names_how_the_epoch_before_ended() {
    let (mut gateway, folder) = Gateway::enrolled().await;
    gateway.outlet.hold(&[taken(0, 0, Class::Normal)]);
    assert!(gateway.outlet.close().await.unwrap());
    // The second run dies: its lane is never closed.
    let mut gateway = gateway.restart(folder.path()).await;
    gateway.outlet.hold(&[taken(0, 0, Class::Normal)]);
    gateway.outlet.store().await.unwrap();
    let mut gateway = gateway.restart(folder.path()).await;
    gateway.outlet.hold(&[taken(0, 0, Class::Normal)]);
    gateway.outlet.store().await.unwrap();

    let opened = gateway.open(Class::Normal).await;
    let of_epoch = |index| opened.iter().filter(move |(terms, _)| terms.index == index);
    let terms = |index| of_epoch(index).next().unwrap().0.clone();
    // One with the reading, one with the end.
    assert_eq!(of_epoch(0).count(), 2);
    assert!(terms(0).previous.is_none());
    let previous = terms(1).previous.unwrap();
    assert_eq!((previous.count, previous.clean), (2, true));
    let previous = terms(2).previous.unwrap();
    assert_eq!((previous.count, previous.clean), (1, false));
    assert_eq!(terms(0).chain_id, terms(2).chain_id);
    assert_ne!(terms(1).run_id, terms(2).run_id);
}

#[tokio::test]
async fn a_new_record_key_is_used_from_the_next_batch_on() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    gateway.outlet.hold(&[taken(0, 0, Class::Normal)]);
    gateway.outlet.store().await.unwrap();

    let old = std::mem::replace(
        &mut gateway.keys.record,
        RecordKey::generate(&mut crate::fixture::rng()),
    );
    gateway.learn_statement(2).await;
    gateway.outlet.hold(&[taken(0, 1, Class::Normal)]);
    gateway.outlet.store().await.unwrap();

    let headers = gateway.headers(Class::Normal).await;
    let keys: Vec<_> = headers.iter().map(Header::record_key).collect();
    assert_eq!(
        keys,
        [
            old.public().fingerprint(),
            gateway.keys.record.public().fingerprint()
        ]
    );
    assert!(headers[1].terms().previous.as_ref().unwrap().clean);
    assert!(EpochOpener::new(&headers[1], &old).is_err());
}

#[tokio::test]
async fn a_new_identity_opens_new_epochs_and_names_the_sensors_again() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    gateway.outlet.hold(&[taken(0, 0, Class::Normal)]);
    gateway.outlet.store().await.unwrap();

    gateway.keys.gateway = Keys::new().gateway;
    gateway.gateway.send_replace(Some(gateway.keys.gateway()));
    gateway.outlet.hold(&[taken(0, 1, Class::Normal)]);
    gateway.outlet.store().await.unwrap();

    let lane = gateway.lane(Class::Normal);
    let newest = gateway.spool.lane(lane).await.unwrap().newest.unwrap();
    assert_eq!(newest.index, 1);
    let (terms, batch) = gateway.open(Class::Normal).await.pop().unwrap();
    assert_eq!(terms.gateway, gateway.keys.gateway());
    assert!(matches!(batch.run_events[..], [RunEvent::Start { .. }]));
}

#[tokio::test]
async fn readings_that_memory_had_no_room_for_are_in_the_ledger_of_a_critical_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(folder.path(), Keys::new());
    let many: Vec<_> = (0..10_003).map(|n| taken(1, n, Class::Bulk)).collect();
    gateway.outlet.hold(&many);
    gateway.learn_statement(1).await;
    gateway.outlet.store().await.unwrap();

    let critical = gateway.open(Class::Critical).await;
    let entries: Vec<_> = critical
        .iter()
        .flat_map(|(_, batch)| &batch.ledger)
        .collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].reason, LossReason::Full);
    assert_eq!(entries[0].names, [(1, "b".to_owned())]);
    let tally = entries[0].tallies[0];
    assert_eq!((tally.sensor_number, tally.run_id), (1, gateway.outlet_run));
    assert_eq!((tally.first, tally.last, tally.count), (0, 2, 3));
    let bulk = gateway.open(Class::Bulk).await;
    let sealed: usize = bulk.iter().map(|(_, batch)| batch.readings.len()).sum();
    assert_eq!(sealed, 10_000);

    // Told once.
    gateway.outlet.store().await.unwrap();
    assert_eq!(gateway.open(Class::Critical).await.len(), 1);
}

#[tokio::test]
async fn the_clean_end_tells_how_far_each_sensor_came() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    gateway.outlet.hold(&[
        taken(0, 0, Class::Bulk),
        taken(0, 1, Class::Bulk),
        taken(1, 7, Class::Bulk),
    ]);
    assert!(gateway.outlet.close().await.unwrap());

    let (_, batch) = gateway.open(Class::Bulk).await.pop().unwrap();
    assert_eq!(
        batch.run_events,
        [RunEvent::End {
            run_id: gateway.outlet_run,
            last: vec![(0, 1), (1, 7)]
        }]
    );
    // In the lane that was open, not in an epoch made for it.
    assert_eq!(gateway.open(Class::Normal).await.len(), 0);
    let newest = gateway.spool.lane(gateway.lane(Class::Bulk)).await.unwrap();
    assert!(newest.newest.unwrap().clean);
}

#[tokio::test]
async fn a_run_that_told_the_service_nothing_does_not_tell_its_end() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    assert!(gateway.outlet.close().await.unwrap());
    assert_eq!(gateway.spool.status().await.unwrap().lanes, []);
}

#[tokio::test]
async fn readings_still_in_memory_at_the_end_are_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(folder.path(), Keys::new());
    let pin = gateway.keys.pin();
    gateway
        .service
        .set_peer(pin, Vec::new(), true)
        .await
        .unwrap();
    gateway.outlet.hold(&[taken(0, 5, Class::Normal)]);

    assert!(gateway.outlet.close().await.unwrap());

    let ledger = gateway.spool.ledger_open(*pin.bytes()).await.unwrap();
    assert_eq!(ledger[0].tallies[0].first, 5);
    assert_eq!(ledger[0].reason, LossReason::UncleanStop);
}

#[tokio::test]
async fn more_than_fits_one_batch_is_split_in_order() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    let cut: Vec<_> = (0..9)
        .map(|sequence| {
            let mut taken = taken(0, sequence, Class::Normal);
            taken.reading.measurement.value = Value::Text("x".repeat(200_000));
            taken
        })
        .collect();
    gateway.outlet.hold(&cut);
    gateway.outlet.store().await.unwrap();

    let opened = gateway.open(Class::Normal).await;
    assert!(1 < opened.len());
    let readings = opened.iter().flat_map(|(_, batch)| &batch.readings);
    let sequences: Vec<_> = readings.map(|reading| reading.sequence).collect();
    assert_eq!(sequences, (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reading_larger_than_any_batch_is_a_loss_and_holds_up_nothing() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    let mut giant = taken(0, 0, Class::Normal);
    giant.reading.measurement.value = Value::Text("x".repeat(2_000_000));
    gateway.outlet.hold(&[giant, taken(0, 1, Class::Normal)]);
    gateway.outlet.store().await.unwrap();
    gateway.outlet.store().await.unwrap();

    let (_, batch) = gateway.open(Class::Normal).await.remove(0);
    assert_eq!(batch.readings[0].sequence, 1);
    let (_, batch) = gateway.open(Class::Critical).await.remove(0);
    assert_eq!(batch.ledger[0].tallies[0].count, 1);
}

#[tokio::test]
async fn a_class_that_the_spool_has_no_room_for_holds_up_no_other() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    // Fill it with critical data, which nothing less urgent can push out.
    for sequence in 0.. {
        let mut large = taken(0, sequence, Class::Critical);
        large.reading.measurement.value = Value::Text("x".repeat(400_000));
        gateway.outlet.hold(&[large]);
        gateway.outlet.store().await.unwrap();
        if 0 < gateway.spool.status().await.unwrap().lost_readings {
            break;
        }
    }
    let mut large = taken(1, 0, Class::Bulk);
    large.reading.measurement.value = Value::Text("x".repeat(900_000));
    gateway
        .outlet
        .hold(&[large, taken(0, 1_000, Class::Critical)]);
    gateway.outlet.store().await.unwrap();
    gateway.outlet.hold(&[taken(0, 1_001, Class::Critical)]);
    gateway.outlet.store().await.unwrap();

    assert!(gateway.outlet.is_refused());
    let critical = gateway.open(Class::Critical).await;
    let last = critical.last().unwrap().1.readings.last().unwrap();
    assert_eq!(last.sequence, 1_001);
    // At the end the batch that was sealed and never stored is a loss.
    let before = gateway.spool.status().await.unwrap().lost_readings;
    gateway.outlet.close().await.unwrap();
    assert!(before < gateway.spool.status().await.unwrap().lost_readings);
}

#[tokio::test]
async fn a_batch_that_the_disk_refused_is_offered_again_byte_for_byte() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    let parties = gateway.parties();
    let run = gateway.run();
    let Ok(mut bulk) = OpenLane::open(Class::Bulk, &parties, &run).await else {
        panic!("no epoch");
    };
    // Full of critical data, which nothing less urgent can push out.
    for sequence in 0.. {
        let mut large = taken(0, sequence, Class::Critical);
        large.reading.measurement.value = Value::Text("x".repeat(400_000));
        gateway.outlet.hold(&[large]);
        gateway.outlet.store().await.unwrap();
        if 0 < gateway.spool.status().await.unwrap().lost_readings {
            break;
        }
    }
    let Ok(()) = bulk.seal(&Batch::default(), &[7; 500_000], Vec::new()) else {
        panic!("not sealed");
    };
    let sealed = bulk.unstored().unwrap().to_vec();
    for _ in 0..3 {
        assert!(matches!(bulk.flush(&run).await, Err(StoreError::Later(_))));
        assert_eq!(bulk.unstored(), Some(&*sealed));
    }

    let critical = gateway.lane(Class::Critical);
    let newest = gateway.spool.lane(critical).await.unwrap().newest.unwrap();
    let acked = gateway.spool.ack(critical, newest.epoch_id, newest.count);
    acked.await.unwrap();
    assert!(bulk.flush(&run).await.is_ok());

    let lane = gateway.lane(Class::Bulk);
    let stored = gateway.spool.read(lane, None, usize::MAX).await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].number, &stored[0].bytes), (0, &sealed));
    // Its number is spent: what is sealed next has another.
    let Ok(()) = bulk.seal(&Batch::default(), &[7; 5], Vec::new()) else {
        panic!("not sealed");
    };
    let next = SealedBatch::decode(bulk.unstored().unwrap()).unwrap();
    assert_eq!(next.number, 1);
}

#[tokio::test]
async fn a_ledger_entry_whose_batch_was_evicted_is_sealed_again_unchanged() {
    let (mut gateway, _folder) = Gateway::enrolled().await;
    let critical = gateway.lane(Class::Critical);
    let loss = Loss {
        lane: critical,
        reason: LossReason::Full,
        tallies: Vec::new(),
        from_ms: 1,
        until_ms: 2,
        batches: Vec::new(),
    };
    gateway.spool.record_loss(loss).await.unwrap();
    gateway.outlet.hold(&[taken(0, 0, Class::Critical)]);
    gateway.outlet.store().await.unwrap();
    let told = gateway.open(Class::Critical).await.remove(0).1.ledger;
    assert_eq!((told.len(), told[0].from_ms), (1, 1));

    let first = gateway.spool.lane(critical).await.unwrap().oldest;
    // The last of these is sealed when the entry waits again.
    for sequence in 1.. {
        let evicted = gateway.spool.lane(critical).await.unwrap().oldest != first;
        let mut large = taken(0, sequence, Class::Critical);
        large.reading.measurement.value = Value::Text("x".repeat(400_000));
        gateway.outlet.hold(&[large]);
        gateway.outlet.store().await.unwrap();
        if evicted {
            break;
        }
    }

    let held = gateway.open(Class::Critical).await;
    let again: Vec<_> = held.iter().flat_map(|(_, batch)| &batch.ledger).collect();
    assert_eq!(
        again.iter().filter(|entry| entry.id == told[0].id).count(),
        1
    );
    assert!(again.contains(&&told[0]));
}

#[tokio::test]
async fn an_epoch_is_over_after_an_hour_also_when_idle() {
    let (gateway, _folder) = Gateway::enrolled().await;
    let parties = gateway.parties();
    let before_ms = Clock::new().unwrap().now().boottime_ms;
    let Ok(lane) = OpenLane::open(Class::Normal, &parties, &gateway.run()).await else {
        panic!("no epoch");
    };
    let after_ms = Clock::new().unwrap().now().boottime_ms;
    let is_over = |now_ms| lane.is_over(&parties, now_ms).unwrap_or(true);
    assert!(!is_over(before_ms + 3_599_999));
    assert!(is_over(after_ms + 3_600_000));
}

#[tokio::test]
async fn no_sensor_name_and_no_value_is_in_the_spool() {
    let (mut gateway, folder) = Gateway::enrolled().await;
    let mut named = taken(1, 7, Class::Normal);
    named.reading.sensor = "greenhouse-thermometer".into();
    named.reading.measurement.value = Value::Text("twenty-one degrees".into());
    gateway.outlet.hold(&[named]);
    gateway.outlet.store().await.unwrap();
    let header = gateway.headers(Class::Normal).await.remove(0);

    let files = std::fs::read_dir(folder.path()).unwrap();
    let files: Vec<_> = files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    let has = |words: &[u8]| {
        let mut windows = files.iter().flat_map(|file| file.windows(words.len()));
        windows.any(|window| window == words)
    };
    assert!(!has(b"greenhouse-thermometer"));
    assert!(!has(b"twenty-one degrees"));
    // The search would find it.
    assert!(has(&header.epoch_id()));
    let (_, batch) = gateway.open(Class::Normal).await.remove(0);
    assert_eq!(batch.readings[0].sensor, "greenhouse-thermometer");
}

/// A gateway's outlet with a spool, and all keys of both sides.
struct Gateway {
    keys: Keys,
    spool: Spool,
    service: Arc<Service>,
    gateway: watch::Sender<Option<Fingerprint>>,
    outlet: Outlet,
    outlet_run: [u8; 16],
}

impl Gateway {
    fn start(folder: &Path, keys: Keys) -> Self {
        let spool = open_spool(folder);
        let service = Arc::new(service(&spool));
        let gateway = watch::Sender::new(Some(keys.gateway()));
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let clock = Clock::new().unwrap();
        let run = Run {
            id,
            sensors: ["a".to_owned(), "b".to_owned()].into(),
            clock: clock.clone(),
            spool: spool.clone(),
            gateway: gateway.subscribe(),
            progress: Progress::new(clock),
        };
        Self {
            outlet: Outlet::new(Arc::clone(&service), run, 1000),
            outlet_run: id,
            keys,
            spool,
            service,
            gateway,
        }
    }

    async fn enrolled() -> (Self, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let gateway = Self::start(folder.path(), Keys::new());
        gateway.learn_statement(1).await;
        (gateway, folder)
    }

    /// As the outlet has them.
    fn parties(&self) -> Parties {
        let peer = self.service.peer().unwrap();
        Parties {
            gateway: self.keys.gateway(),
            service: peer.key,
            statement: peer.statement.unwrap(),
        }
    }

    fn run(&self) -> Run {
        let clock = Clock::new().unwrap();
        Run {
            id: self.outlet_run,
            sensors: Arc::default(),
            clock: clock.clone(),
            spool: self.spool.clone(),
            gateway: self.gateway.subscribe(),
            progress: Progress::new(clock),
        }
    }

    async fn learn_statement(&self, serial: u64) {
        let pin = self.keys.pin();
        self.service.set_peer(pin, Vec::new(), true).await.unwrap();
        self.service
            .keep(&self.keys.statement(serial))
            .await
            .unwrap();
    }

    /// The process ends without a word, and another begins.
    async fn restart(self, folder: &Path) -> Self {
        let Self {
            keys,
            spool,
            service,
            gateway,
            outlet,
            ..
        } = self;
        drop((spool, service, gateway, outlet));
        crate::fixture::wait_for_spool(folder).await;
        let gateway = Self::start(folder, keys);
        gateway.learn_statement(1).await;
        gateway
    }

    fn lane(&self, class: Class) -> Lane {
        Lane {
            service: *self.keys.pin().bytes(),
            class,
        }
    }

    /// The headers of a lane, signed as the TPM would and verified as the service does.
    async fn headers(&self, class: Class) -> Vec<Header> {
        let mut headers = Vec::new();
        let mut seen = Vec::new();
        let lane = self.lane(class);
        for stored in self.spool.read(lane, None, usize::MAX).await.unwrap() {
            if seen.contains(&stored.epoch_id) {
                continue;
            }
            seen.push(stored.epoch_id);
            let header = self.spool.header(stored.epoch_id).await.unwrap().unwrap();
            let StoredHeader::Unsigned(payload) = header else {
                panic!("nobody signs here");
            };
            let unsigned = UnsignedHeader::from_payload(&payload).unwrap();
            if unsigned.terms().gateway != self.keys.gateway() {
                continue;
            }
            let digest = unsigned.digest(HeaderSigner::Own);
            let signed = unsigned.finish(self.keys.gateway.sign(digest).await.unwrap());
            let identity = self.keys.gateway.public();
            headers.push(Header::verify(&signed, &identity, &self.keys.pin()).unwrap());
        }
        headers
    }

    /// All batches of a lane that this gateway's identity and the record key open, in order, each
    /// with the terms of its epoch.
    async fn open(&self, class: Class) -> Vec<(channel::EpochTerms, Batch)> {
        let headers = self.headers(class).await;
        let mut openers: BTreeMap<_, _> = headers
            .iter()
            .map(|header| {
                let opener = EpochOpener::new(header, &self.keys.record).unwrap();
                (header.epoch_id(), (header.terms().clone(), opener))
            })
            .collect();
        let stored = self.spool.read(self.lane(class), None, usize::MAX).await;
        let mut opened = Vec::new();
        for stored in stored.unwrap() {
            if let Some((terms, opener)) = openers.get_mut(&stored.epoch_id) {
                let sealed = SealedBatch::decode(&stored.bytes).unwrap();
                let plaintext = opener.open(&sealed).unwrap();
                opened.push((terms.clone(), Batch::decode(&plaintext).unwrap()));
            }
        }
        opened
    }
}

fn taken(sensor_number: u32, sequence: u64, class: Class) -> Taken {
    Taken {
        reading: Reading {
            sensor: ["a", "b"][usize::try_from(sensor_number).unwrap()].into(),
            sensor_number,
            sequence,
            time: Time {
                wall_ms: 1_795_442_549_104,
                boottime_ms: 1,
                clock: ClockState::Synchronised,
            },
            measurement: Measurement {
                channel: "x".into(),
                value: Value::Bool(true),
                unit: None,
                quality: Quality::Ok,
            },
        },
        class,
    }
}
