//! The service's side of the handshake that begins a session (protocol.md 2.1 and 2.3).

use std::ops::RangeInclusive;
use std::time::Instant;

use rand_core::CryptoRng;

use super::exchange::{Asked, Listening, Replied};
use super::open::Open;
use super::payload::VERSION_BYTES_MAX;
use super::preamble::{self, PREAMBLE_BYTES};
use super::renewal::Renewal;
use super::{
    ConfigMistake, Event, HANDSHAKE_TIME_MAX, INTRODUCTION_TIME_MAX, KEY_TIME_MAX, Outbox,
    SessionError, Stage,
};
use crate::cipher::TAG_BYTES;
use crate::kem::KEM_KEY_BYTES;
use crate::noise::{self, Role};
use crate::record::{self, Expected};
use crate::{KeyError, PublicKey, SharedSecret, Statement};

/// What a service needs to answer a gateway.
pub struct ResponderConfig {
    /// The service's newest statement.
    pub statement: Statement,
    /// The public half of the channel key to use; the statement lists it.
    pub static_key: PublicKey,
}

/// A handshake that the peer has to begin.
pub(super) struct Responder {
    config: ResponderConfig,
    rng: Box<dyn CryptoRng + Send>,
    begun_at: Instant,
    step: Step,
}

enum Step {
    /// The preamble is awaited.
    Preamble,
    /// Message 1 is awaited.
    Greeting(Listening),
    /// [`Event::KeyOperation`] is out; its result makes message 2.
    Secret { asked: Asked, late_at: Instant },
    /// Message 3 is awaited.
    Introduction(Replied),
}

impl Responder {
    pub(super) fn begin(
        config: ResponderConfig,
        rng: Box<dyn CryptoRng + Send>,
        now: Instant,
    ) -> Result<Self, SessionError> {
        if !config.statement.channel_keys().contains(&config.static_key) {
            return Err(ConfigMistake::KeyNotListed.into());
        }
        Ok(Self {
            config,
            rng,
            begun_at: now,
            step: Step::Preamble,
        })
    }

    pub(super) fn expected(&self) -> Option<Expected> {
        match self.step {
            Step::Preamble => Some(Expected::Bytes(PREAMBLE_BYTES)),
            Step::Greeting(_) => Some(Expected::Frame(GREETING_LENGTHS)),
            Step::Secret { .. } => None,
            Step::Introduction(_) => Some(Expected::Frame(INTRODUCTION_LENGTHS)),
        }
    }

    /// Until when this step may last, and what is wrong if it lasts longer.
    pub(super) fn deadline(&self) -> (Instant, SessionError) {
        match self.step {
            Step::Preamble | Step::Greeting(_) | Step::Introduction(_) => (
                self.give_up_at(),
                SessionError::PeerSilent(INTRODUCTION_TIME_MAX),
            ),
            Step::Secret { late_at, .. } => (late_at, SessionError::LocalKeyLate(KEY_TIME_MAX)),
        }
    }

    pub(super) fn awaits_secret(&self) -> bool {
        matches!(self.step, Step::Secret { .. })
    }

    /// Takes the preamble, message 1 or message 3.
    pub(super) fn handle_message(
        mut self,
        now: Instant,
        message: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let step = match self.step {
            Step::Preamble => {
                let preamble = message.try_into().map_err(|_| SessionError::PeerPreamble)?;
                if !preamble::is_new(preamble, &self.config.statement.fingerprint()) {
                    return Err(SessionError::PeerPreamble);
                }
                Step::Greeting(Listening::begin(&self.config, preamble, &mut self.rng)?)
            }
            Step::Greeting(listening) => {
                let asked = listening.read(message, &mut self.rng)?;
                outbox.event(Event::KeyOperation { peer: asked.peer });
                let give_up_at = self.begun_at + INTRODUCTION_TIME_MAX;
                Step::Secret {
                    asked,
                    late_at: give_up_at.min(now + KEY_TIME_MAX),
                }
            }
            Step::Introduction(replied) => {
                let (introduction, finished) = replied.read(message)?;
                outbox.event(Event::Peer {
                    static_key: finished.remote_static,
                    purpose: introduction.purpose,
                    version: introduction.version,
                    handshake_hash: finished.hash,
                });
                let decide_until = self.begun_at + HANDSHAKE_TIME_MAX;
                let purpose = introduction.purpose;
                let renewal = Renewal::service(self.config, purpose, self.rng, &finished);
                return Open::new(Role::Responder, &finished, renewal, now, decide_until)
                    .map(|open| Stage::Open(Box::new(open)));
            }
            Step::Secret { .. } => return Err(SessionError::PeerProtocol),
        };
        Ok(Stage::Responder(Box::new(Self { step, ..self })))
    }

    /// Queues message 2, unless the own key failed.
    pub(super) fn handle_shared_secret(
        self,
        secret: Result<SharedSecret, KeyError>,
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Secret { asked, .. } = self.step else {
            return Err(SessionError::LocalOutOfTurn);
        };
        let (replied, message) = asked.reply(&self.config, secret)?;
        outbox.push(&record::frame(&message).map_err(SessionError::LocalCrypto)?);
        Ok(Stage::Responder(Box::new(Self {
            step: Step::Introduction(replied),
            ..self
        })))
    }

    fn give_up_at(&self) -> Instant {
        self.begun_at + INTRODUCTION_TIME_MAX
    }
}

/// A point, a tag and `{1: ek, 2: serial}`, whose serial takes one to nine bytes.
const GREETING_LENGTHS: RangeInclusive<usize> = {
    let fixed = noise::POINT_BYTES + TAG_BYTES + 1 + 1 + 3 + KEM_KEY_BYTES + 1;
    fixed + 1..=fixed + 9
};

/// A point, two tags and `{1: purpose, 2: version}`.
const INTRODUCTION_LENGTHS: RangeInclusive<usize> = {
    let fixed = noise::POINT_BYTES + 2 * TAG_BYTES + 1 + 1 + 1 + 1;
    fixed + 1..=fixed + 2 + VERSION_BYTES_MAX
};
