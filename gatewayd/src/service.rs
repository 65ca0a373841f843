//! A `[[service]]` at run time: whom it is, what may go there, and how its link is.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use channel::{Fingerprint, Statement};
use data_encoding::HEXLOWER;
use futures::future::BoxFuture;
use link::relay::Token;
use link::{Address, KeepStatement};
use secret::Secret;
use spool::Spool;
use tokio::sync::watch;

use crate::{
    config::{Patterns, ServiceConfig},
    uplink::addresses::Addresses,
};

/// A service that the configuration or a ticket names.
pub struct Service {
    /// Its name in the configuration.
    pub name: String,
    /// The sensors whose readings may go there.
    pub sensors: Patterns,
    /// Addresses of the configuration; they win over those of a ticket.
    addresses: Vec<Address>,
    relay_token: Option<Secret>,
    spool: Spool,
    peer: watch::Sender<Option<Peer>>,
    link: Mutex<LinkNote>,
    health: Mutex<Addresses>,
}

/// What is known of the service on the other side.
#[derive(Clone)]
pub struct Peer {
    /// The fingerprint of its identity: the pin.
    pub key: Fingerprint,
    /// Where it can be reached, best first.
    pub addresses: Vec<Address>,
    /// Whether it has enrolled this gateway.
    pub enrolled: bool,
    /// The keys it uses today; `None` before the first session.
    pub statement: Option<Arc<Statement>>,
}

/// How the link to a service is.
#[derive(Clone, Debug, Default)]
pub struct LinkNote {
    /// In one word of the metrics.
    pub state: LinkState,
    /// The host of the address in use, or of the last attempt.
    pub via: Option<String>,
    /// That address.
    pub address: Option<Address>,
    /// Boot time in milliseconds of the last ack.
    pub last_ack_ms: Option<u64>,
    /// Boot time in milliseconds at which the oldest batch that waits for an ack was sent.
    pub unacked_since_ms: Option<u64>,
    /// Readings acknowledged since the daemon started.
    pub acked_readings: u64,
    /// Why it is not connected, in words.
    pub problem: Option<String>,
    /// What to do about it.
    pub advice: Option<String>,
}

/// The uplink's states (the words of status and metrics).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// Waiting for identity, ticket, or the next attempt.
    #[default]
    Waiting,
    /// Dialling or in the handshake.
    Connecting,
    /// A session is open; seen through [`LinkNote::state_at`], nothing waits for an ack longer than
    /// a minute.
    Connected,
    /// A session is open and a backlog is on its way.
    Draining,
    /// The service refuses this gateway.
    Refused,
}

impl LinkNote {
    /// The state at boot time `now_ms`, given the age of the oldest reading that waits: connected
    /// means that nothing waits for an ack longer than a minute.
    #[must_use]
    pub fn state_at(&self, now_ms: u64, oldest_age_ms: u64) -> LinkState {
        let unacked_ms = self
            .unacked_since_ms
            .map_or(0, |since| now_ms.saturating_sub(since));
        if self.state == LinkState::Connected && UNACKED_MAX_MS < unacked_ms.max(oldest_age_ms) {
            return LinkState::Draining;
        }
        self.state
    }
}

impl LinkState {
    /// Every state, for metrics.
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Connecting,
        Self::Connected,
        Self::Draining,
        Self::Refused,
    ];

    /// The word that status and metrics use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Draining => "draining",
            Self::Refused => "refused",
        }
    }
}

impl Service {
    /// A configured service, still without peer.
    #[must_use]
    pub fn new(config: ServiceConfig, spool: Spool) -> Self {
        Self {
            name: config.name,
            sensors: config.sensors,
            addresses: config.addresses,
            relay_token: config.relay_token,
            spool,
            peer: watch::Sender::new(None),
            link: Mutex::default(),
            health: Mutex::default(),
        }
    }

    /// Names the peer, with the statement that the spool kept for it, if any. `addresses` are
    /// those of the ticket.
    ///
    /// # Errors
    ///
    /// If the spool cannot be read. A kept statement that does not verify is left out with a
    /// warning: the service sends it anew.
    pub async fn set_peer(
        &self,
        key: Fingerprint,
        addresses: Vec<Address>,
        enrolled: bool,
    ) -> anyhow::Result<()> {
        let peer = self.candidate(key, addresses, enrolled).await?;
        self.peer.send_replace(Some(peer));
        Ok(())
    }

    /// The peer as [`set_peer`](Self::set_peer) would name it: for an enrolment that may yet fail.
    ///
    /// # Errors
    ///
    /// If the spool cannot be read.
    pub async fn candidate(
        &self,
        key: Fingerprint,
        addresses: Vec<Address>,
        enrolled: bool,
    ) -> anyhow::Result<Peer> {
        let kept = self.spool.get(&statement_key(&key)).await?;
        let statement = kept.and_then(|bytes| {
            Statement::verify(&bytes, &key)
                .inspect_err(|error| {
                    tracing::warn!(service = self.name, %error, "kept statement is left out");
                })
                .ok()
        });
        let configured = Some(&self.addresses).filter(|configured| !configured.is_empty());
        Ok(Peer {
            key,
            addresses: configured.cloned().unwrap_or(addresses),
            enrolled,
            statement: statement.map(Arc::new),
        })
    }

    /// What relays want to see, if it is configured; read each time.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is no token.
    pub fn relay_token(&self) -> anyhow::Result<Option<Token>> {
        let Some(secret) = &self.relay_token else {
            return Ok(None);
        };
        let token = Token::parse(&secret.read()?);
        let token = token.with_context(|| {
            format!("{secret} is not 40 bytes in base32, as `head -c 40 /dev/urandom | base32 -w0` makes them")
        })?;
        Ok(Some(token))
    }

    /// Takes back that the service knows this gateway: its identity is a new one.
    pub fn forget_enrolment(&self) {
        self.peer.send_modify(|peer| {
            if let Some(peer) = peer {
                peer.enrolled = false;
            }
        });
    }

    /// The peer as known now.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        self.peer.borrow().clone()
    }

    /// Tells when the peer changes.
    #[must_use]
    pub fn peer_changes(&self) -> watch::Receiver<Option<Peer>> {
        self.peer.subscribe()
    }

    /// How the link is.
    #[must_use]
    pub fn link(&self) -> LinkNote {
        self.link_note().clone()
    }

    /// How its addresses have done. Not to be held across an await.
    pub fn health(&self) -> MutexGuard<'_, Addresses> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down how the link is; a change of state is one line in the log.
    pub fn note_link(&self, write: impl FnOnce(&mut LinkNote)) {
        let mut note = self.link_note();
        let before = note.state;
        write(&mut note);
        if note.state != before {
            tracing::info!(
                service = self.name,
                from = before.word(),
                state = note.state.word(),
                via = note.via,
                problem = note.problem,
                "uplink changed"
            );
        }
    }

    fn link_note(&self) -> MutexGuard<'_, LinkNote> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeepStatement for Service {
    fn keep<'a>(&'a self, statement: &'a Statement) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let key = statement_key(&statement.fingerprint());
            let kept = self.spool.put(&key, statement.bytes().to_vec()).await;
            kept.map_err(io::Error::other)?;
            // While a gateway enrols, the service is not its peer yet.
            self.peer.send_if_modified(|peer| match peer {
                Some(peer) if peer.key == statement.fingerprint() => {
                    peer.statement = Some(Arc::new(statement.clone()));
                    true
                }
                Some(_) | None => false,
            });
            tracing::info!(
                service = self.name,
                serial = statement.serial(),
                "new statement kept"
            );
            Ok(())
        })
    }
}

/// Under which name the spool keeps the newest statement of a service.
fn statement_key(service: &Fingerprint) -> String {
    format!("statement:{}", HEXLOWER.encode(service.bytes()))
}

/// Connected means that nothing waits for an ack longer than this.
const UNACKED_MAX_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_means_that_nothing_waits_for_an_ack_longer_than_a_minute() {
        let note = LinkNote {
            state: LinkState::Connected,
            unacked_since_ms: Some(1_000),
            ..LinkNote::default()
        };
        assert_eq!(note.state_at(61_000, 0), LinkState::Connected);
        assert_eq!(note.state_at(61_001, 0), LinkState::Draining);
        assert_eq!(note.state_at(1_000, 60_001), LinkState::Draining);
        assert_eq!(
            LinkNote::default().state_at(61_001, 60_001),
            LinkState::Waiting
        );
    }
}
