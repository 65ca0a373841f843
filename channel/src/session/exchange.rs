//! The three messages of a handshake, apart from how they travel and how long they may take: at
//! the beginning of a session in frames of their own, later in records (protocol.md 2.1, 2.5).
//!
//! A step is used up by the next one, so nothing is tried twice on the same state.

use rand_core::CryptoRng;

use super::payload::{Greeting, Introduction, Reply};
use super::preamble::{self, Preamble};
use super::{InitiatorConfig, ResponderConfig, SessionError};
use crate::kem::{self, KEM_CIPHERTEXT_BYTES, KemKey};
use crate::noise::{self, Finished, Handshake, Role};
use crate::{Fingerprint, KeyError, PublicKey, SharedSecret, Statement};

/// Gateway: message 1 is written, message 2 is awaited.
pub(super) struct Greeted {
    noise: Handshake,
    kem: Box<KemKey>,
}

impl Greeted {
    /// Begins a handshake. Returns message 1 as well.
    pub(super) fn begin(
        config: &InitiatorConfig,
        preamble: &Preamble,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(Self, Vec<u8>), SessionError> {
        let mut noise = Handshake::new(
            Role::Initiator,
            config.suite,
            preamble,
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
        Ok((Self { noise, kem }, message))
    }

    /// Takes `ct ‖ Noise message 2`. Everything about the service is verified here, before the own
    /// key is asked to work. Returns its newer statement, too, if it sent one.
    pub(super) fn read(
        self,
        config: &InitiatorConfig,
        reply: &[u8],
    ) -> Result<(Trusted, Option<Statement>), SessionError> {
        let Self { mut noise, kem } = self;
        let (ciphertext, message) = reply
            .split_first_chunk::<KEM_CIPHERTEXT_BYTES>()
            .ok_or(SessionError::PeerLength { bytes: reply.len() })?;
        noise
            .set_psk(&kem.decapsulate(ciphertext))
            .map_err(SessionError::LocalCrypto)?;
        let payload = noise
            .read(message)
            .map_err(|_| SessionError::PeerRejected)?;
        let peer = noise::ephemeral_of(message).ok_or(SessionError::PeerRejected)?;
        let remote_static = noise.remote_static().ok_or(SessionError::PeerRejected)?;
        let reply = Reply::decode(&payload).map_err(|_| SessionError::PeerProtocol)?;

        let held = config.held.as_ref();
        let new = newer(reply.statement, &config.pin, held)?;
        let newest = new.as_ref().or(held).ok_or(SessionError::PeerProtocol)?;
        if !newest.channel_keys().contains(&remote_static) {
            return Err(SessionError::PeerUnknownKey);
        }
        let trusted = Trusted {
            noise,
            peer,
            remote_static,
        };
        Ok((trusted, new))
    }
}

/// Gateway: the service is the pinned one; the own key has to agree with `peer`.
pub(super) struct Trusted {
    noise: Handshake,
    pub(super) peer: PublicKey,
    pub(super) remote_static: PublicKey,
}

impl Trusted {
    /// Writes message 3, unless the own key failed.
    pub(super) fn introduce(
        mut self,
        config: &InitiatorConfig,
        secret: Result<SharedSecret, KeyError>,
    ) -> Result<(Vec<u8>, Finished), SessionError> {
        self.noise
            .answer(self.peer, secret.map_err(SessionError::LocalKey)?);
        let introduction = Introduction {
            purpose: config.purpose,
            version: config.version.clone(),
        };
        let message = self
            .noise
            .write(&introduction.encode())
            .map_err(SessionError::LocalCrypto)?;
        let finished = self.noise.finish().map_err(SessionError::LocalCrypto)?;
        Ok((message, finished))
    }
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

/// Service: message 1 is awaited.
pub(super) struct Listening {
    noise: Handshake,
}

impl Listening {
    /// Begins a handshake under `preamble`, which the caller has checked.
    pub(super) fn begin(
        config: &ResponderConfig,
        preamble: &Preamble,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Self, SessionError> {
        let suite = preamble::suite_in(preamble).ok_or(SessionError::PeerPreamble)?;
        let noise = Handshake::new(Role::Responder, suite, preamble, config.static_key, rng)
            .map_err(SessionError::LocalCrypto)?;
        Ok(Self { noise })
    }

    /// Takes message 1: its key is checked, and the psk made, before the own key has to work.
    pub(super) fn read(
        mut self,
        message: &[u8],
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Asked, SessionError> {
        let payload = self
            .noise
            .read(message)
            .map_err(|_| SessionError::PeerRejected)?;
        let peer = noise::ephemeral_of(message).ok_or(SessionError::PeerRejected)?;
        let greeting = Greeting::decode(&payload).map_err(|_| SessionError::PeerProtocol)?;
        let (ciphertext, psk) =
            kem::encapsulate(&greeting.kem_key, rng).ok_or(SessionError::PeerProtocol)?;
        self.noise
            .set_psk(&psk)
            .map_err(SessionError::LocalCrypto)?;
        Ok(Asked {
            noise: self.noise,
            peer,
            ciphertext: Box::new(ciphertext),
            serial: greeting.serial,
        })
    }
}

/// Service: the own key has to agree with `peer`.
pub(super) struct Asked {
    noise: Handshake,
    pub(super) peer: PublicKey,
    ciphertext: Box<[u8; KEM_CIPHERTEXT_BYTES]>,
    /// Of the statement that the gateway holds.
    serial: u64,
}

impl Asked {
    /// Writes `ct ‖ Noise message 2`, unless the own key failed.
    pub(super) fn reply(
        mut self,
        config: &ResponderConfig,
        secret: Result<SharedSecret, KeyError>,
    ) -> Result<(Replied, Vec<u8>), SessionError> {
        self.noise
            .answer(self.peer, secret.map_err(SessionError::LocalKey)?);
        let statement = &config.statement;
        let reply = Reply {
            statement: (self.serial < statement.serial()).then(|| statement.bytes()),
        };
        let message = self
            .noise
            .write(&reply.encode())
            .map_err(SessionError::LocalCrypto)?;
        let body = [self.ciphertext.as_slice(), &message].concat();
        Ok((Replied { noise: self.noise }, body))
    }
}

/// Service: message 3 is awaited.
pub(super) struct Replied {
    noise: Handshake,
}

impl Replied {
    /// Takes message 3, which says who is there.
    pub(super) fn read(mut self, message: &[u8]) -> Result<(Introduction, Finished), SessionError> {
        let payload = self
            .noise
            .read(message)
            .map_err(|_| SessionError::PeerRejected)?;
        let introduction =
            Introduction::decode(&payload).map_err(|_| SessionError::PeerProtocol)?;
        let finished = self
            .noise
            .finish()
            .map_err(|_| SessionError::PeerRejected)?;
        Ok((introduction, finished))
    }
}
