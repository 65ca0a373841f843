//! A `[[service]]` at run time: whom it is, what may go there, and how its link is.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use channel::{Fingerprint, Statement};
use data_encoding::HEXLOWER;
use futures::future::BoxFuture;
use link::{Address, KeepStatement};
use spool::Spool;
use tokio::sync::watch;

use crate::config::{Patterns, ServiceConfig};

/// A service that the configuration or a ticket names.
pub struct Service {
    /// Its name in the configuration.
    pub name: String,
    /// The sensors whose readings may go there.
    pub sensors: Patterns,
    /// Addresses of the configuration; they win over those of a ticket.
    addresses: Vec<Address>,
    spool: Spool,
    peer: watch::Sender<Option<Peer>>,
    link: Mutex<LinkNote>,
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
    /// Boot time in milliseconds of the last ack.
    pub last_ack_ms: Option<u64>,
    /// Boot time in milliseconds since which something waits for an ack.
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
    /// A session is open and nothing waits for an ack longer than a minute.
    Connected,
    /// A session is open and a backlog is on its way.
    Draining,
    /// The service refuses this gateway.
    Refused,
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
            spool,
            peer: watch::Sender::new(None),
            link: Mutex::default(),
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
        let kept = self.spool.get(&statement_key(&key)).await?;
        let statement = kept.and_then(|bytes| {
            Statement::verify(&bytes, &key)
                .inspect_err(|error| {
                    tracing::warn!(service = self.name, %error, "kept statement is left out");
                })
                .ok()
        });
        let configured = Some(&self.addresses).filter(|configured| !configured.is_empty());
        self.peer.send_replace(Some(Peer {
            key,
            addresses: configured.cloned().unwrap_or(addresses),
            enrolled,
            statement: statement.map(Arc::new),
        }));
        Ok(())
    }

    /// Takes back that the service knows this gateway: its identity is a new one.
    pub fn forget_enrolment(&self) {
        self.peer.send_modify(|peer| {
            if let Some(peer) = peer {
                peer.enrolled = false;
            }
        });
    }

    /// Puts back what was known of the peer before an enrolment that failed.
    pub fn restore_peer(&self, peer: Option<Peer>) {
        self.peer.send_replace(peer);
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
            self.peer.send_modify(|peer| {
                if let Some(peer) = peer {
                    peer.statement = Some(Arc::new(statement.clone()));
                }
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
