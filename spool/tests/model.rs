//! Conservation, against the real file: whatever is done in whatever order, every appended
//! reading is held, acknowledged, or in the ledger, once.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod fixture;

use std::collections::{BTreeMap, BTreeSet};

use fixture::{TIGHT, batch, close, epoch, epoch_id, folder_bytes, held, lane};
use proptest::prelude::*;
use spool::{Lane, NewBatch, Spool, SpoolError};
use tempfile::TempDir;
use wire::Class;
use wire::batch::{LedgerEntry, Tally};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    })]

    #[test]
    fn appended_is_held_or_acknowledged_or_in_the_ledger(
        steps in prop::collection::vec(step(), 20..90),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new();
            for step in steps {
                model.take(step).await;
                model.check().await;
            }
            model.check_ledger().await;
        });
    }
}

#[derive(Clone, Debug)]
enum Step {
    OpenEpoch(Lane),
    /// Carries what the ledger hands out, if so.
    Append(Lane, usize, bool),
    /// Of the lane's oldest epoch, up to this share of what is held.
    Ack(Lane, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = (1_u8..3, 0_u8..3)
        .prop_map(|(service, class)| lane(service, Class::try_from(class).unwrap()));
    prop_oneof![
        2 => lane.clone().prop_map(Step::OpenEpoch),
        16 => (lane.clone(), 1_usize..250_000, any::<bool>())
            .prop_map(|(lane, bytes, carry)| Step::Append(lane, bytes, carry)),
        4 => (lane, any::<u8>()).prop_map(|(lane, share)| Step::Ack(lane, share)),
        1 => Just(Step::Reopen),
    ]
}

/// Names a batch: lane, epoch index, number.
type Name = (Lane, u64, u32);

/// Readings by sensor number.
type Counts = BTreeMap<u32, u64>;

/// The spool, and what it should hold.
struct Model {
    folder: TempDir,
    spool: Option<Spool>,
    /// Newest epoch and next number of each lane.
    newest: BTreeMap<Lane, (u64, u32)>,
    /// Everything ever appended, with the entries it carried.
    appended: BTreeMap<Name, (Vec<Tally>, Vec<LedgerEntry>)>,
    held: BTreeSet<Name>,
    acked: BTreeSet<Name>,
    evicted: BTreeSet<Name>,
    /// Every entry that was handed out, by id: none may change, none may be delivered twice.
    entries: BTreeMap<u64, LedgerEntry>,
    delivered: BTreeMap<u64, LedgerEntry>,
}

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            spool: Some(Spool::open(folder.path(), TIGHT).unwrap()),
            folder,
            newest: BTreeMap::new(),
            appended: BTreeMap::new(),
            held: BTreeSet::new(),
            acked: BTreeSet::new(),
            evicted: BTreeSet::new(),
            entries: BTreeMap::new(),
            delivered: BTreeMap::new(),
        }
    }

    fn spool(&self) -> Spool {
        self.spool.clone().unwrap()
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::OpenEpoch(lane) => self.open_epoch(lane).await,
            Step::Append(lane, bytes, carry) => self.append(lane, bytes, carry).await,
            Step::Ack(lane, share) => self.ack(lane, share).await,
            Step::Reopen => {
                close(self.spool.take().unwrap(), self.folder.path());
                self.spool = Some(Spool::open(self.folder.path(), TIGHT).unwrap());
            }
        }
    }

    async fn open_epoch(&mut self, lane: Lane) {
        let index = self.newest.get(&lane).map_or(0, |(index, _)| index + 1);
        match self.spool().open_epoch(epoch(lane, index)).await {
            Ok(()) => {
                self.newest.insert(lane, (index, 0));
                // A small change may evict, too.
                self.observe(None).await;
            }
            // All that is held is more urgent than this lane.
            Err(error) => assert!(matches!(error, SpoolError::Full), "{error:?}"),
        }
    }

    async fn append(&mut self, lane: Lane, bytes: usize, carry: bool) {
        if !self.newest.contains_key(&lane) {
            self.open_epoch(lane).await;
        }
        let Some((index, number)) = self.newest.get(&lane).copied() else {
            return;
        };
        let carried = if carry {
            self.hand_out(lane.service).await
        } else {
            Vec::new()
        };
        let batch = NewBatch {
            tallies: tallies(lane, number, bytes),
            ledger_ids: carried.iter().map(|entry| entry.id).collect(),
            ..batch(lane, index, number, bytes)
        };
        let name = (lane, index, number);
        match self.spool().append(batch.clone()).await {
            Ok(_) => {
                self.newest.insert(lane, (index, number + 1));
                self.appended.insert(name, (batch.tallies, carried));
                self.held.insert(name);
                self.observe(Some(name)).await;
            }
            Err(error) => assert!(matches!(error, SpoolError::Full), "{error:?}"),
        }
    }

    async fn ack(&mut self, lane: Lane, share: u8) {
        let of_lane: Vec<_> = held(&self.spool(), lane).await;
        let Some((index, first)) = of_lane.first().copied() else {
            return;
        };
        let of_epoch = of_lane.iter().filter(|(other, _)| *other == index).count();
        let count = (of_epoch * usize::from(share)).div_ceil(255);
        let next = first + u32::try_from(count).unwrap();
        let acked = self
            .spool()
            .ack(lane, epoch_id(lane, index), next)
            .await
            .unwrap();
        let gone: Vec<_> = self
            .held
            .range((lane, index, 0)..(lane, index, next))
            .copied()
            .collect();
        assert_eq!(acked.batches, gone.len() as u64);
        for name in gone {
            self.held.remove(&name);
            self.acked.insert(name);
            for entry in &self.appended[&name].1 {
                self.delivered.insert(entry.id, entry.clone());
            }
        }
    }

    /// What the ledger hands out; the same entry is the same for ever.
    async fn hand_out(&mut self, service: [u8; 32]) -> Vec<LedgerEntry> {
        let entries = self.spool().ledger_open(service).await.unwrap();
        for entry in &entries {
            let known = self.entries.entry(entry.id).or_insert(entry.clone());
            assert_eq!(known, entry, "an entry that was handed out has changed");
            assert!(!self.delivered.contains_key(&entry.id), "delivered twice");
        }
        entries
    }

    /// Takes over what was evicted: always the oldest of a lane, and the lowest class first.
    async fn observe(&mut self, appended: Option<Name>) {
        let mut now = BTreeSet::new();
        for lane in self.newest.keys() {
            let batches = held(&self.spool(), *lane).await;
            now.extend(
                batches
                    .into_iter()
                    .map(|(index, number)| (*lane, index, number)),
            );
        }
        assert!(now.is_subset(&self.held));
        assert!(appended.is_none_or(|name| now.contains(&name)));
        for gone in self.held.difference(&now) {
            let older_ones_stay = now.range((gone.0, 0, 0)..*gone).next().is_some();
            assert!(!older_ones_stay, "{gone:?} was not the oldest");
            let lower = |name: &&Name| name.0.class > gone.0.class;
            let left = now.iter().find(lower);
            assert_eq!(left, None, "{gone:?} went before it");
            self.evicted.insert(*gone);
        }
        self.held = now;
    }

    async fn check(&self) {
        let bytes = folder_bytes(self.folder.path());
        assert!(bytes <= TIGHT.max_bytes, "{bytes}");
        let status = self.spool().status().await.unwrap();
        let readings = |names: &BTreeSet<Name>| -> u64 { self.counts(names).values().sum() };
        let held: u64 = status.lanes.iter().map(|lane| lane.readings).sum();
        assert_eq!(held, readings(&self.held));
        assert_eq!(status.acked_readings, readings(&self.acked));
        assert_eq!(status.lost_readings, readings(&self.evicted));
        assert_eq!(
            status.appended_readings,
            held + status.acked_readings + status.lost_readings
        );
    }

    /// Adds up every entry there is: with its service, in a batch that is held, or waiting.
    async fn check_ledger(&mut self) {
        let mut entries = self.delivered.clone();
        for name in &self.held {
            let carried = self.appended[name].1.iter();
            entries.extend(carried.map(|entry| (entry.id, entry.clone())));
        }
        // Delivering may evict, which makes another entry: until no service has any.
        loop {
            let mut handed_out = 0;
            for service in [1, 2] {
                let waiting = self.hand_out([service; 32]).await;
                handed_out += waiting.len();
                entries.extend(waiting.iter().map(|entry| (entry.id, entry.clone())));
                self.deliver(lane(service, Class::Critical), waiting).await;
            }
            if handed_out == 0 {
                break;
            }
        }
        let tallies = entries.values().flat_map(|entry| &entry.tallies);
        assert_eq!(count(tallies), self.counts(&self.evicted));
    }

    /// Has the entries carried by a small batch that is acknowledged at once.
    async fn deliver(&mut self, lane: Lane, entries: Vec<LedgerEntry>) {
        if entries.is_empty() {
            return;
        }
        self.open_epoch(lane).await;
        let (index, _) = self.newest[&lane];
        let carrier = NewBatch {
            ledger_ids: entries.iter().map(|entry| entry.id).collect(),
            ..batch(lane, index, 0, 10)
        };
        self.spool().append(carrier.clone()).await.unwrap();
        let name = (lane, index, 0);
        self.appended.insert(name, (carrier.tallies, entries));
        self.held.insert(name);
        self.observe(Some(name)).await;
        let id = epoch_id(lane, index);
        self.spool().ack(lane, id, 1).await.unwrap();
        self.held.remove(&name);
        self.acked.insert(name);
    }

    fn counts(&self, names: &BTreeSet<Name>) -> Counts {
        count(names.iter().flat_map(|name| &self.appended[name].0))
    }
}

/// Some readings of two sensors of this lane.
fn tallies(lane: Lane, number: u32, bytes: usize) -> Vec<Tally> {
    (0..2)
        .map(|sensor| Tally {
            sensor_number: u32::from(lane.service[0]) * 100
                + u32::from(u8::from(lane.class)) * 10
                + sensor,
            run_id: [7; 16],
            first: u64::from(number) * 1000,
            last: u64::from(number) * 1000 + 999,
            count: bytes as u64 % 97 + u64::from(sensor),
        })
        .collect()
}

fn count<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Counts {
    let mut counts = Counts::new();
    for tally in tallies {
        *counts.entry(tally.sensor_number).or_default() += tally.count;
    }
    counts
}
