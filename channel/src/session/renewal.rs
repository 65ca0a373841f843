//! New keys for an open session, without a gap for what it carries (protocol.md 2.5).
//!
//! The same three messages as at its beginning, in records of type 4, under a prologue that names
//! the keys that are replaced. Whoever has the old keys and not the static ones gets no new keys.

use std::time::{Duration, Instant};

use rand_core::{CryptoRng, Rng as _};

use super::exchange::{Asked, Greeted, Listening, Replied, Trusted};
use super::payload::Purpose;
use super::{
    Event, HANDSHAKE_TIME_MAX, InitiatorConfig, KEY_TIME_MAX, Outbox, ResponderConfig,
    SessionError, Suite, preamble,
};
use crate::cipher::CipherError;
use crate::noise::{Finished, HASH_BYTES, Role};
use crate::record::{RecordKey, Records};
use crate::{KeyError, PublicKey, SharedSecret, Statement};

/// What is needed to renew the keys of a session, and how far that is.
pub(super) struct Renewal {
    party: Party,
    suite: Suite,
    rng: Box<dyn CryptoRng + Send>,
    /// Names the keys in use.
    hash: [u8; HASH_BYTES],
    remote_static: PublicKey,
    state: State,
    /// Handshakes begun since the keys were exchanged.
    attempts: u32,
    /// Not before this; set after a failure.
    retry_at: Option<Instant>,
}

enum Party {
    Gateway(InitiatorConfig),
    Service {
        config: ResponderConfig,
        purpose: Purpose,
    },
}

enum State {
    Rest,
    /// Gateway: message 2 is awaited.
    Reply(Greeted),
    /// Gateway: [`Event::NewStatement`] is out.
    Store {
        trusted: Trusted,
        statement: Statement,
        late_at: Instant,
    },
    /// Gateway: [`Event::KeyOperation`] is out.
    Trusted {
        trusted: Trusted,
        late_at: Instant,
    },
    /// Gateway: the switch is awaited, after which this key opens.
    Switch(RecordKey, [u8; HASH_BYTES]),
    /// Service: [`Event::KeyOperation`] is out.
    Asked {
        asked: Asked,
        late_at: Instant,
    },
    /// Service: message 3 is awaited.
    Introduction(Replied),
}

/// What the session has to do for its renewal.
pub(super) enum Move {
    Nothing,
    /// Send this as a record of type 4.
    Send(Vec<u8>),
    /// Gateway: send this, then seal with the new key.
    Introduce(Vec<u8>, RecordKey),
    /// Service: open with the new key, say so under the old one, then seal with the new one.
    Exchange(Records),
    /// Gateway: open with the new key.
    Receive(RecordKey),
}

impl Renewal {
    pub(super) fn gateway(
        config: InitiatorConfig,
        rng: Box<dyn CryptoRng + Send>,
        finished: &Finished,
    ) -> Self {
        Self::new(Party::Gateway(config), rng, finished)
    }

    pub(super) fn service(
        config: ResponderConfig,
        purpose: Purpose,
        rng: Box<dyn CryptoRng + Send>,
        finished: &Finished,
    ) -> Self {
        Self::new(Party::Service { config, purpose }, rng, finished)
    }

    fn new(party: Party, rng: Box<dyn CryptoRng + Send>, finished: &Finished) -> Self {
        Self {
            party,
            suite: finished.keys.suite,
            rng,
            hash: finished.hash,
            remote_static: finished.remote_static,
            state: State::Rest,
            attempts: 0,
            retry_at: None,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn timeout(&self) -> Option<Instant> {
        match self.state {
            State::Store { late_at, .. }
            | State::Trusted { late_at, .. }
            | State::Asked { late_at, .. } => Some(late_at),
            State::Rest => self.retry_at,
            State::Reply(_) | State::Switch(..) | State::Introduction(_) => None,
        }
    }

    pub(super) fn awaits_secret(&self) -> bool {
        matches!(self.state, State::Trusted { .. } | State::Asked { .. })
    }

    pub(super) fn awaits_storing(&self) -> bool {
        matches!(self.state, State::Store { .. })
    }

    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Rest)
    }

    /// Gateway: begins, unless it is under way or has just failed.
    pub(super) fn begin(&mut self, now: Instant) -> Result<Move, SessionError> {
        let Party::Gateway(config) = &self.party else {
            return Ok(Move::Nothing);
        };
        if !self.is_at_rest() || self.retry_at.is_some_and(|at| now < at) {
            return Ok(Move::Nothing);
        }
        let preamble = preamble::of_renewal(self.suite, &config.pin, &self.hash);
        let (greeted, message) = Greeted::begin(config, &preamble, &mut self.rng)?;
        self.retry_at = None;
        self.attempts += 1;
        self.state = State::Reply(greeted);
        Ok(Move::Send(numbered(GREETING, &message)))
    }

    /// Takes a record of type 4. Any error ends the session: its sender is the peer and nobody
    /// else.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        body: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Move, SessionError> {
        let (number, message) = body.split_first().ok_or(SessionError::PeerProtocol)?;
        let state = std::mem::replace(&mut self.state, State::Rest);
        match (&mut self.party, state, *number) {
            (Party::Gateway(config), State::Reply(greeted), REPLY) => {
                let (trusted, new) = greeted.read(config, message)?;
                if trusted.remote_static != self.remote_static {
                    return Err(SessionError::PeerUnknownKey);
                }
                self.state = match new {
                    Some(statement) => {
                        outbox.event(Event::NewStatement(statement.clone()));
                        State::Store {
                            trusted,
                            statement,
                            late_at: now + HANDSHAKE_TIME_MAX,
                        }
                    }
                    None => ask(trusted, now, outbox),
                };
                Ok(Move::Nothing)
            }
            (Party::Gateway(_), State::Reply(_), FAILED) => {
                self.fail(now);
                Ok(Move::Nothing)
            }
            (Party::Service { config, .. }, State::Rest | State::Introduction(_), GREETING) => {
                self.attempts += 1;
                if self.attempts > ATTEMPTS_MAX {
                    return Err(SessionError::PeerProtocol);
                }
                let service = config.statement.fingerprint();
                let preamble = preamble::of_renewal(self.suite, &service, &self.hash);
                let asked = Listening::begin(config, &preamble, &mut self.rng)?
                    .read(message, &mut self.rng)?;
                outbox.event(Event::KeyOperation { peer: asked.peer });
                self.state = State::Asked {
                    asked,
                    late_at: now + KEY_TIME_MAX,
                };
                Ok(Move::Nothing)
            }
            (Party::Service { purpose, .. }, State::Introduction(replied), INTRODUCTION) => {
                let (introduction, finished) = replied.read(message)?;
                let same = finished.remote_static == self.remote_static
                    && introduction.purpose == *purpose;
                if !same {
                    return Err(SessionError::PeerProtocol);
                }
                let records = Records::new(Role::Responder, &finished.keys).map_err(local)?;
                self.finish(finished.hash, outbox);
                Ok(Move::Exchange(records))
            }
            _ => Err(SessionError::PeerProtocol),
        }
    }

    /// Gateway: takes the service's switch.
    pub(super) fn handle_switch(&mut self, outbox: &mut Outbox) -> Result<Move, SessionError> {
        match std::mem::replace(&mut self.state, State::Rest) {
            State::Switch(receiving, hash) => {
                self.finish(hash, outbox);
                Ok(Move::Receive(receiving))
            }
            State::Rest
            | State::Reply(_)
            | State::Store { .. }
            | State::Trusted { .. }
            | State::Asked { .. }
            | State::Introduction(_) => Err(SessionError::PeerProtocol),
        }
    }

    /// Gateway: the new statement is on the disk.
    pub(super) fn handle_stored(
        &mut self,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<(), SessionError> {
        match (
            &mut self.party,
            std::mem::replace(&mut self.state, State::Rest),
        ) {
            (
                Party::Gateway(config),
                State::Store {
                    trusted, statement, ..
                },
            ) => {
                config.held = Some(statement);
                self.state = ask(trusted, now, outbox);
                Ok(())
            }
            _ => Err(SessionError::LocalOutOfTurn),
        }
    }

    /// Takes what the own key made. If it failed, the session goes on under its old keys, and the
    /// renewal begins anew after a pause.
    pub(super) fn handle_shared_secret(
        &mut self,
        now: Instant,
        secret: Result<SharedSecret, KeyError>,
        outbox: &mut Outbox,
    ) -> Result<Move, SessionError> {
        let state = std::mem::replace(&mut self.state, State::Rest);
        match (&self.party, state) {
            (Party::Gateway(config), State::Trusted { trusted, .. }) => {
                let (message, finished) = match trusted.introduce(config, secret) {
                    Err(SessionError::LocalKey(error)) => {
                        return Ok(self.give_up(now, SessionError::LocalKey(error), outbox));
                    }
                    introduced => introduced?,
                };
                let Records { sending, receiving } =
                    Records::new(Role::Initiator, &finished.keys).map_err(local)?;
                self.state = State::Switch(receiving, finished.hash);
                Ok(Move::Introduce(numbered(INTRODUCTION, &message), sending))
            }
            (Party::Service { config, .. }, State::Asked { asked, .. }) => {
                let (replied, message) = match asked.reply(config, secret) {
                    Err(SessionError::LocalKey(error)) => {
                        return Ok(self.give_up(now, SessionError::LocalKey(error), outbox));
                    }
                    replied => replied?,
                };
                self.state = State::Introduction(replied);
                Ok(Move::Send(numbered(REPLY, &message)))
            }
            _ => Err(SessionError::LocalOutOfTurn),
        }
    }

    /// Gives up on a key or a disk that is late, or begins anew after a pause.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Move, SessionError> {
        if self.timeout().is_none_or(|at| now < at) {
            return Ok(Move::Nothing);
        }
        if self.awaits_secret() {
            self.state = State::Rest;
            return Ok(self.give_up(now, SessionError::LocalKeyLate(KEY_TIME_MAX), outbox));
        }
        if self.awaits_storing() {
            self.state = State::Rest;
            return Ok(self.give_up(now, SessionError::LocalLate(HANDSHAKE_TIME_MAX), outbox));
        }
        self.begin(now)
    }

    #[cfg(test)]
    pub(super) fn hash_mut(&mut self) -> &mut [u8; HASH_BYTES] {
        &mut self.hash
    }

    #[cfg(test)]
    pub(super) fn retry_at_mut(&mut self) -> &mut Option<Instant> {
        &mut self.retry_at
    }

    #[cfg(test)]
    pub(super) fn gateway_config(&mut self) -> &mut InitiatorConfig {
        match &mut self.party {
            Party::Gateway(config) => config,
            Party::Service { .. } => panic!("this is a service"),
        }
    }

    #[cfg(test)]
    pub(super) fn service_config(&mut self) -> &mut ResponderConfig {
        match &mut self.party {
            Party::Service { config, .. } => config,
            Party::Gateway(_) => panic!("this is a gateway"),
        }
    }

    fn finish(&mut self, hash: [u8; HASH_BYTES], outbox: &mut Outbox) {
        self.hash = hash;
        self.state = State::Rest;
        self.attempts = 0;
        self.retry_at = None;
        outbox.event(Event::Renewed);
    }

    /// The gateway tries again by itself; the service says that it cannot.
    fn give_up(&mut self, now: Instant, cause: SessionError, outbox: &mut Outbox) -> Move {
        outbox.event(Event::RenewalFailed(cause));
        match self.party {
            Party::Gateway(_) => {
                self.fail(now);
                Move::Nothing
            }
            Party::Service { .. } => Move::Send(numbered(FAILED, &[])),
        }
    }

    /// Full jitter, as before a new session (protocol.md 2.3).
    fn fail(&mut self, now: Instant) {
        let doublings = self.attempts.saturating_sub(1).min(16);
        let ceiling = RETRY_MIN.saturating_mul(1 << doublings).min(RETRY_MAX);
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        self.retry_at = Some(now + ceiling.mul_f64(share).max(RETRY_MIN / 2));
    }
}

fn ask(trusted: Trusted, now: Instant, outbox: &mut Outbox) -> State {
    outbox.event(Event::KeyOperation { peer: trusted.peer });
    State::Trusted {
        trusted,
        late_at: now + KEY_TIME_MAX,
    }
}

fn numbered(number: u8, message: &[u8]) -> Vec<u8> {
    [&[number], message].concat()
}

fn local(error: CipherError) -> SessionError {
    SessionError::LocalCrypto(error.into())
}

/// The service's key did not work: the gateway may begin anew.
const FAILED: u8 = 0;
const GREETING: u8 = 1;
const REPLY: u8 = 2;
const INTRODUCTION: u8 = 3;

/// What the ten minutes before keys end have room for: with pauses of 1 s doubling to 5 min, a
/// gateway gets to 20. More is an attack on the service's key.
const ATTEMPTS_MAX: u32 = 64;

/// protocol.md 2.3.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// protocol.md 2.3.
const RETRY_MAX: Duration = Duration::from_secs(300);
