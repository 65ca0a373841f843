//! The gateway's side of the handshake (protocol.md 2.1 and 2.3).
//!
//! It shows its key, in message 3, to nobody but a service that has proved a channel key which the
//! pinned identity's newest statement lists.

use std::ops::RangeInclusive;
use std::time::Instant;

use rand_core::CryptoRng;

use super::open::Open;
use super::payload::{Greeting, Introduction, Purpose, Reply, VERSION_BYTES_MAX};
use super::preamble::{self, Suite};
use super::{ConfigMistake, Event, HANDSHAKE_TIME_MAX, KEY_TIME_MAX, Outbox, SessionError, Stage};
use crate::kem::{KEM_CIPHERTEXT_BYTES, KemKey};
use crate::noise::{self, Handshake, Role};
use crate::record::{self, Expected};
use crate::{Fingerprint, KeyError, KeyKind, PublicKey, SharedSecret, Statement};

/// What a gateway needs to begin a session.
pub struct InitiatorConfig {
    /// The ciphers to use.
    pub suite: Suite,
    /// The fingerprint of the service's identity, the one thing that is trusted beforehand.
    pub pin: Fingerprint,
    /// The newest statement of that service that this gateway has stored.
    pub held: Option<Statement>,
    /// The public half of the gateway's channel key.
    pub static_key: PublicKey,
    /// What the session is for.
    pub purpose: Purpose,
    /// This software's version, [`VERSION_BYTES_MAX`] at most.
    pub version: String,
}

/// A handshake whose message 1 is written.
pub(super) struct Initiator {
    config: InitiatorConfig,
    give_up_at: Instant,
    step: Step,
}

enum Step {
    /// Message 2 is awaited.
    Reply { noise: Handshake, kem: Box<KemKey> },
    /// [`Event::NewStatement`] is out.
    Store { noise: Handshake, peer: PublicKey },
    /// [`Event::KeyOperation`] is out.
    Secret {
        noise: Handshake,
        peer: PublicKey,
        late_at: Instant,
    },
}

impl Initiator {
    /// Queues preamble and message 1.
    pub(super) fn begin(
        config: InitiatorConfig,
        rng: &mut (impl CryptoRng + ?Sized),
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Self, SessionError> {
        check(&config)?;
        let preamble = preamble::encode(config.suite, &config.pin);
        let mut noise = Handshake::new(
            Role::Initiator,
            config.suite,
            &preamble,
            config.static_key,
            rng,
        )
        .map_err(SessionError::LocalCrypto)?;
        let kem = Box::new(KemKey::generate(rng));
        let greeting = Greeting {
            kem_key: *kem.public(),
            serial: config.held.as_ref().map_or(0, Statement::serial),
        };
        let message = noise
            .write(&greeting.encode())
            .map_err(SessionError::LocalCrypto)?;
        outbox.push(preamble);
        outbox.push(record::frame(&[&message]).map_err(SessionError::LocalCrypto)?);
        Ok(Self {
            config,
            give_up_at: now + HANDSHAKE_TIME_MAX,
            step: Step::Reply { noise, kem },
        })
    }

    pub(super) fn expected(&self) -> Option<Expected> {
        match self.step {
            Step::Reply { .. } => Some(Expected::Frame(REPLY_LENGTHS)),
            Step::Store { .. } | Step::Secret { .. } => None,
        }
    }

    /// Until when this step may last, and what is wrong if it lasts longer.
    pub(super) fn deadline(&self) -> (Instant, SessionError) {
        match self.step {
            Step::Reply { .. } => (
                self.give_up_at,
                SessionError::PeerSilent(HANDSHAKE_TIME_MAX),
            ),
            Step::Store { .. } => (self.give_up_at, SessionError::LocalLate(HANDSHAKE_TIME_MAX)),
            Step::Secret { late_at, .. } => (late_at, SessionError::LocalKeyLate(KEY_TIME_MAX)),
        }
    }

    pub(super) fn awaits_storing(&self) -> bool {
        matches!(self.step, Step::Store { .. })
    }

    pub(super) fn awaits_secret(&self) -> bool {
        matches!(self.step, Step::Secret { .. })
    }

    /// Takes `ct ‖ Noise message 2`. Everything about the service is verified before the own key
    /// is asked to work.
    pub(super) fn handle_reply(
        self,
        now: Instant,
        frame: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Reply { mut noise, kem } = self.step else {
            return Err(SessionError::PeerProtocol);
        };
        let (ciphertext, message) = frame
            .split_first_chunk::<KEM_CIPHERTEXT_BYTES>()
            .ok_or(SessionError::PeerLength { bytes: frame.len() })?;
        noise
            .set_psk(&kem.decapsulate(ciphertext))
            .map_err(SessionError::LocalCrypto)?;
        let payload = noise
            .read(message)
            .map_err(|_| SessionError::PeerRejected)?;
        let peer = noise::ephemeral_of(message).ok_or(SessionError::PeerRejected)?;
        let remote_static = noise.remote_static().ok_or(SessionError::PeerRejected)?;
        let reply = Reply::decode(&payload).map_err(|_| SessionError::PeerProtocol)?;

        let held = self.config.held.as_ref();
        let new = newer(reply.statement, &self.config.pin, held)?;
        let newest = new.as_ref().or(held).ok_or(SessionError::PeerProtocol)?;
        if !newest.channel_keys().contains(&remote_static) {
            return Err(SessionError::PeerUnknownKey);
        }
        let waiting = Self {
            step: Step::Store { noise, peer },
            ..self
        };
        match new {
            Some(statement) => {
                outbox.event(Event::NewStatement(statement));
                Ok(Stage::Initiator(Box::new(waiting)))
            }
            None => waiting.ask(now, outbox),
        }
    }

    /// Asks the own key to work, now that a new statement, if any, is stored.
    pub(super) fn ask(self, now: Instant, outbox: &mut Outbox) -> Result<Stage, SessionError> {
        let Step::Store { noise, peer } = self.step else {
            return Err(SessionError::LocalOutOfTurn);
        };
        outbox.event(Event::KeyOperation { peer });
        let late_at = self.give_up_at.min(now + KEY_TIME_MAX);
        Ok(Stage::Initiator(Box::new(Self {
            step: Step::Secret {
                noise,
                peer,
                late_at,
            },
            ..self
        })))
    }

    /// Queues message 3, unless the own key failed.
    pub(super) fn handle_shared_secret(
        self,
        now: Instant,
        secret: Result<SharedSecret, KeyError>,
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Secret {
            mut noise, peer, ..
        } = self.step
        else {
            return Err(SessionError::LocalOutOfTurn);
        };
        noise.answer(peer, secret.map_err(SessionError::LocalKey)?);
        let introduction = Introduction {
            purpose: self.config.purpose,
            version: self.config.version,
        };
        let message = noise
            .write(&introduction.encode())
            .map_err(SessionError::LocalCrypto)?;
        let finished = noise.finish().map_err(SessionError::LocalCrypto)?;
        outbox.push(record::frame(&[&message]).map_err(SessionError::LocalCrypto)?);
        Ok(Stage::Open(Box::new(Open::new(
            Role::Initiator,
            finished,
            now,
            self.give_up_at,
        ))))
    }
}

fn check(config: &InitiatorConfig) -> Result<(), ConfigMistake> {
    if config.pin.kind() != KeyKind::ServiceIdentity {
        return Err(ConfigMistake::PinKind);
    }
    if let Some(held) = &config.held
        && held.fingerprint() != config.pin
    {
        return Err(ConfigMistake::HeldOfAnother);
    }
    if VERSION_BYTES_MAX < config.version.len() {
        return Err(ConfigMistake::Version {
            bytes: config.version.len(),
        });
    }
    Ok(())
}

/// Verifies what the service attached, and returns it if it is news.
fn newer(
    attached: Option<&[u8]>,
    pin: &Fingerprint,
    held: Option<&Statement>,
) -> Result<Option<Statement>, SessionError> {
    let Some(bytes) = attached else {
        return Ok(None);
    };
    let statement = Statement::verify(bytes, pin).map_err(SessionError::PeerStatement)?;
    let is_new = statement
        .succeeds(held)
        .map_err(SessionError::PeerStatement)?;
    Ok(is_new.then_some(statement))
}

/// `ct`, two points, two tags and at least an empty map; at most a full statement.
const REPLY_LENGTHS: RangeInclusive<usize> = {
    let fixed = KEM_CIPHERTEXT_BYTES + 2 * noise::POINT_BYTES + 2 * record::TAG_BYTES;
    fixed + 1..=fixed + STATEMENT_BYTES_MAX
};

/// Four channel keys, eight record keys and four online keys make 10.5 KB (protocol.md 1).
const STATEMENT_BYTES_MAX: usize = 12 * 1024;
