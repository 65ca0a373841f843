//! One service's share of the sealer: its held readings and its lanes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use channel::{Epoch, EpochClock, EpochTerms, Fingerprint, Previous, SealedBatch};
use rand_core::UnwrapErr;
use spool::{Lane, Loss, NewBatch, NewEpoch};
use wire::{
    Class, Reading,
    batch::{Batch, LedgerEntry, LossReason, RunEvent, Tally},
};

use super::{Run, held::Held};
use crate::{
    collect::Taken,
    service::{Peer, Service},
};

/// Seals for one service.
pub struct Outlet {
    service: Arc<Service>,
    run: Run,
    readings_max: usize,
    held: Held,
    lanes: BTreeMap<u8, OpenLane>,
    /// The newest number of each sensor that is on the medium.
    last_sequences: BTreeMap<u32, u64>,
    started: bool,
    disk_failed: bool,
}

/// An epoch in use, and the batch that the disk has not taken yet.
struct OpenLane {
    epoch: Epoch,
    opened_ms: u64,
    gateway: Fingerprint,
    record_key: Fingerprint,
    unstored: Option<NewBatch>,
}

/// Who seals to whom, at this moment.
struct Parties {
    gateway: Fingerprint,
    peer: Peer,
}

impl Outlet {
    /// An outlet whose batches hold at most `readings_max` readings.
    #[must_use]
    pub fn new(service: Arc<Service>, run: Run, readings_max: usize) -> Self {
        Self {
            service,
            run,
            readings_max,
            held: Held::default(),
            lanes: BTreeMap::new(),
            last_sequences: BTreeMap::new(),
            started: false,
            disk_failed: false,
        }
    }

    /// Takes what this service may see.
    pub(super) fn hold(&mut self, cut: &[Taken]) {
        cut.iter()
            .filter(|taken| self.service.sensors.matches(&taken.reading.sensor))
            .for_each(|taken| self.held.push(taken));
    }

    /// Seals and stores what is held, as far as the disk takes it.
    pub(super) async fn store(&mut self) -> anyhow::Result<()> {
        let Some(parties) = self.parties() else {
            return Ok(());
        };
        match self.try_store(&parties).await? {
            Ok(()) if self.disk_failed => {
                self.disk_failed = false;
                tracing::info!(service = self.service.name, "the disk takes batches again");
            }
            Err(error) if !self.disk_failed => {
                self.disk_failed = true;
                tracing::error!(advice = error.advice(), "cannot store: {error}");
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    /// Stores what is held and says that the run ended; the keys are gone afterwards.
    pub(super) async fn close(&mut self) -> anyhow::Result<()> {
        self.store().await?;
        let Some(parties) = self.parties() else {
            return Ok(());
        };
        if self.started {
            let end = RunEvent::End {
                run_id: self.run.id,
                last: std::mem::take(&mut self.last_sequences)
                    .into_iter()
                    .collect(),
            };
            let batch = self.batch(&parties, Vec::new(), Vec::new(), vec![end]);
            if let Err(error) = self.seal(Class::Normal, &parties, batch).await? {
                tracing::error!("cannot store the end of the run: {error}");
            }
        }
        for &class in Class::ALL {
            self.close_lane(class, &parties).await;
        }
        Ok(())
    }

    /// The outer error ends the daemon, the inner one is the disk's.
    async fn try_store(
        &mut self,
        parties: &Parties,
    ) -> anyhow::Result<Result<(), spool::SpoolError>> {
        for &class in Class::ALL {
            if let Err(error) = self.store_unstored(class).await {
                return Ok(Err(error));
            }
            if self.is_over(class, parties) {
                self.close_lane(class, parties).await;
            }
        }
        if let Err(error) = self.store_losses(parties).await? {
            return Ok(Err(error));
        }
        for &class in Class::ALL {
            loop {
                let readings = self.held.take(class, self.readings_max);
                if readings.is_empty() {
                    break;
                }
                let events = self.start_event();
                let batch = self.batch(parties, readings, Vec::new(), events);
                if let Err(error) = self.seal(class, parties, batch).await? {
                    return Ok(Err(error));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Puts losses on record and sends the open ledger entries, which travel as critical.
    async fn store_losses(
        &mut self,
        parties: &Parties,
    ) -> anyhow::Result<Result<(), spool::SpoolError>> {
        let service = *parties.peer.key.bytes();
        for &class in Class::ALL {
            let Some(loss) = self.held.take_loss(class, self.run.id) else {
                continue;
            };
            let recorded = self.run.spool.record_loss(Loss {
                lane: Lane { service, class },
                reason: LossReason::Full,
                tallies: loss.tallies,
                from_ms: loss.from_ms,
                until_ms: loss.until_ms,
                batches: Vec::new(),
            });
            if let Err(error) = recorded.await {
                return Ok(Err(error));
            }
        }
        let ledger = match self.run.spool.ledger_open(service).await {
            Ok(ledger) if ledger.is_empty() => return Ok(Ok(())),
            Ok(ledger) => ledger,
            Err(error) => return Ok(Err(error)),
        };
        let events = self.start_event();
        let batch = self.batch(parties, Vec::new(), ledger, events);
        self.seal(Class::Critical, parties, batch).await
    }

    /// Seals one batch and stores it. Once sealed it is immutable: if the disk refuses, the same
    /// bytes wait and are offered again before anything else of the lane.
    async fn seal(
        &mut self,
        class: Class,
        parties: &Parties,
        batch: Batch,
    ) -> anyhow::Result<Result<(), spool::SpoolError>> {
        if self
            .lanes
            .get(&class.into())
            .is_none_or(|lane| lane.epoch.is_full())
        {
            self.close_lane(class, parties).await;
            if let Err(error) = self.open_lane(class, parties).await? {
                // Nothing was sealed: the readings wait for the next try.
                self.give_back(class, batch.readings);
                return Ok(Err(error));
            }
        }
        let service = *parties.peer.key.bytes();
        let lane = self
            .lanes
            .get_mut(&class.into())
            .context("the lane is open")?;
        let plaintext = batch.encode();
        let sealed = lane.epoch.seal(&plaintext).context("cannot seal a batch")?;
        lane.unstored = Some(stored_form(
            Lane { service, class },
            &sealed,
            &batch,
            self.run.id,
        ));
        for tally in lane.unstored.iter().flat_map(|batch| &batch.tallies) {
            self.last_sequences.insert(tally.sensor_number, tally.last);
        }
        Ok(self.store_unstored(class).await)
    }

    async fn store_unstored(&mut self, class: Class) -> Result<(), spool::SpoolError> {
        let Some(lane) = self.lanes.get_mut(&class.into()) else {
            return Ok(());
        };
        if let Some(batch) = &lane.unstored {
            self.run.spool.append(batch.clone()).await?;
            lane.unstored = None;
        }
        Ok(())
    }

    /// Opens the next epoch of a lane's chain.
    async fn open_lane(
        &mut self,
        class: Class,
        parties: &Parties,
    ) -> anyhow::Result<Result<(), spool::SpoolError>> {
        let service = parties.peer.key;
        let lane = Lane {
            service: *service.bytes(),
            class,
        };
        let newest = match self.run.spool.lane(lane).await {
            Ok(state) => state.newest,
            Err(error) => return Ok(Err(error)),
        };
        let statement = parties
            .peer
            .statement
            .as_ref()
            .context("a statement is held")?;
        let record_key = statement
            .record_keys()
            .first()
            .context("a statement has a record key")?;
        let now = self.run.clock.now();
        let index = newest.as_ref().map_or(0, |newest| newest.index + 1);
        let terms = EpochTerms {
            gateway: parties.gateway,
            service,
            class: class.into(),
            chain_id: self.run.spool.chain_id(),
            index,
            run_id: self.run.id,
            previous: newest.map(|newest| Previous {
                epoch_id: newest.epoch_id,
                count: newest.count,
                head: newest.head,
                clean: newest.clean,
            }),
            opened: EpochClock {
                boot_id: self.run.clock.boot_id(),
                boottime_ms: now.boottime_ms,
                wall_ms: now.wall_ms,
                clock: now.clock.into(),
            },
        };
        let (epoch, header) = Epoch::open(terms, record_key, &mut UnwrapErr(getrandom::SysRng))
            .context("cannot open an epoch")?;
        let opened = self.run.spool.open_epoch(NewEpoch {
            lane,
            epoch_id: epoch.id(),
            index,
            unsigned_header: header.payload().to_vec(),
        });
        if let Err(error) = opened.await {
            return Ok(Err(error));
        }
        let lane = OpenLane {
            opened_ms: now.boottime_ms,
            gateway: parties.gateway,
            record_key: record_key.fingerprint(),
            unstored: None,
            epoch,
        };
        self.lanes.insert(class.into(), lane);
        Ok(Ok(()))
    }

    /// Ends the epoch of a lane, if one is open; its key is gone with it.
    async fn close_lane(&mut self, class: Class, parties: &Parties) {
        if let Some(lane) = self.lanes.remove(&class.into()) {
            // A batch that the disk never took is missing from the chain, so the end is not clean.
            let clean = lane.unstored.is_none();
            let place = Lane {
                service: *parties.peer.key.bytes(),
                class,
            };
            let closed = self.run.spool.close_epoch(place, lane.epoch.id(), clean);
            if let Err(error) = closed.await {
                tracing::error!("cannot write down the end of an epoch: {error}");
            }
        }
    }

    /// Whether a lane's epoch must not be used any more (protocol.md 3.3).
    fn is_over(&self, class: Class, parties: &Parties) -> bool {
        let record_keys = parties
            .peer
            .statement
            .as_ref()
            .map(|statement| statement.record_keys());
        let record_key = record_keys
            .and_then(|keys| keys.first())
            .map(|key| key.fingerprint());
        self.lanes.get(&class.into()).is_some_and(|lane| {
            let age_ms = self
                .run
                .clock
                .now()
                .boottime_ms
                .saturating_sub(lane.opened_ms);
            EPOCH_AGE_MAX <= Duration::from_millis(age_ms)
                || Some(lane.record_key) != record_key
                || lane.gateway != parties.gateway
        })
    }

    fn parties(&self) -> Option<Parties> {
        let gateway = (*self.run.gateway.borrow())?;
        let peer = self.service.peer()?;
        peer.statement.as_ref()?;
        Some(Parties { gateway, peer })
    }

    fn batch(
        &self,
        parties: &Parties,
        readings: Vec<Reading>,
        ledger: Vec<LedgerEntry>,
        run_events: Vec<RunEvent>,
    ) -> Batch {
        Batch {
            base_name: format!("{}/", parties.gateway),
            readings,
            ledger,
            run_events,
        }
    }

    /// Names the run's sensors, once.
    fn start_event(&mut self) -> Vec<RunEvent> {
        if std::mem::replace(&mut self.started, true) {
            return Vec::new();
        }
        let sensors = (0..).zip(self.run.sensors.iter().cloned()).collect();
        vec![RunEvent::Start {
            run_id: self.run.id,
            sensors,
        }]
    }

    fn give_back(&mut self, class: Class, readings: Vec<Reading>) {
        self.held.put_back(class, readings);
        self.started = !self.lanes.is_empty();
    }
}

/// What the spool keeps of a sealed batch: bytes, and numbers without names.
fn stored_form(lane: Lane, sealed: &SealedBatch, batch: &Batch, run_id: [u8; 16]) -> NewBatch {
    let mut tallies: BTreeMap<u32, Tally> = BTreeMap::new();
    for reading in &batch.readings {
        let tally = tallies.entry(reading.sensor_number).or_insert(Tally {
            sensor_number: reading.sensor_number,
            run_id,
            first: reading.sequence,
            last: reading.sequence,
            count: 0,
        });
        tally.last = tally.last.max(reading.sequence);
        tally.count += 1;
    }
    let times = batch.readings.iter().map(|reading| reading.time.wall_ms);
    NewBatch {
        lane,
        epoch_id: sealed.epoch_id,
        number: sealed.number,
        chain: sealed.chain(),
        tallies: tallies.into_values().collect(),
        from_ms: times.clone().min().unwrap_or(0),
        until_ms: times.max().unwrap_or(0),
        bytes: sealed.encode(),
        ledger_ids: batch.ledger.iter().map(|entry| entry.id).collect(),
    }
}

/// protocol.md 3.3: 1 h of CLOCK_BOOTTIME, also when idle.
const EPOCH_AGE_MAX: Duration = Duration::from_secs(3600);
