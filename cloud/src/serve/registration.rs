//! The places of a service at its relays.

use link::{Address, LinkError, relay};
use rand_core::{Rng, UnwrapErr};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Incoming, retry::Retry};
use crate::keys::ServiceKeys;

/// Keeps this service registered at a relay and fetches what comes for it there, for ever.
pub(super) async fn stay_registered(
    keys: &ServiceKeys,
    address: &Address,
    incoming: mpsc::Sender<Incoming>,
) -> anyhow::Result<()> {
    let via = address.host();
    let mut retry = Retry::default();
    loop {
        let mut since = None;
        let end = registered(keys, address, &incoming, &mut since).await;
        let random = UnwrapErr(getrandom::SysRng).next_u64();
        let pause = retry.after(since.map(|since: Instant| since.elapsed()), random);
        match end {
            Ok(()) => tracing::info!(relay = via, "the relay is draining; back in {pause:.1?}"),
            Err(error) => {
                let problem = anyhow::Error::from(error);
                tracing::warn!(
                    relay = via,
                    "not registered: {problem:#}; retry in {pause:.1?}"
                );
            }
        }
        sleep(pause).await;
    }
}

/// One registration, until it ends; `since` is when it began, if it did.
async fn registered(
    keys: &ServiceKeys,
    address: &Address,
    incoming: &mpsc::Sender<Incoming>,
    since: &mut Option<Instant>,
) -> Result<(), LinkError> {
    let mut registration = relay::register(address, &keys.statement, &keys.online).await?;
    tracing::info!(relay = address.host(), "registered");
    *since = Some(Instant::now());
    loop {
        match registration.next().await? {
            relay::RelayEvent::Incoming(id) => {
                let gateway = Incoming::Relayed(address.clone(), id);
                // The receiver lives as long as this future.
                drop(incoming.send(gateway).await);
            }
            // Draining, or something a newer relay says that we do not know.
            relay::RelayEvent::Drain | _ => return Ok(()),
        }
    }
}
