//! The live channel between a gateway and a service (protocol.md 2).

mod error;
mod exchange;
mod initiator;
mod keep_alive;
mod open;
mod outbox;
mod payload;
mod preamble;
mod renewal;
mod responder;
mod stage;

use std::mem;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand_core::CryptoRng;

pub use error::{ConfigMistake, SessionError};
pub use initiator::InitiatorConfig;
pub use payload::{Admission, Purpose, VERSION_BYTES_MAX};
pub use preamble::Suite;
pub use responder::ResponderConfig;

use crate::record::{BODY_BYTES_MAX, Incoming};
use crate::{KeyError, PublicKey, SharedSecret, Statement};
use initiator::Initiator;
use open::{Flow, Open};
use outbox::Outbox;
use responder::Responder;
use stage::Stage;

/// One side of the channel, sans-IO.
///
/// Four kinds of method: [`initiate`](Self::initiate) and [`respond`](Self::respond) make a
/// session, `handle_*` feed it, [`send`](Self::send) and [`close`](Self::close) command it,
/// [`transmit`](Self::transmit) and `poll_*` drain it. After every call that changes it, send what
/// [`transmit`](Self::transmit) has, take events until [`poll_event`](Self::poll_event) has none,
/// and look at [`poll_timeout`](Self::poll_timeout).
///
/// The private key is not in here. When its one ECDH of a handshake is due,
/// [`Event::KeyOperation`] asks for it, and
/// [`handle_shared_secret`](Self::handle_shared_secret) brings the result.
///
/// Once a `handle_*` method returned an error other than [`SessionError::LocalOutOfTurn`], the
/// session is over for good and its keys are gone. Events that came before the error are still
/// there to be polled; so is, if the peer broke the protocol, the record that tells it so.
pub struct Session {
    stage: Stage,
    incoming: Incoming,
    outbox: Outbox,
}

/// What a [`Session`] has to say to whoever drives it. Not [`Debug`]: it carries what people said.
pub enum Event {
    /// Gateway: the service has a newer statement, which is verified. Store it, then call
    /// [`Session::handle_statement_stored`].
    NewStatement(Statement),
    /// Run [`StaticKey::ecdh`](crate::StaticKey::ecdh) with `peer`, then call
    /// [`Session::handle_shared_secret`], within 10 s. Comes once in a handshake: at the beginning,
    /// and at each attempt to renew the keys, when what came before counts no more.
    KeyOperation {
        /// The peer's ephemeral key.
        peer: PublicKey,
    },
    /// Service: a gateway proved that it has this key. Look it up, then call
    /// [`Session::handle_admission`].
    Peer {
        /// The gateway's channel key.
        static_key: PublicKey,
        /// What it wants.
        purpose: Purpose,
        /// Its software's version, as it says.
        version: String,
        /// What evidence has to be bound to.
        handshake_hash: [u8; 32],
    },
    /// The gateway is let in; [`Session::send`] works from now on.
    Open {
        /// The same on both sides, and never twice: what evidence has to be bound to.
        handshake_hash: [u8; 32],
        /// The peer's channel key.
        remote_static: PublicKey,
    },
    /// Stream bytes from the peer, in order and never empty.
    Data(BytesMut),
    /// The session has new keys; what it carries goes on. A service looks up again whether the
    /// gateway may stay.
    Renewed,
    /// This side's key did not work for a renewal, or a gateway did not store the statement that
    /// came with it within 30 s. The session goes on under its old keys; the gateway tries again,
    /// until they are at their limit and the session closes.
    RenewalFailed(SessionError),
    /// The session ended properly: this side or the peer closed it or refused admission, or a key
    /// came to its limit ([`Admission::GoingAway`]). Send what is still queued, then end the
    /// transport.
    Closed(Admission),
}

impl Session {
    /// Begins a session as a gateway. Preamble and message 1 are ready to be sent.
    ///
    /// # Errors
    ///
    /// [`SessionError::LocalConfig`] if `config` contradicts itself.
    pub fn initiate(
        config: InitiatorConfig,
        rng: Box<dyn CryptoRng + Send>,
        now: Instant,
    ) -> Result<Self, SessionError> {
        let mut outbox = Outbox::default();
        let initiator = Initiator::begin(config, rng, now, &mut outbox)?;
        Ok(Self {
            stage: Stage::Initiator(Box::new(initiator)),
            incoming: Incoming::default(),
            outbox,
        })
    }

    /// Begins a session as a service, which waits for the gateway's first bytes.
    ///
    /// # Errors
    ///
    /// [`SessionError::LocalConfig`] if `config` contradicts itself.
    pub fn respond(
        config: ResponderConfig,
        rng: Box<dyn CryptoRng + Send>,
        now: Instant,
    ) -> Result<Self, SessionError> {
        let responder = Responder::begin(config, rng, now)?;
        Ok(Self {
            stage: Stage::Responder(Box::new(responder)),
            incoming: Incoming::default(),
            outbox: Outbox::default(),
        })
    }

    /// Takes bytes from the transport, cut anywhere. Less than one record is kept of them; what
    /// arrives after the end of a session is ignored.
    ///
    /// # Errors
    ///
    /// Any `Peer*` variant, and those `Local*` variants that say that this side is late.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<(), SessionError> {
        self.receive_buffer().extend_from_slice(bytes);
        self.handle_received(now)
    }

    /// The transport may read straight into this, after what is there, and then call
    /// [`handle_received`](Self::handle_received): records are opened where they lie.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        self.incoming.buffer()
    }

    /// Takes what the transport has put into [`receive_buffer`](Self::receive_buffer).
    ///
    /// # Errors
    ///
    /// As [`handle_bytes`](Self::handle_bytes).
    pub fn handle_received(&mut self, now: Instant) -> Result<(), SessionError> {
        while !self.incoming.is_empty() {
            let Some(expected) = self.stage.expected() else {
                self.incoming = Incoming::default();
                return match self.stage {
                    Stage::Closed => Ok(()),
                    Stage::Failed => Err(SessionError::LocalOutOfTurn),
                    Stage::Initiator(_) | Stage::Responder(_) | Stage::Open(_) => {
                        self.advance(|_, _| Err(SessionError::PeerProtocol))
                    }
                };
            };
            match self.incoming.take(&expected) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    self.advance(|stage, outbox| stage.handle_frame(now, frame, outbox))?;
                }
                Err(bytes) => {
                    return self.advance(|_, _| Err(SessionError::PeerLength { bytes }));
                }
            }
        }
        Ok(())
    }

    /// Takes the end of the transport.
    ///
    /// # Errors
    ///
    /// [`SessionError::PeerTruncated`] if the session was not over: somebody cut it off.
    pub fn handle_end(&mut self, _now: Instant) -> Result<(), SessionError> {
        match self.stage {
            Stage::Closed => Ok(()),
            Stage::Failed => Err(SessionError::LocalOutOfTurn),
            Stage::Initiator(_) | Stage::Responder(_) | Stage::Open(_) => {
                self.advance(|_, _| Err(SessionError::PeerTruncated))
            }
        }
    }

    /// Takes the answer to [`Event::KeyOperation`].
    ///
    /// # Errors
    ///
    /// [`SessionError::LocalKey`] if the key failed, [`SessionError::LocalKeyLate`] if it was too
    /// slow: nothing is sent, the session is over, and the next attempt is a new session. In a
    /// renewal neither is an error here: [`Event::RenewalFailed`] says it, and the session goes on.
    /// [`SessionError::LocalOutOfTurn`] if the session did not ask or is over already.
    pub fn handle_shared_secret(
        &mut self,
        now: Instant,
        secret: Result<SharedSecret, KeyError>,
    ) -> Result<(), SessionError> {
        if !self.stage.awaits_secret() {
            return Err(SessionError::LocalOutOfTurn);
        }
        self.advance(|stage, outbox| match stage.in_time(now)? {
            Stage::Initiator(initiator) => initiator.handle_shared_secret(now, secret, outbox),
            Stage::Responder(responder) => responder.handle_shared_secret(secret, outbox),
            Stage::Open(open) => {
                open_on(open, |open| open.handle_shared_secret(now, secret, outbox))
            }
            Stage::Closed | Stage::Failed => Err(SessionError::LocalOutOfTurn),
        })
    }

    /// Tells a gateway's session that the statement of [`Event::NewStatement`] is on the disk.
    ///
    /// # Errors
    ///
    /// [`SessionError::LocalLate`] if the handshake's time is over,
    /// [`SessionError::LocalOutOfTurn`] if there is no such statement.
    pub fn handle_statement_stored(&mut self, now: Instant) -> Result<(), SessionError> {
        if !self.stage.awaits_storing() {
            return Err(SessionError::LocalOutOfTurn);
        }
        self.advance(|stage, outbox| match stage.in_time(now)? {
            Stage::Initiator(initiator) => initiator.stored(now, outbox),
            Stage::Open(open) => open_on(open, |open| open.handle_statement_stored(now, outbox)),
            Stage::Responder(_) | Stage::Closed | Stage::Failed => {
                Err(SessionError::LocalOutOfTurn)
            }
        })
    }

    /// Takes a service's answer to [`Event::Peer`]. All but [`Admission::Ok`] end the session,
    /// after the gateway has been told.
    ///
    /// # Errors
    ///
    /// [`SessionError::LocalLate`] if the gateway has given up by now,
    /// [`SessionError::LocalOutOfTurn`] if nobody asks to be admitted.
    pub fn handle_admission(
        &mut self,
        now: Instant,
        admission: Admission,
    ) -> Result<(), SessionError> {
        if !self.stage.awaits_admission() {
            return Err(SessionError::LocalOutOfTurn);
        }
        self.with_open(|open, outbox| {
            open.handle_timeout(now, outbox)?;
            open.admit(now, admission, outbox)
        })
    }

    /// Tells the session the time, once [`poll_timeout`](Self::poll_timeout)'s has come. Earlier
    /// calls do no harm.
    ///
    /// # Errors
    ///
    /// [`SessionError::PeerSilent`], [`SessionError::LocalKeyLate`] or
    /// [`SessionError::LocalLate`]: somebody did not answer.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        match self.stage {
            Stage::Initiator(_) | Stage::Responder(_) => {
                self.advance(|stage, _| stage.in_time(now))
            }
            Stage::Open(_) => self.with_open(|open, outbox| open.handle_timeout(now, outbox)),
            Stage::Closed | Stage::Failed => Ok(()),
        }
    }

    /// Sends stream bytes, any number of them; they are cut into records.
    ///
    /// If the keys come to their limit the session closes, which [`Event::Closed`] says.
    ///
    /// # Errors
    ///
    /// [`SessionError::LocalOutOfTurn`] if the session is not open (any more): some or all of the
    /// bytes were not sent. [`SessionError::LocalBacklog`] if [`TRANSMIT_BYTES_MAX`] are queued
    /// already: none were.
    pub fn send(&mut self, now: Instant, bytes: &[u8]) -> Result<(), SessionError> {
        if !self.stage.is_running() {
            return Err(SessionError::LocalOutOfTurn);
        }
        if TRANSMIT_BYTES_MAX <= self.outbox.bytes() {
            return Err(SessionError::LocalBacklog {
                bytes: self.outbox.bytes(),
            });
        }
        self.handle_timeout(now)?;
        for body in bytes.chunks(BODY_BYTES_MAX) {
            if !self.stage.is_running() {
                return Err(SessionError::LocalOutOfTurn);
            }
            self.with_open(|open, outbox| open.send(now, body, outbox))?;
        }
        Ok(())
    }

    /// Ends the session, and tells the peer why if the handshake is over. Does nothing to a
    /// session that is over.
    pub fn close(&mut self, reason: Admission) {
        match self.stage {
            Stage::Initiator(_) | Stage::Responder(_) => {
                self.stage = Stage::Closed;
                self.outbox.event(Event::Closed(reason));
            }
            Stage::Open(_) => {
                // Fails only if the cipher does, and the session is over then, too.
                let _ = self.with_open(|open, outbox| open.close(reason, outbox));
            }
            Stage::Closed | Stage::Failed => {}
        }
    }

    /// What waits for the transport, in order. Tell [`transmitted`](Self::transmitted) how much of
    /// it was taken.
    #[must_use]
    pub fn transmit(&self) -> &[u8] {
        self.outbox.waiting()
    }

    /// Takes from the front of [`transmit`](Self::transmit) what the transport has taken.
    pub fn transmitted(&mut self, bytes: usize) {
        self.outbox.taken(bytes);
        // Half-open sessions are many, and have little more to say.
        if !self.stage.is_running() {
            self.outbox.shrink();
        }
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outbox.next_event()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Initiator(initiator) => Some(initiator.deadline().0),
            Stage::Responder(responder) => Some(responder.deadline().0),
            Stage::Open(open) => Some(open.timeout()),
            Stage::Closed | Stage::Failed => None,
        }
    }

    /// Takes the stage out, and puts back what `step` makes of it; after an error there is none.
    fn advance(
        &mut self,
        step: impl FnOnce(Stage, &mut Outbox) -> Result<Stage, SessionError>,
    ) -> Result<(), SessionError> {
        let stage = mem::replace(&mut self.stage, Stage::Failed);
        self.stage = step(stage, &mut self.outbox)?;
        Ok(())
    }

    fn with_open(
        &mut self,
        step: impl FnOnce(&mut Open, &mut Outbox) -> Result<Flow, SessionError>,
    ) -> Result<(), SessionError> {
        self.advance(|stage, outbox| match stage {
            Stage::Open(open) => open_on(open, |open| step(open, outbox)),
            Stage::Initiator(_) | Stage::Responder(_) | Stage::Closed | Stage::Failed => {
                Err(SessionError::LocalOutOfTurn)
            }
        })
    }
}

/// Takes an open session one step further.
fn open_on(
    mut open: Box<Open>,
    step: impl FnOnce(&mut Open) -> Result<Flow, SessionError>,
) -> Result<Stage, SessionError> {
    Ok(match step(&mut open)? {
        Flow::Continues => Stage::Open(open),
        Flow::Ends => Stage::Closed,
    })
}

/// How much may wait in a session before [`Session::send`] refuses more: what all yamux windows of
/// a session have in flight together (protocol.md 2.4), so that only a driver that does not look at
/// [`Session::transmit`] meets it.
pub const TRANSMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a gateway tries to get in (protocol.md 2.4); a service need not decide after that.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a service waits for message 3 (protocol.md 2.4).
const INTRODUCTION_TIME_MAX: Duration = Duration::from_secs(15);

/// How long the private key may take (protocol.md 2.3).
const KEY_TIME_MAX: Duration = Duration::from_secs(10);
