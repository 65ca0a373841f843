//! The gateway's side of the handshake that begins a session (protocol.md 2.1 and 2.3).
//!
//! It shows its key, in message 3, to nobody but a service that has proved a channel key which the
//! pinned identity's newest statement lists.

use std::ops::RangeInclusive;
use std::time::Instant;

use rand_core::CryptoRng;

use super::exchange::{Greeted, Trusted};
use super::open::Open;
use super::payload::{Purpose, VERSION_BYTES_MAX};
use super::preamble::{self, Suite};
use super::renewal::Renewal;
use super::{ConfigMistake, Event, HANDSHAKE_TIME_MAX, KEY_TIME_MAX, Outbox, SessionError, Stage};
use crate::cipher::TAG_BYTES;
use crate::kem::KEM_CIPHERTEXT_BYTES;
use crate::noise::{self, Role};
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
    rng: Box<dyn CryptoRng + Send>,
    give_up_at: Instant,
    step: Step,
}

enum Step {
    /// Message 2 is awaited.
    Reply(Greeted),
    /// [`Event::NewStatement`] is out.
    Store(Trusted, Statement),
    /// [`Event::KeyOperation`] is out.
    Secret { trusted: Trusted, late_at: Instant },
}

impl Initiator {
    /// Queues preamble and message 1.
    pub(super) fn begin(
        config: InitiatorConfig,
        mut rng: Box<dyn CryptoRng + Send>,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Self, SessionError> {
        check(&config)?;
        let preamble = preamble::of_new(config.suite, &config.pin);
        let (greeted, message) = Greeted::begin(&config, &preamble, &mut rng)?;
        outbox.push(&preamble);
        outbox.push(&record::frame(&message).map_err(SessionError::LocalCrypto)?);
        Ok(Self {
            config,
            rng,
            give_up_at: now + HANDSHAKE_TIME_MAX,
            step: Step::Reply(greeted),
        })
    }

    pub(super) fn expected(&self) -> Option<Expected> {
        match self.step {
            Step::Reply(_) => Some(Expected::Frame(REPLY_LENGTHS)),
            Step::Store(..) | Step::Secret { .. } => None,
        }
    }

    /// Until when this step may last, and what is wrong if it lasts longer.
    pub(super) fn deadline(&self) -> (Instant, SessionError) {
        match self.step {
            Step::Reply(_) => (
                self.give_up_at,
                SessionError::PeerSilent(HANDSHAKE_TIME_MAX),
            ),
            Step::Store(..) => (self.give_up_at, SessionError::LocalLate(HANDSHAKE_TIME_MAX)),
            Step::Secret { late_at, .. } => (late_at, SessionError::LocalKeyLate(KEY_TIME_MAX)),
        }
    }

    pub(super) fn awaits_storing(&self) -> bool {
        matches!(self.step, Step::Store(..))
    }

    pub(super) fn awaits_secret(&self) -> bool {
        matches!(self.step, Step::Secret { .. })
    }

    /// Takes message 2.
    pub(super) fn handle_reply(
        self,
        now: Instant,
        frame: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Reply(greeted) = self.step else {
            return Err(SessionError::PeerProtocol);
        };
        let (trusted, new) = greeted.read(&self.config, frame)?;
        match new {
            Some(statement) => {
                outbox.event(Event::NewStatement(statement.clone()));
                Ok(Stage::Initiator(Box::new(Self {
                    step: Step::Store(trusted, statement),
                    ..self
                })))
            }
            None => {
                let step = ask(trusted, self.give_up_at, now, outbox);
                Ok(Stage::Initiator(Box::new(Self { step, ..self })))
            }
        }
    }

    /// Asks the own key to work, now that the new statement is stored.
    pub(super) fn stored(
        mut self,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Store(trusted, statement) = self.step else {
            return Err(SessionError::LocalOutOfTurn);
        };
        self.config.held = Some(statement);
        let step = ask(trusted, self.give_up_at, now, outbox);
        Ok(Stage::Initiator(Box::new(Self { step, ..self })))
    }

    /// Queues message 3, unless the own key failed.
    pub(super) fn handle_shared_secret(
        self,
        now: Instant,
        secret: Result<SharedSecret, KeyError>,
        outbox: &mut Outbox,
    ) -> Result<Stage, SessionError> {
        let Step::Secret { trusted, .. } = self.step else {
            return Err(SessionError::LocalOutOfTurn);
        };
        let (message, finished) = trusted.introduce(&self.config, secret)?;
        outbox.push(&record::frame(&message).map_err(SessionError::LocalCrypto)?);
        let renewal = Renewal::gateway(self.config, self.rng, &finished);
        let open = Open::new(Role::Initiator, &finished, renewal, now, self.give_up_at)?;
        Ok(Stage::Open(Box::new(open)))
    }
}

fn ask(trusted: Trusted, give_up_at: Instant, now: Instant, outbox: &mut Outbox) -> Step {
    outbox.event(Event::KeyOperation { peer: trusted.peer });
    Step::Secret {
        trusted,
        late_at: give_up_at.min(now + KEY_TIME_MAX),
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

/// `ct`, two points, two tags and at least an empty map; at most a full statement.
const REPLY_LENGTHS: RangeInclusive<usize> = {
    let fixed = KEM_CIPHERTEXT_BYTES + 2 * noise::POINT_BYTES + 2 * TAG_BYTES;
    fixed + 1..=fixed + STATEMENT_BYTES_MAX
};

/// Four channel keys, eight record keys and four online keys make 10.5 KB (protocol.md 1).
const STATEMENT_BYTES_MAX: usize = 12 * 1024;
