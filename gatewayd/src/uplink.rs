//! Keeps a session to one service and delivers over it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use channel::{Admission, InitiatorConfig, Purpose, Suite};
use link::{Address, LinkError, StreamName};
use spool::Spool;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    clock::Clock,
    identity::Identity,
    service::{LinkState, Peer, Service},
    upload::{Ends, Memory, Upload},
    watchdog::{Progress, Task},
};

/// Delivers to one service.
pub struct Uplink {
    service: Arc<Service>,
    spool: Spool,
    clock: Clock,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    progress: Progress,
    memory: Mutex<Memory>,
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
            memory: Mutex::default(),
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
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            let began = Instant::now();
            let acked_ms = self.service.link().last_ack_ms;
            let ended = self.deliver(&identity, &peer, &address, stop).await;
            let useful = acked_ms != self.service.link().last_ack_ms;
            if (useful || STEADY_MIN <= began.elapsed())
                && !matches!(ended, Err(Failure::Protocol(_)))
            {
                backoff.reset();
            }
            match ended {
                Ok(()) => self.note_problem("the session was closed", "wait; it is opened again"),
                Err(failure) => self.note_failure(failure)?,
            }
            attempt = attempt.wrapping_add(1);
            if stop
                .run_until_cancelled(self.pause(backoff.pause()))
                .await
                .is_none()
            {
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

    /// Waits, but not when there is a new identity or a new enrolment to try.
    async fn pause(&mut self, pause: Duration) {
        let mut peers = self.service.peer_changes();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = peers.changed() => {}
            _ = self.identity.changed() => {}
        }
    }

    /// One session, until it ends. The service is told why it ends.
    async fn deliver(
        &mut self,
        identity: &Identity,
        peer: &Peer,
        address: &Address,
        stop: &CancellationToken,
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
        let (driver, streams) = link?.split();
        let ends = Ends {
            service: *peer.key.bytes(),
            gateway: *identity.fingerprint().bytes(),
        };
        let upload = Upload::new(&self.service, &self.spool, &self.clock, &ends, &self.memory);
        let upload = async { upload.run(streams.open(StreamName::Upload).await?).await };
        let changes = &mut self.identity;
        let conversation = async {
            // Epochs of a new identity must not go over a session of the old one.
            let end = tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                _ = changes.changed() => Ok(()),
                end = upload => end,
            };
            streams.close(match end {
                Err(Failure::Protocol(_)) => Admission::ProtocolError,
                Ok(()) | Err(_) => Admission::GoingAway,
            });
            end
        };
        // The conversation may fail because the link did; then the link knows why.
        let (conversation, driver) = tokio::join!(conversation, driver.run());
        match (conversation, driver) {
            (Ok(()) | Err(Failure::Link(LinkError::Ended | LinkError::Cut)), driver) => {
                closed_because(driver?)
            }
            (failed, _) => failed,
        }
    }

    /// Writes down why a session ended.
    ///
    /// # Errors
    ///
    /// What the daemon cannot go on with.
    fn note_failure(&self, failure: Failure) -> anyhow::Result<()> {
        match failure {
            Failure::Link(error) => self.note_link_error(&error),
            Failure::Protocol(what) => {
                self.note_problem(&what, "update both sides to the same version");
            }
            Failure::Later => {
                self.note_problem("the service takes nothing now", "wait; it is tried again");
            }
            Failure::Disk(error) => self.note_problem(&crate::chain(&error), error.advice()),
            Failure::Local(error) => return Err(error),
        }
        Ok(())
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

/// What the reason of a close means to us.
fn closed_because(reason: Admission) -> Result<(), Failure> {
    match reason {
        Admission::Ok | Admission::GoingAway | Admission::Busy => Ok(()),
        Admission::ProtocolError => Err(Failure::Protocol(
            "the service calls what we sent wrong".to_owned(),
        )),
        Admission::UnknownGateway
        | Admission::Suspended
        | Admission::Revoked
        | Admission::Retired
        | Admission::Version
        | Admission::AttestationRequired => Err(Failure::Link(LinkError::Refused(reason))),
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
    /// The service asks to be left alone for now.
    Later,
    /// Our own disk, for now: try again.
    Disk(spool::SpoolError),
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
        if crate::passes(&error) {
            Self::Disk(error)
        } else {
            Self::Local(error.into())
        }
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

/// A session that held so long was no failure, even if nothing was acknowledged.
const STEADY_MIN: Duration = Duration::from_secs(60);

/// protocol.md 6.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// protocol.md 6.
const RETRY_MAX: Duration = Duration::from_secs(300);
