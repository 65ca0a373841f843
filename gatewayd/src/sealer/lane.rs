//! One lane's open epoch, and the batch that the disk has not taken yet.

use std::time::Duration;

use anyhow::Context;
use channel::{Epoch, EpochClock, EpochTerms, Fingerprint, Previous};
use rand_core::UnwrapErr;
use spool::{Lane, Loss, NewBatch, NewEpoch};
use wire::{
    Class,
    batch::{Batch, LossReason, LostBatches, Tally},
};

use super::{Parties, Run, StoreError};

/// An epoch in use.
pub(super) struct OpenLane {
    place: Lane,
    epoch: Epoch,
    opened_ms: u64,
    gateway: Fingerprint,
    service: Fingerprint,
    record_key: Fingerprint,
    /// Sealed, so it is never sealed anew: the same bytes are offered until the disk takes them.
    unstored: Option<NewBatch>,
}

impl OpenLane {
    /// Opens the next epoch of a lane's chain.
    pub(super) async fn open(
        class: Class,
        parties: &Parties,
        run: &Run,
    ) -> Result<Self, StoreError> {
        let place = Lane {
            service: *parties.service.bytes(),
            class,
        };
        let newest = run.spool.lane(place).await?.newest;
        let record_key = parties.record_key()?;
        let now = run.clock.now();
        let index = newest.as_ref().map_or(0, |newest| newest.index + 1);
        let terms = EpochTerms {
            gateway: parties.gateway,
            service: parties.service,
            class: class.into(),
            chain_id: run.spool.chain_id(),
            index,
            run_id: run.id,
            previous: newest.map(|newest| Previous {
                epoch_id: newest.epoch_id,
                count: newest.count,
                head: newest.head,
                clean: newest.clean,
            }),
            opened: EpochClock {
                boot_id: run.clock.boot_id(),
                boottime_ms: now.boottime_ms,
                wall_ms: now.wall_ms,
                clock: now.clock.into(),
            },
        };
        let (epoch, header) = Epoch::open(terms, record_key, &mut UnwrapErr(getrandom::SysRng))
            .context("cannot open an epoch")?;
        run.spool
            .open_epoch(NewEpoch {
                lane: place,
                epoch_id: epoch.id(),
                index,
                unsigned_header: header.payload().to_vec(),
            })
            .await?;
        Ok(Self {
            place,
            epoch,
            opened_ms: now.boottime_ms,
            gateway: parties.gateway,
            service: parties.service,
            record_key: record_key.fingerprint(),
            unstored: None,
        })
    }

    /// Whether the epoch must not be used any more (protocol.md 3.3).
    pub(super) fn is_over(&self, parties: &Parties, now_ms: u64) -> Result<bool, StoreError> {
        let age = Duration::from_millis(now_ms.saturating_sub(self.opened_ms));
        Ok(EPOCH_AGE_MAX <= age
            || self.epoch.is_full()
            || self.gateway != parties.gateway
            || self.service != parties.service
            || self.record_key != parties.record_key()?.fingerprint())
    }

    /// Seals a batch; [`flush`](Self::flush) stores it.
    pub(super) fn seal(
        &mut self,
        batch: &Batch,
        plaintext: &[u8],
        tallies: Vec<Tally>,
    ) -> Result<(), StoreError> {
        let sealed = self.epoch.seal(plaintext).context("cannot seal a batch")?;
        let times = batch.readings.iter().map(|reading| reading.time.wall_ms);
        self.unstored = Some(NewBatch {
            lane: self.place,
            epoch_id: sealed.epoch_id,
            number: sealed.number,
            chain: sealed.chain(),
            tallies,
            from_ms: times.clone().min().unwrap_or(0),
            until_ms: times.max().unwrap_or(0),
            bytes: sealed.encode(),
            ledger_ids: batch.ledger.iter().map(|entry| entry.id).collect(),
        });
        Ok(())
    }

    /// Offers the disk what it has not taken yet.
    pub(super) async fn flush(&mut self, run: &Run) -> Result<(), StoreError> {
        if let Some(batch) = &self.unstored {
            run.spool.append(batch.clone()).await?;
            self.unstored = None;
            run.progress.mark(crate::watchdog::Task::Seal);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn place(&self) -> Lane {
        self.place
    }

    /// What was sealed and is not on the medium.
    #[cfg(test)]
    pub(super) fn unstored(&self) -> Option<&[u8]> {
        self.unstored.as_ref().map(|batch| batch.bytes.as_slice())
    }

    /// Ends the epoch; its key is gone with it.
    ///
    /// A batch that the disk never took is missing from the chain, so the end is not clean then,
    /// and the batch goes to the ledger. Returns whether all of it is on the medium.
    pub(super) async fn close(self, run: &Run) -> bool {
        let clean = self.unstored.is_none();
        let closed = run.spool.close_epoch(self.place, self.epoch.id(), clean);
        if let Err(error) = closed.await {
            tracing::error!("cannot write down the end of an epoch: {error}");
        }
        let Some(batch) = self.unstored else {
            return true;
        };
        let recorded = run.spool.record_loss(Loss {
            lane: self.place,
            reason: LossReason::Disk,
            tallies: batch.tallies,
            from_ms: batch.from_ms,
            until_ms: batch.until_ms,
            batches: vec![LostBatches {
                epoch_id: batch.epoch_id,
                first: batch.number,
                last: batch.number,
            }],
        });
        let recorded = recorded.await;
        if let Err(error) = &recorded {
            tracing::error!("cannot write down the loss of a batch: {error}");
        }
        recorded.is_ok()
    }
}

/// protocol.md 3.3: 1 h of CLOCK_BOOTTIME, also when idle.
const EPOCH_AGE_MAX: Duration = Duration::from_secs(3600);
