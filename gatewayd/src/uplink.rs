//! Keeps a session to one service and delivers over it.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use channel::{Admission, InitiatorConfig, Purpose, Suite};
use link::{Address, LinkError, StreamName};
use spool::Spool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    clock::Clock,
    identity::Identity,
    service::{LinkState, Peer, Service},
    upload::Upload,
    watchdog::{Progress, Task},
};

/// Delivers to one service.
pub struct Uplink {
    service: Arc<Service>,
    spool: Spool,
    clock: Clock,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    progress: Progress,
}

impl Uplink {
    /// An uplink that waits for identity and enrolment.
    #[must_use]
    pub fn new(
        service: Arc<Service>,
        spool: Spool,
        clock: Clock,
        identity: watch::Receiver<Option<Arc<Identity>>>,
        progress: Progress,
    ) -> Self {
        Self {
            service,
            spool,
            clock,
            identity,
            progress,
        }
    }

    /// Runs until `stop`. Attempts follow each other after 1 s doubling to 5 min, at the next
    /// address each time.
    ///
    /// # Errors
    ///
    /// If the spool's thread is gone.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut marks = tokio::time::interval(MARK_INTERVAL);
        let progress = self.progress.clone();
        let alive = async {
            loop {
                marks.tick().await;
                progress.mark(Task::Uplink);
            }
        };
        tokio::select! {
            () = alive => Ok(()),
            end = self.keep_delivering(&stop) => end,
        }
    }

    async fn keep_delivering(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut attempt = 0_usize;
        while let Some(target) = stop.run_until_cancelled(self.target(attempt)).await {
            let (identity, peer, address) = target?;
            match self
                .deliver(&identity, &peer, &address, (&mut backoff, stop))
                .await
            {
                Ok(()) => self.note_problem("the session was closed", "wait; it is opened again"),
                Err(Failure::Link(error)) => self.note_link_error(&error),
                Err(Failure::Protocol(what)) => {
                    self.note_problem(&what, "update both sides to the same version");
                }
                Err(Failure::Local(error)) => return Err(error),
            }
            attempt = attempt.wrapping_add(1);
            let pause = tokio::time::sleep(backoff.next());
            if stop.run_until_cancelled(pause).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Waits until there is an identity and a service that has enrolled it, and chooses the
    /// address of this attempt.
    async fn target(&mut self, attempt: usize) -> anyhow::Result<(Arc<Identity>, Peer, Address)> {
        let mut peers = self.service.peer_changes();
        let identity = wait_for(&mut self.identity, Clone::clone).await?;
        let enrolled = |peer: &Option<Peer>| peer.clone().filter(|peer| peer.enrolled);
        let mut peer = wait_for(&mut peers, enrolled).await?;
        if peer.addresses.is_empty() {
            self.note_problem("no address", "name one in addresses of the [[service]]");
            let reachable =
                |peer: &Option<Peer>| enrolled(peer).filter(|peer| !peer.addresses.is_empty());
            peer = wait_for(&mut peers, reachable).await?;
        }
        let turn = attempt % peer.addresses.len();
        let address = peer.addresses.get(turn).cloned().context("an address")?;
        Ok((identity, peer, address))
    }

    /// One session, until it ends. When the daemon stops, the service is told.
    async fn deliver(
        &self,
        identity: &Identity,
        peer: &Peer,
        address: &Address,
        (backoff, stop): (&mut Backoff, &CancellationToken),
    ) -> Result<(), Failure> {
        self.service.note_link(|note| {
            note.state = LinkState::Connecting;
            note.via = Some(address.host().to_owned());
        });
        let config = initiator(identity, peer, Purpose::Deliver);
        let connect = link::connect(address, config, identity, &*self.service);
        let Some(link) = stop.run_until_cancelled(connect).await else {
            return Ok(());
        };
        let link = link?;
        backoff.reset();
        let (driver, streams) = link.split();
        let upload = async {
            let messages = streams.open(StreamName::Upload).await?;
            self.service.note_link(|note| {
                note.state = LinkState::Connected;
                note.problem = None;
                note.advice = None;
            });
            let upload = Upload::new(&self.service, &self.spool, &self.clock, *peer.key.bytes());
            upload.run(messages).await
        };
        let farewell = async {
            stop.cancelled().await;
            streams.close(Admission::GoingAway);
            std::future::pending().await
        };
        tokio::select! {
            end = driver.run() => {
                let code = end?;
                tracing::debug!(service = self.service.name, %code, "session closed");
                Ok(())
            }
            end = upload => end,
            end = farewell => end,
        }
    }

    fn note_link_error(&self, error: &LinkError) {
        let refused = matches!(error, LinkError::Refused(_) | LinkError::KeyMismatch(_));
        self.service.note_link(|note| {
            note.state = if refused {
                LinkState::Refused
            } else {
                LinkState::Waiting
            };
            note.problem = Some(crate::chain(error));
            note.advice = Some(error.advice().to_owned());
        });
    }

    fn note_problem(&self, problem: &str, advice: &str) {
        self.service.note_link(|note| {
            note.state = LinkState::Waiting;
            note.problem = Some(problem.to_owned());
            note.advice = Some(advice.to_owned());
        });
    }
}

/// How this gateway opens a session.
pub(crate) fn initiator(identity: &Identity, peer: &Peer, purpose: Purpose) -> InitiatorConfig {
    InitiatorConfig {
        suite: Suite::ChaChaPoly,
        pin: peer.key,
        held: peer.statement.as_deref().cloned(),
        static_key: channel::StaticKey::public(identity),
        purpose,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Why a session ended.
pub(crate) enum Failure {
    /// The other side or the way there: try again.
    Link(LinkError),
    /// The service broke the rules of the upload.
    Protocol(String),
    /// Our own spool: give up.
    Local(anyhow::Error),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<spool::SpoolError> for Failure {
    fn from(error: spool::SpoolError) -> Self {
        Self::Local(error.into())
    }
}

/// Waits until `pick` finds something in a watched value.
async fn wait_for<T, U>(
    receiver: &mut watch::Receiver<T>,
    pick: impl Fn(&T) -> Option<U>,
) -> anyhow::Result<U> {
    loop {
        if let Some(found) = pick(&receiver.borrow_and_update()) {
            return Ok(found);
        }
        receiver.changed().await?;
    }
}

/// How often an uplink says that it is alive, connected or not.
const MARK_INTERVAL: Duration = Duration::from_secs(5);

/// protocol.md 6.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// protocol.md 6.
const RETRY_MAX: Duration = Duration::from_secs(300);
