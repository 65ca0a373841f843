//! Seals batches, one chain of epochs for each lane, and puts them on the medium.

mod held;
#[cfg(test)]
mod kills;
mod lane;
mod outlet;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use channel::{Fingerprint, RecordPublicKey, Statement};
use spool::{Spool, SpoolError};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

pub use self::outlet::Outlet;
use crate::{
    clock::Clock,
    collect::Taken,
    watchdog::{Progress, Task},
};

/// What every lane of this run shares.
#[derive(Clone)]
pub struct Run {
    /// Born with the process: names its readings' numbers.
    pub id: [u8; 16],
    /// The sensors' names; their numbers are their places.
    pub sensors: Arc<[String]>,
    /// The clocks.
    pub clock: Clock,
    /// Where sealed batches go.
    pub spool: Spool,
    /// Who this gateway is; `None` before `gatewayctl init`.
    pub gateway: watch::Receiver<Option<Fingerprint>>,
    /// Where each stored batch is marked.
    pub progress: Progress,
}

/// The one task that seals.
pub struct Sealer {
    outlets: Vec<Outlet>,
    progress: Progress,
}

/// Who seals to whom, at this moment.
struct Parties {
    gateway: Fingerprint,
    service: Fingerprint,
    statement: Arc<Statement>,
}

/// Why something was not stored.
enum StoreError {
    /// The disk does not take it now: offer it again.
    Later(SpoolError),
    /// No use in trying again: the daemon starts afresh.
    Never(anyhow::Error),
}

impl Sealer {
    /// A sealer with one outlet for each service.
    #[must_use]
    pub fn new(outlets: Vec<Outlet>, progress: Progress) -> Self {
        Self { outlets, progress }
    }

    /// Runs until the collector is gone, then closes every epoch. Returns whether every reading is
    /// on the medium or in the ledger.
    ///
    /// A disk that refuses does not end it: what was sealed is offered again, what was not waits
    /// in bounded memory, and what does not fit there goes to the ledger.
    ///
    /// # Errors
    ///
    /// If sealing itself fails, or the spool is broken and must be opened anew.
    pub async fn run(mut self, mut cuts: mpsc::Receiver<Vec<Taken>>) -> anyhow::Result<bool> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                cut = cuts.recv() => match cut {
                    Some(cut) => self.outlets.iter_mut().for_each(|outlet| outlet.hold(&cut)),
                    None => break,
                },
                _ = ticks.tick() => {}
            }
            for outlet in &mut self.outlets {
                outlet.store().await?;
            }
            self.progress.mark(Task::Seal);
        }
        let mut clean = true;
        for outlet in &mut self.outlets {
            clean &= outlet.close().await?;
        }
        Ok(clean)
    }
}

impl Parties {
    /// The key to which new epochs are opened.
    fn record_key(&self) -> anyhow::Result<&RecordPublicKey> {
        let first = self.statement.record_keys().first();
        first.context("a statement has a record key")
    }
}

impl From<SpoolError> for StoreError {
    fn from(error: SpoolError) -> Self {
        if crate::passes(&error) {
            Self::Later(error)
        } else {
            Self::Never(anyhow::Error::new(error).context("the spool does not work"))
        }
    }
}

impl From<anyhow::Error> for StoreError {
    fn from(error: anyhow::Error) -> Self {
        Self::Never(error)
    }
}

/// How often what waits is offered again and the age of epochs is looked at.
const TICK: Duration = Duration::from_secs(1);
