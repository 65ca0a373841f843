//! The service's side of the handshake (protocol.md 2.1 and 2.3).

use std::ops::RangeInclusive;
use std::time::Instant;

use rand_core::CryptoRng;

use super::open::Open;
use super::payload::{Greeting, Introduction, Reply, VERSION_BYTES_MAX};
use super::preamble::{self, PREAMBLE_BYTES};
use super::{
    ConfigMistake, Event, HANDSHAKE_TIME_MAX, INTRODUCTION_TIME_MAX, KEY_TIME_MAX, Outbox,
    SessionError, Stage,
};
use crate::kem::{self, KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES};
use crate::noise::{self, Handshake, Role};
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
    begun_at: Instant,
    step: Step,
}

enum Step {
    /// The preamble is awaited.
    Preamble { rng: Box<dyn CryptoRng + Send> },
    /// Message 1 is awaited.
    Greeting {
        noise: Handshake,
        rng: Box<dyn CryptoRng + Send>,
    },
    /// [`Event::KeyOperation`] is out; its result makes message 2.
    Secret {
        noise: Handshake,
        peer: PublicKey,
        ciphertext: Box<[u8; KEM_CIPHERTEXT_BYTES]>,
        /// Of the statement that the gateway holds.
        serial: u64,
        late_at: Instant,
    },
    /// Message 3 is awaited.
    Introduction { noise: Handshake },
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
            begun_at: now,
            step: Step::Preamble { rng },
        })
    }

    pub(super) fn expected(&self) -> Option<Expected> {
        match self.step {
            Step::Preamble { .. } => Some(Expected::Bytes(PREAMBLE_BYTES)),
            Step::Greeting { .. } => Some(Expected::Frame(GREETING_LENGTHS)),
            Step::Secret { .. } => None,
            Step::Introduction { .. } => Some(Expected::Frame(INTRODUCTION_LENGTHS)),
        }
    }

    /// Until when this step may last, and what is wrong if it lasts longer.
    pub(super) fn deadline(&self) -> (Instant, SessionError) {
        match self.step {
            Step::Preamble { .. } | Step::Greeting { .. } | Step::Introduction { .. } => (
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
        self,
        now: Instant,
        message: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let give_up_at = self.give_up_at();
        let step = match self.step {
            Step::Preamble { rng } => read_preamble(&self.config, message, rng)?,
            Step::Greeting { noise, rng } => {
                let late_at = give_up_at.min(now + KEY_TIME_MAX);
                read_greeting(noise, message, rng, late_at)?
            }
            Step::Introduction { noise } => {
                let decide_until = self.begun_at + HANDSHAKE_TIME_MAX;
                return read_introduction(noise, message, outbox)
                    .map(|finished| Open::new(Role::Responder, finished, now, decide_until))
                    .map(|open| Stage::Open(Box::new(open)));
            }
            Step::Secret { .. } => return Err(SessionError::PeerProtocol),
        };
        if let Step::Secret { peer, .. } = step {
            outbox.event(Event::KeyOperation { peer });
        }
        Ok(Stage::Responder(Box::new(Self { step, ..self })))
    }

    /// Queues `ct ‖ Noise message 2`, unless the own key failed.
    pub(super) fn handle_shared_secret(
        self,
        secret: Result<SharedSecret, KeyError>,
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Secret {
            mut noise,
            peer,
            ciphertext,
            serial,
            ..
        } = self.step
        else {
            return Err(SessionError::LocalOutOfTurn);
        };
        noise.answer(peer, secret.map_err(SessionError::LocalKey)?);
        let statement = &self.config.statement;
        let reply = Reply {
            statement: (serial < statement.serial()).then(|| statement.bytes()),
        };
        let message = noise
            .write(&reply.encode())
            .map_err(SessionError::LocalCrypto)?;
        outbox.push(record::frame(&[&*ciphertext, &message]).map_err(SessionError::LocalCrypto)?);
        Ok(Stage::Responder(Box::new(Self {
            step: Step::Introduction { noise },
            ..self
        })))
    }

    fn give_up_at(&self) -> Instant {
        self.begun_at + INTRODUCTION_TIME_MAX
    }
}

fn read_preamble(
    config: &ResponderConfig,
    preamble: &[u8],
    mut rng: Box<dyn CryptoRng + Send>,
) -> Result<Step, SessionError> {
    let suite = preamble::suite_of(preamble, &config.statement.fingerprint())
        .ok_or(SessionError::PeerPreamble)?;
    let noise = Handshake::new(
        Role::Responder,
        suite,
        preamble,
        config.static_key,
        &mut rng,
    )
    .map_err(SessionError::LocalCrypto)?;
    Ok(Step::Greeting { noise, rng })
}

/// Reads message 1: its key is checked, and the psk made, before the own key has to work.
fn read_greeting(
    mut noise: Handshake,
    message: &[u8],
    mut rng: Box<dyn CryptoRng + Send>,
    late_at: Instant,
) -> Result<Step, SessionError> {
    let payload = noise
        .read(message)
        .map_err(|_| SessionError::PeerRejected)?;
    let peer = noise::ephemeral_of(message).ok_or(SessionError::PeerRejected)?;
    let greeting = Greeting::decode(&payload).map_err(|_| SessionError::PeerProtocol)?;
    let (ciphertext, psk) =
        kem::encapsulate(&greeting.kem_key, &mut rng).ok_or(SessionError::PeerProtocol)?;
    noise.set_psk(&psk).map_err(SessionError::LocalCrypto)?;
    Ok(Step::Secret {
        noise,
        peer,
        ciphertext: Box::new(ciphertext),
        serial: greeting.serial,
        late_at,
    })
}

/// Reads message 3, and tells who is there.
fn read_introduction(
    mut noise: Handshake,
    message: &[u8],
    outbox: &mut Outbox,
) -> Result<noise::Finished, SessionError> {
    let payload = noise
        .read(message)
        .map_err(|_| SessionError::PeerRejected)?;
    let introduction = Introduction::decode(&payload).map_err(|_| SessionError::PeerProtocol)?;
    let finished = noise.finish().map_err(|_| SessionError::PeerRejected)?;
    outbox.event(Event::Peer {
        static_key: finished.remote_static,
        purpose: introduction.purpose,
        version: introduction.version,
        handshake_hash: finished.hash,
    });
    Ok(finished)
}

/// A point, a tag and `{1: ek, 2: serial}`, whose serial takes one to nine bytes.
const GREETING_LENGTHS: RangeInclusive<usize> = {
    let fixed = noise::POINT_BYTES + record::TAG_BYTES + 1 + 1 + 3 + KEM_KEY_BYTES + 1;
    fixed + 1..=fixed + 9
};

/// A point, two tags and `{1: purpose, 2: version}`.
const INTRODUCTION_LENGTHS: RangeInclusive<usize> = {
    let fixed = noise::POINT_BYTES + 2 * record::TAG_BYTES + 1 + 1 + 1 + 1;
    fixed + 1..=fixed + 2 + VERSION_BYTES_MAX
};
