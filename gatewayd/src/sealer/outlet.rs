//! One service's share of the sealer: its held readings and its lanes.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, anyhow};
use channel::BATCH_PLAINTEXT_BYTES_MAX;
use spool::{BATCH_BYTES_MAX, Lane, Loss};
use wire::{
    Class, Reading,
    batch::{Batch, LedgerEntry, LossReason, RunEvent, Tally, encode_tallies},
};
use zeroize::Zeroizing;

use super::{
    Parties, Run, StoreError,
    held::{Held, of_class},
    lane::OpenLane,
};
use crate::{collect::Taken, service::Service};

/// Seals for one service.
pub struct Outlet {
    service: Arc<Service>,
    run: Run,
    readings_max: usize,
    held: Held,
    lanes: [Option<OpenLane>; 3],
    /// The newest number of each sensor.
    last_sequences: BTreeMap<u32, u64>,
    /// The gateway in whose name the start of the run was told.
    started_as: Option<channel::Fingerprint>,
    /// What the ledger says of readings that find no room in memory meanwhile.
    refused: Option<LossReason>,
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
            lanes: [None, None, None],
            last_sequences: BTreeMap::new(),
            started_as: None,
            refused: None,
        }
    }

    /// Takes what this service may see.
    pub(super) fn hold(&mut self, cut: &[Taken]) {
        for taken in cut {
            if self.service.sensors.matches(&taken.reading.sensor) {
                let number = taken.reading.sensor_number;
                self.last_sequences.insert(number, taken.reading.sequence);
                self.held.push(taken);
            }
        }
    }

    /// Seals and stores what is held, as far as the disk takes it.
    pub(super) async fn store(&mut self) -> anyhow::Result<()> {
        let Some(parties) = self.parties() else {
            return Ok(());
        };
        let refused = match self.store_all(&parties).await {
            Ok(()) => None,
            Err(StoreError::Later(error)) => Some(error),
            Err(StoreError::Never(error)) => return Err(error),
        };
        let service = &self.service.name;
        match (&refused, self.refused) {
            (Some(error), None) => {
                tracing::error!(service, advice = error.advice(), "cannot store: {error}");
            }
            (None, Some(_)) => tracing::info!(service, "the disk takes batches again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        self.refused = refused.as_ref().map(reason);
        Ok(())
    }

    /// Stores what is held and says that the run ended; the keys are gone afterwards.
    ///
    /// Returns whether every reading is on the medium or in the ledger.
    pub(super) async fn close(&mut self) -> anyhow::Result<bool> {
        self.store().await?;
        let mut clean = match self.parties() {
            Some(parties) => self.say_end(&parties).await?,
            None => true,
        };
        for lane in &mut self.lanes {
            if let Some(lane) = lane.take() {
                clean &= lane.close(&self.run).await;
            }
        }
        clean &= self.give_up_held().await?;
        Ok(clean)
    }

    /// Whether the disk refused something at the last try.
    #[cfg(test)]
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Each class by itself, the most urgent first: what the disk refuses of one, because it is
    /// full of more urgent data, does not hold up the others.
    async fn store_all(&mut self, parties: &Parties) -> Result<(), StoreError> {
        let mut refused = None;
        for &class in Class::ALL {
            match self.store_class(class, parties).await {
                Ok(()) => {}
                Err(StoreError::Later(error)) => refused = refused.or(Some(error)),
                Err(never @ StoreError::Never(_)) => return Err(never),
            }
        }
        refused.map_or(Ok(()), |error| Err(StoreError::Later(error)))
    }

    async fn store_class(&mut self, class: Class, parties: &Parties) -> Result<(), StoreError> {
        if let Some(lane) = of_class(&mut self.lanes, class) {
            lane.flush(&self.run).await?;
        }
        // Also when nothing is to be sealed: a key does not grow older than its epoch.
        self.close_lane_if_over(class, parties).await?;
        if class == Class::Critical {
            self.store_losses(parties).await?;
        }
        loop {
            let readings = self.held.take(class, self.readings_max);
            if readings.is_empty() {
                return Ok(());
            }
            self.seal_readings(class, parties, readings).await?;
        }
    }

    /// Puts losses on record and sends the open ledger entries, which travel as critical.
    async fn store_losses(&mut self, parties: &Parties) -> Result<(), StoreError> {
        let service = *parties.service.bytes();
        self.record_losses(service, self.refused.unwrap_or(LossReason::Full))
            .await?;
        let mut ledger = self.run.spool.ledger_open(service).await?;
        if ledger.is_empty() {
            return Ok(());
        }
        for entry in &mut ledger {
            entry.names = self.names(entry);
        }
        self.ready_lane(Class::Critical, parties).await?;
        let mut batch = self.batch(parties, Vec::new());
        batch.ledger = ledger;
        self.seal(Class::Critical, parties, batch).await
    }

    /// Puts on record what memory had no room for.
    async fn record_losses(
        &mut self,
        service: [u8; 32],
        reason: LossReason,
    ) -> Result<(), StoreError> {
        for &class in Class::ALL {
            let Some(loss) = self.held.loss(class, self.run.id) else {
                continue;
            };
            let loss = Loss {
                lane: Lane { service, class },
                reason,
                tallies: loss.tallies,
                from_ms: loss.from_ms,
                until_ms: loss.until_ms,
                batches: Vec::new(),
            };
            self.run.spool.record_loss(loss).await?;
            self.held.forget_loss(class);
        }
        Ok(())
    }

    async fn seal_readings(
        &mut self,
        class: Class,
        parties: &Parties,
        readings: Vec<Reading>,
    ) -> Result<(), StoreError> {
        if let Err(error) = self.ready_lane(class, parties).await {
            // Nothing was sealed: the readings wait for the next try.
            self.held.put_back(class, readings);
            return Err(error);
        }
        let batch = self.batch(parties, readings);
        self.seal(class, parties, batch).await
    }

    /// Seals one batch of an open lane and stores it. What is too much for one batch waits for
    /// the next: readings are put back, and the spool hands its ledger entries out again.
    async fn seal(
        &mut self,
        class: Class,
        parties: &Parties,
        mut batch: Batch,
    ) -> Result<(), StoreError> {
        let (plaintext, tallies) = loop {
            // Wiped when it is sealed.
            let plaintext = Zeroizing::new(batch.encode());
            let tallies = tally(&batch.readings, self.run.id);
            if fits(plaintext.len(), &tallies) {
                break (plaintext, tallies);
            }
            if !self.halve(class, &mut batch)? {
                return Ok(());
            }
        };
        let lane = of_class(&mut self.lanes, class).as_mut();
        let lane = lane.context("a lane is open before it is used")?;
        lane.seal(&batch, &plaintext, tallies)?;
        self.started_as = Some(parties.gateway);
        lane.flush(&self.run).await
    }

    /// Takes about half out of a batch that is too large; `false` if nothing is left to seal.
    fn halve(&mut self, class: Class, batch: &mut Batch) -> Result<bool, StoreError> {
        match (batch.readings.len(), batch.ledger.len()) {
            (0, 0) => Err(anyhow!("the names of the sensors alone fill a batch").into()),
            (0, 1) => {
                // Its tallies are bounded by the spool; only its names are ours.
                let names = batch.ledger.iter_mut().map(|entry| &mut entry.names);
                if names.map(std::mem::take).all(|names| names.is_empty()) {
                    return Err(anyhow!("a ledger entry alone fills a batch").into());
                }
                Ok(true)
            }
            (0, entries) => {
                batch.ledger.truncate(entries / 2);
                Ok(true)
            }
            (1, _) => {
                tracing::error!("a single reading is larger than a batch may be");
                for reading in batch.readings.drain(..) {
                    self.held.lose(class, &reading);
                }
                Ok(false)
            }
            (readings, _) => {
                let rest = batch.readings.split_off(readings / 2);
                self.held.put_back(class, rest);
                Ok(true)
            }
        }
    }

    /// Sees to it that the lane has an epoch that may take a batch.
    async fn ready_lane(&mut self, class: Class, parties: &Parties) -> Result<(), StoreError> {
        self.close_lane_if_over(class, parties).await?;
        let lane = of_class(&mut self.lanes, class);
        if lane.is_none() {
            *lane = Some(OpenLane::open(class, parties, &self.run).await?);
        }
        Ok(())
    }

    async fn close_lane_if_over(
        &mut self,
        class: Class,
        parties: &Parties,
    ) -> Result<(), StoreError> {
        let now_ms = self.run.clock.now().boottime_ms;
        let lane = of_class(&mut self.lanes, class);
        if let Some(open) = lane
            && open.is_over(parties, now_ms)?
            && let Some(over) = lane.take()
        {
            over.close(&self.run).await;
        }
        Ok(())
    }

    /// Tells the service that the run ended and how far each sensor had come, if it was told that
    /// the run began: in the chain of a lane that is open, or else of `normal`.
    async fn say_end(&mut self, parties: &Parties) -> anyhow::Result<bool> {
        if self.started_as != Some(parties.gateway) {
            return Ok(true);
        }
        let open = Class::ALL
            .iter()
            .find(|class| of_class(&mut self.lanes, **class).is_some());
        let class = open.copied().unwrap_or(Class::Normal);
        let mut batch = self.batch(parties, Vec::new());
        batch.run_events.push(RunEvent::End {
            run_id: self.run.id,
            last: self.last_sequences.clone().into_iter().collect(),
        });
        let told = match self.ready_to_end(class, parties).await {
            Ok(()) => self.seal(class, parties, batch).await,
            refused => refused,
        };
        match told {
            Ok(()) => Ok(true),
            Err(StoreError::Later(error)) => {
                tracing::error!("cannot store the end of the run: {error}");
                Ok(false)
            }
            Err(StoreError::Never(error)) => Err(error),
        }
    }

    /// A lane whose last batch the disk has not taken seals no other.
    async fn ready_to_end(&mut self, class: Class, parties: &Parties) -> Result<(), StoreError> {
        if let Some(lane) = of_class(&mut self.lanes, class) {
            lane.flush(&self.run).await?;
        }
        self.ready_lane(class, parties).await
    }

    /// Puts on record what memory still holds when the run ends. Without a service there is nobody
    /// to tell.
    async fn give_up_held(&mut self) -> anyhow::Result<bool> {
        let readings = self.held.give_up();
        if 0 < readings {
            let service = &self.service.name;
            tracing::warn!(service, readings, "could not be stored before the end");
        }
        let Some(peer) = self.service.peer() else {
            return Ok(true);
        };
        let reason = self.refused.unwrap_or(LossReason::UncleanStop);
        match self.record_losses(*peer.key.bytes(), reason).await {
            Ok(()) => Ok(true),
            Err(StoreError::Later(error)) => {
                tracing::error!("cannot write down the loss of readings: {error}");
                Ok(false)
            }
            Err(StoreError::Never(error)) => Err(error),
        }
    }

    fn parties(&self) -> Option<Parties> {
        let gateway = (*self.run.gateway.borrow())?;
        let peer = self.service.peer()?;
        Some(Parties {
            gateway,
            service: peer.key,
            statement: peer.statement?,
        })
    }

    /// A batch of these readings. The first of a run names the sensors.
    fn batch(&self, parties: &Parties, readings: Vec<Reading>) -> Batch {
        let start = RunEvent::Start {
            run_id: self.run.id,
            sensors: (0..).zip(self.run.sensors.iter().cloned()).collect(),
        };
        let started = self.started_as == Some(parties.gateway);
        Batch {
            base_name: format!("{}/", parties.gateway),
            readings,
            ledger: Vec::new(),
            run_events: (!started).then_some(start).into_iter().collect(),
        }
    }

    /// The names of an entry's sensors. Those of earlier runs are left out, since a number is a
    /// place in the configuration, which may have changed since.
    fn names(&self, entry: &LedgerEntry) -> Vec<(u32, String)> {
        let of_run = |tally: &&Tally| tally.run_id == self.run.id;
        let tallies = entry.tallies.iter().filter(of_run);
        let named = tallies.filter_map(|tally| {
            let place = usize::try_from(tally.sensor_number).ok()?;
            let name = self.run.sensors.get(place)?;
            Some((tally.sensor_number, name.clone()))
        });
        // In order, each once.
        named.collect::<BTreeMap<_, _>>().into_iter().collect()
    }
}

/// What a batch holds, in numbers without names.
fn tally(readings: &[Reading], run_id: [u8; 16]) -> Vec<Tally> {
    let mut tallies: BTreeMap<u32, Tally> = BTreeMap::new();
    for reading in readings {
        let tally = tallies.entry(reading.sensor_number).or_insert(Tally {
            sensor_number: reading.sensor_number,
            run_id,
            first: reading.sequence,
            last: reading.sequence,
            count: 0,
        });
        tally.first = tally.first.min(reading.sequence);
        tally.last = tally.last.max(reading.sequence);
        tally.count += 1;
    }
    tallies.into_values().collect()
}

/// Whether one batch may have a plaintext of this size, for the seal and for the spool.
fn fits(plaintext_bytes: usize, tallies: &[Tally]) -> bool {
    plaintext_bytes <= BATCH_PLAINTEXT_BYTES_MAX
        && plaintext_bytes + SEAL_BYTES + encode_tallies(tallies).len() <= BATCH_BYTES_MAX
}

/// How the ledger calls what memory has no room for while the disk says this.
fn reason(error: &spool::SpoolError) -> LossReason {
    if matches!(error, spool::SpoolError::Disk { .. }) {
        LossReason::Disk
    } else {
        LossReason::Full
    }
}

/// What a sealed batch has besides its plaintext: epoch id, number, chain hash, tag, and their
/// CBOR heads (protocol.md 3.2), rounded up.
const SEAL_BYTES: usize = 128;
