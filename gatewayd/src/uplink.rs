//! Keeps a session to one service and delivers over it, at the healthiest of its addresses.

pub mod addresses;
pub mod cause;
mod proof;
mod rounds;
mod suite;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use channel::{Admission, InitiatorConfig, Purpose};
use link::{Address, Link, LinkError, StreamName};
use spool::Spool;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    identity::Identity,
    service::{LinkState, Peer, Service},
    upload::{Ends, Memory, Upload},
    watchdog::{Progress, Task},
};

use cause::Cause;
use proof::Watched;
use rounds::{Rounds, Waits};

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

    /// Runs until `stop`.
    ///
    /// Attempts come in rounds, in which each address is tried once, the healthiest first and the
    /// next one at once. Rounds follow each other after 1 s doubling to 5 min, with full jitter
    /// (protocol.md 6). An address that works is kept until it fails.
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
        let mut rounds = Rounds::new();
        while let Some(target) = stop.run_until_cancelled(self.target()).await {
            let (identity, peer) = target?;
            let Some(address) = self.next_address(&rounds.tried) else {
                let pause = self.pause(rounds.end());
                if stop.run_until_cancelled(pause).await.is_none() {
                    break;
                }
                continue;
            };
            let began = Instant::now();
            let acked_ms = self.service.link().last_ack_ms;
            let waits = rounds.waits(peer.addresses.len());
            let target = (&*identity, &peer, &address);
            let ended = self.deliver(target, waits, stop).await;
            let useful = acked_ms != self.service.link().last_ack_ms;
            let worked = (useful || STEADY_MIN <= began.elapsed())
                && !matches!(ended, Err(Failure::Protocol(_)));
            let charged = ended.as_ref().is_err_and(|end| end.cause().is_some());
            self.note_end(&address, ended)?;
            let others = 1 < peer.addresses.len();
            let pause = match (worked, charged) {
                (true, _) => Some(rounds.after_work(Some(address).filter(|_| charged && others))),
                (false, true) => {
                    rounds.tried.push(address);
                    None
                }
                // The service or this machine is why; another address would not help.
                (false, false) => Some(rounds.end()),
            };
            if let Some(pause) = pause
                && stop.run_until_cancelled(self.pause(pause)).await.is_none()
            {
                break;
            }
        }
        Ok(())
    }

    /// Waits until there is an identity and a service that has enrolled it and can be dialled.
    async fn target(&mut self) -> anyhow::Result<(Arc<Identity>, Peer)> {
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
        self.service.health().set(&peer.addresses);
        Ok((identity, peer))
    }

    /// The healthiest address that this round has not tried.
    fn next_address(&self, tried: &[Address]) -> Option<Address> {
        let now_ms = self.clock.now().boottime_ms;
        self.service.health().healthiest(tried, now_ms)
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
        (identity, peer, address): (&Identity, &Peer, &Address),
        waits: Waits,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        self.service.note_link(|note| {
            note.state = LinkState::Connecting;
            note.via = Some(address.host().to_owned());
            note.address = Some(address.clone());
        });
        // It lives as long as the link, which may ask it again.
        let key = Watched::new(identity);
        let service = Arc::clone(&self.service);
        let config = initiator(identity, peer, Purpose::Deliver);
        let opening = open(&service, config, &key, address, waits);
        let Some(link) = stop.run_until_cancelled(opening).await else {
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

    /// Writes down why a session ended, and charges it to the address if it is to blame.
    ///
    /// # Errors
    ///
    /// What the daemon cannot go on with.
    fn note_end(&self, address: &Address, ended: Result<(), Failure>) -> anyhow::Result<()> {
        let Err(failure) = ended else {
            self.note_problem("the session was closed", "wait; it is opened again");
            return Ok(());
        };
        let cause = failure.cause();
        match failure {
            Failure::Link(error) | Failure::Unreached(error) => {
                self.note_link_error(&error);
                if let Some(cause) = cause {
                    let words = crate::chain(&error);
                    let now_ms = self.clock.now().boottime_ms;
                    let mut health = self.service.health();
                    health.note_failure(address, cause, words, now_ms);
                }
            }
            Failure::Protocol(what) => {
                self.note_problem(&what, "update both sides to the same version");
            }
            Failure::Later => {
                self.note_problem("the service takes nothing now", "wait; it is tried again");
            }
            Failure::Token(error) => {
                let problem = format!("relay_token: {error:#}");
                self.note_problem(
                    &problem,
                    "mend relay_token of the [[service]], or what it names",
                );
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

/// Dials and opens a session, and writes down how long that took.
async fn open<'a>(
    service: &'a Service,
    config: InitiatorConfig,
    key: &'a Watched<'a>,
    address: &Address,
    waits: Waits,
) -> Result<Link<'a>, Failure> {
    let began = Instant::now();
    let token = service.relay_token().map_err(Failure::Token)?;
    let dialled = link::dial_within(address, &config.pin, token.as_ref(), waits.dial).await;
    let stream = dialled.map_err(Failure::Unreached)?;
    let link = proof::connect_over(stream, config, key, service, waits.proof).await?;
    service.health().note_open(address, began.elapsed());
    Ok(link)
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
        suite: suite::suite(),
        pin: peer.key,
        held: peer.statement.as_deref().cloned(),
        static_key: channel::StaticKey::public(identity),
        purpose,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What to do about a `relay_token` that cannot be used.
pub(crate) const TOKEN_ADVICE: &str =
    "mend relay_token of the [[service]], or what it names; the relay's operator has the token";

/// Why a session ended.
pub(crate) enum Failure {
    /// The address, before the relay's `ok`: try the next.
    Unreached(LinkError),
    /// The other side or the way there: try again.
    Link(LinkError),
    /// The service broke the rules of the upload.
    Protocol(String),
    /// The service asks to be left alone for now.
    Later,
    /// What a relay wants to see cannot be read: try again.
    Token(anyhow::Error),
    /// Our own disk, for now: try again.
    Disk(spool::SpoolError),
    /// Our own spool: give up.
    Local(anyhow::Error),
}

impl Failure {
    /// What the address is charged with, if it is to blame.
    fn cause(&self) -> Option<Cause> {
        match self {
            Self::Unreached(error) => Some(Cause::before_ok(error)),
            Self::Link(error) => Cause::after_ok(error),
            Self::Token(_) | Self::Protocol(_) | Self::Later | Self::Disk(_) | Self::Local(_) => {
                None
            }
        }
    }
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
