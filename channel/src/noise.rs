//! Noise XXpsk2 over P-256, driven through snow.
//!
//! snow runs ECDH inside `read_message` and `write_message`, synchronously. A TPM needs up to
//! 600 ms for one, so the static key's ECDH happens outside: [`Handshake::answer`] brings its
//! result, and our [`Dh`] then knows the answer for exactly that point and for no other.
//!
//! snow does not restore the cipher after a failed message, so a [`Handshake`] that returned an
//! error must be dropped. Neither does it wipe its own state, the chaining key; the ciphers, the
//! ephemeral key and the keys that come out are ours, and are wiped.

use std::sync::{Arc, OnceLock};

use rand_core::CryptoRng;
use snow::Builder;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize as _, Zeroizing};

use crate::cipher::{KEY_BYTES, NoiseCipher};
use crate::kem::Psk;
use crate::keys::StaticKey as _;
use crate::{PublicKey, SharedSecret, SoftwareStaticKey, Suite};

/// A handshake under way: three messages, the first by the initiator.
pub(crate) struct Handshake {
    suite: Suite,
    state: snow::HandshakeState,
    keys: Arc<Keys>,
}

/// What a finished handshake leaves.
pub(crate) struct Finished {
    pub(crate) keys: SplitKeys,
    pub(crate) hash: [u8; HASH_BYTES],
    pub(crate) remote_static: PublicKey,
}

/// The keys of the records (Noise 5.2, `Split`).
pub(crate) struct SplitKeys {
    pub(crate) suite: Suite,
    /// From the initiator to the responder.
    pub(crate) forth: Zeroizing<[u8; KEY_BYTES]>,
    /// From the responder to the initiator.
    pub(crate) back: Zeroizing<[u8; KEY_BYTES]>,
}

/// Which side of the handshake this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Responder,
}

impl Handshake {
    /// Begins one with a fresh ephemeral key.
    pub(crate) fn new(
        role: Role,
        suite: Suite,
        prologue: &[u8],
        static_key: PublicKey,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Self, snow::Error> {
        let keys = Arc::new(Keys {
            static_key,
            secret: OnceLock::new(),
            ephemeral: SoftwareStaticKey::generate(rng),
        });
        let resolver = Box::new(Resolver {
            suite,
            keys: keys.clone(),
        });
        let builder = Builder::with_resolver(pattern(suite).parse()?, resolver)
            // snow wants bytes, and hands them to `Dh::set`, which thus knows that it is static.
            .local_private_key(&[])?
            .prologue(prologue)?;
        let state = match role {
            Role::Initiator => builder.build_initiator()?,
            Role::Responder => builder.build_responder()?,
        };
        Ok(Self { suite, state, keys })
    }

    /// Sets the psk: by the responder before it writes message 2, by the initiator before it
    /// reads it.
    pub(crate) fn set_psk(&mut self, psk: &Psk) -> Result<(), snow::Error> {
        self.state.set_psk(PSK_POSITION, psk.as_bytes())
    }

    /// Brings what the static key's ECDH with `peer` gave. Only the first answer counts.
    pub(crate) fn answer(&mut self, peer: PublicKey, secret: SharedSecret) {
        // Refused only if there is one already, and a second answer is of no use.
        let _ = self.keys.secret.set((peer, secret));
    }

    /// Writes the next message.
    pub(crate) fn write(&mut self, payload: &[u8]) -> Result<Vec<u8>, snow::Error> {
        let mut message = vec![0; payload.len() + OVERHEAD_BYTES_MAX];
        let bytes = self.state.write_message(payload, &mut message)?;
        message.truncate(bytes);
        Ok(message)
    }

    /// Reads the next message, and returns its payload.
    pub(crate) fn read(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, snow::Error> {
        let mut payload = Zeroizing::new(vec![0; message.len()]);
        let bytes = self.state.read_message(message, &mut payload)?;
        payload.truncate(bytes);
        Ok(payload)
    }

    /// The peer's static key: known to the initiator after message 2, to the responder after 3.
    pub(crate) fn remote_static(&self) -> Option<PublicKey> {
        PublicKey::parse(self.state.get_remote_static()?).ok()
    }

    /// Ends the handshake after message 3.
    pub(crate) fn finish(mut self) -> Result<Finished, snow::Error> {
        if !self.state.is_handshake_finished() {
            return Err(snow::Error::Input);
        }
        // Here and not from a transport state, which returns 32 bytes of the 65.
        let remote_static = self.remote_static().ok_or(snow::Error::Input)?;
        let hash = self
            .state
            .get_handshake_hash()
            .try_into()
            .map_err(|_| snow::Error::Input)?;
        let (mut forth, mut back) = self.state.dangerously_get_raw_split();
        let keys = SplitKeys {
            suite: self.suite,
            forth: Zeroizing::new(forth),
            back: Zeroizing::new(back),
        };
        // Arrays are copied where they seem to move.
        forth.zeroize();
        back.zeroize();
        Ok(Finished {
            keys,
            hash,
            remote_static,
        })
    }
}

/// The ephemeral key in a Noise message of 1 or 2, with which the receiver's static key has to
/// agree. `None` if it is not a point on the curve.
pub(crate) fn ephemeral_of(message: &[u8]) -> Option<PublicKey> {
    PublicKey::parse(message.get(..POINT_BYTES)?).ok()
}

fn pattern(suite: Suite) -> &'static str {
    match suite {
        Suite::ChaChaPoly => "Noise_XXpsk2_P256_ChaChaPoly_BLAKE2s",
        Suite::AesGcm => "Noise_XXpsk2_P256_AESGCM_SHA256",
    }
}

/// The keys of one handshake.
struct Keys {
    static_key: PublicKey,
    /// With whom the static key agreed on what.
    secret: OnceLock<(PublicKey, SharedSecret)>,
    ephemeral: SoftwareStaticKey,
}

/// Gives snow our keys and ciphers, and its own hashes.
struct Resolver {
    suite: Suite,
    keys: Arc<Keys>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(NoRandom))
    }

    /// Asked twice, for the static and for the ephemeral key, but not told which is meant: a `Dh`
    /// is ephemeral until [`Dh::set`] is called.
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::P256 => Some(Box::new(HandshakeDh {
                keys: self.keys.clone(),
                public: self.keys.ephemeral.public(),
                is_static: false,
            })),
            DHChoice::Curve25519 | DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(NoiseCipher::new(self.suite)))
    }
}

/// snow wants a generator; the one thing it would draw, the ephemeral key, is drawn before.
struct NoRandom;

impl Random for NoRandom {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
        Err(snow::Error::Rng)
    }
}

/// One of our two keys, as snow sees it.
struct HandshakeDh {
    keys: Arc<Keys>,
    public: PublicKey,
    is_static: bool,
}

impl Dh for HandshakeDh {
    fn name(&self) -> &'static str {
        "P256"
    }

    fn pub_len(&self) -> usize {
        POINT_BYTES
    }

    fn priv_len(&self) -> usize {
        SECRET_BYTES
    }

    /// The default would be 65: the X coordinate alone is mixed in.
    fn dh_len(&self) -> usize {
        SECRET_BYTES
    }

    /// Called for the static key, and for no other.
    fn set(&mut self, _: &[u8]) {
        self.public = self.keys.static_key;
        self.is_static = true;
    }

    /// Called for the ephemeral key, once; it is there already.
    fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
        if self.is_static {
            return Err(snow::Error::Dh);
        }
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.public.as_bytes()
    }

    /// Nobody needs it; snow asks only when it makes key pairs for others.
    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, peer: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let peer = PublicKey::parse(peer).map_err(|_| snow::Error::Dh)?;
        let out = out.get_mut(..SECRET_BYTES).ok_or(snow::Error::Dh)?;
        if !self.is_static {
            let secret = self.keys.ephemeral.ecdh_now(&peer);
            out.copy_from_slice(secret.map_err(|_| snow::Error::Dh)?.as_bytes());
            return Ok(());
        }
        match self.keys.secret.get() {
            Some((asked, secret)) if *asked == peer => {
                out.copy_from_slice(secret.as_bytes());
                Ok(())
            }
            Some(_) | None => Err(snow::Error::Dh),
        }
    }
}

/// Both hashes, BLAKE2s and SHA-256, have 32 bytes.
pub(crate) const HASH_BYTES: usize = 32;

/// `04 ‖ X ‖ Y` (SEC 1, 2.3.3).
pub(crate) const POINT_BYTES: usize = 65;

/// An X coordinate, and a scalar.
const SECRET_BYTES: usize = 32;

/// XX**psk2**: at the end of message 2.
const PSK_POSITION: usize = 2;

/// Message 2 has the most: ephemeral key, static key with tag, payload tag.
const OVERHEAD_BYTES_MAX: usize = POINT_BYTES + POINT_BYTES + 16 + 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn resolver(keys: Arc<Keys>) -> Resolver {
        Resolver {
            suite: Suite::ChaChaPoly,
            keys,
        }
    }

    #[test]
    fn the_static_key_answers_for_the_asked_point_alone() {
        let static_key = SoftwareStaticKey::generate(&mut fixture::rng(1));
        let asked = SoftwareStaticKey::generate(&mut fixture::rng(2)).public();
        let other = SoftwareStaticKey::generate(&mut fixture::rng(3)).public();
        let keys = Arc::new(Keys {
            static_key: static_key.public(),
            secret: OnceLock::new(),
            ephemeral: SoftwareStaticKey::generate(&mut fixture::rng(4)),
        });
        let mut dh = resolver(keys.clone()).resolve_dh(&DHChoice::P256).unwrap();
        dh.set(&[]);
        assert_eq!(dh.pubkey(), static_key.public().as_bytes());

        let mut out = [0; POINT_BYTES];
        assert_eq!(dh.dh(asked.as_bytes(), &mut out), Err(snow::Error::Dh));
        let secret = static_key.ecdh_now(&asked).unwrap();
        let expected = *secret.as_bytes();
        assert!(keys.secret.set((asked, secret)).is_ok());

        assert_eq!(dh.dh(other.as_bytes(), &mut out), Err(snow::Error::Dh));
        assert_eq!(out, [0; POINT_BYTES]);
        assert_eq!(dh.dh(asked.as_bytes(), &mut out), Ok(()));
        assert_eq!(out[..SECRET_BYTES], expected);
    }

    #[test]
    fn the_ephemeral_key_refuses_what_is_no_point() {
        let keys = Arc::new(Keys {
            static_key: SoftwareStaticKey::generate(&mut fixture::rng(1)).public(),
            secret: OnceLock::new(),
            ephemeral: SoftwareStaticKey::generate(&mut fixture::rng(2)),
        });
        let dh = resolver(keys.clone()).resolve_dh(&DHChoice::P256).unwrap();
        let mut point = *keys.static_key.as_bytes();
        let mut out = [0; POINT_BYTES];
        assert_eq!(dh.dh(&point, &mut out), Ok(()));

        point[64] ^= 1;
        assert_eq!(dh.dh(&point, &mut out), Err(snow::Error::Dh));
        assert_eq!(dh.dh(&[0; POINT_BYTES], &mut out), Err(snow::Error::Dh));
    }
}
