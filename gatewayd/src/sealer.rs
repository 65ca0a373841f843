//! Seals batches, one chain of epochs for each lane, and puts them on the medium.

mod held;
mod outlet;

use std::{sync::Arc, time::Duration};

use channel::Fingerprint;
use spool::Spool;
use tokio::sync::{mpsc, watch};

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
}

/// The one task that seals.
pub struct Sealer {
    outlets: Vec<Outlet>,
    progress: Progress,
}

impl Sealer {
    /// A sealer with one outlet for each service.
    #[must_use]
    pub fn new(outlets: Vec<Outlet>, progress: Progress) -> Self {
        Self { outlets, progress }
    }

    /// Runs until the collector is gone, then closes every epoch.
    ///
    /// A disk that refuses does not end it: what was sealed is offered again, what was not waits
    /// in bounded memory, and what does not fit there goes to the ledger.
    ///
    /// # Errors
    ///
    /// If sealing itself fails: the randomness of the machine is gone.
    pub async fn run(mut self, mut cuts: mpsc::Receiver<Vec<Taken>>) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK);
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
        for outlet in &mut self.outlets {
            outlet.close().await?;
        }
        Ok(())
    }
}

/// How often what waits is offered again and the age of epochs is looked at.
const TICK: Duration = Duration::from_secs(1);
