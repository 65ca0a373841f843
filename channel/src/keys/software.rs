//! Keys in memory, for services and tests.

use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Signer as _, hazmat::PrehashSigner as _};
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{KeyError, KeyFormatError, KeyFuture, PublicKey, SharedSecret, SigningKey, StaticKey};

/// A [`StaticKey`] in memory, wiped when dropped.
pub struct SoftwareStaticKey {
    secret: p256::SecretKey,
    public: PublicKey,
}

impl SoftwareStaticKey {
    /// Makes a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self::new(p256::SecretKey::generate_from_rng(rng))
    }

    /// Takes a key from where [`to_bytes`](Self::to_bytes) put it.
    ///
    /// # Errors
    ///
    /// [`KeyFormatError::Length`] if there are not 32 bytes, [`KeyFormatError::Scalar`] if they
    /// are zero or not below the order of the curve.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        secret_key(bytes).map(Self::new)
    }

    /// The private scalar, big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes().into())
    }

    /// Runs ECDH with `peer` at once; [`StaticKey::ecdh`] for those who need not wait.
    ///
    /// # Errors
    ///
    /// None in practice: a [`PublicKey`] is a point on the curve.
    pub fn ecdh_now(&self, peer: &PublicKey) -> Result<SharedSecret, KeyError> {
        let peer = p256::PublicKey::from_sec1_bytes(peer.as_bytes()).map_err(KeyError::new)?;
        let secret = self.secret.diffie_hellman(&peer);
        Ok(SharedSecret::new(Zeroizing::new(
            (*secret.raw_secret_bytes()).into(),
        )))
    }

    fn new(secret: p256::SecretKey) -> Self {
        let public = public_key(&secret);
        Self { secret, public }
    }
}

impl StaticKey for SoftwareStaticKey {
    fn public(&self) -> PublicKey {
        self.public
    }

    fn ecdh(&self, peer: PublicKey) -> KeyFuture<'_, SharedSecret> {
        Box::pin(async move { self.ecdh_now(&peer) })
    }
}

/// A [`SigningKey`] in memory, wiped when dropped.
pub struct SoftwareSigningKey {
    secret: p256::ecdsa::SigningKey,
    public: PublicKey,
}

impl SoftwareSigningKey {
    /// Makes a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self::new(&p256::SecretKey::generate_from_rng(rng))
    }

    /// Takes a key from where [`to_bytes`](Self::to_bytes) put it.
    ///
    /// # Errors
    ///
    /// [`KeyFormatError::Length`] if there are not 32 bytes, [`KeyFormatError::Scalar`] if they
    /// are zero or not below the order of the curve.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        secret_key(bytes).map(|secret| Self::new(&secret))
    }

    /// The private scalar, big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes().into())
    }

    /// Signs `message` (which is hashed here) at once: ES256, `r ‖ s`, low s, deterministic as in
    /// RFC 6979.
    #[must_use]
    pub fn sign_now(&self, message: &[u8]) -> [u8; 64] {
        let signature: Signature = self.secret.sign(message);
        signature.normalize_s().to_bytes().into()
    }

    fn new(secret: &p256::SecretKey) -> Self {
        Self {
            public: public_key(secret),
            secret: secret.into(),
        }
    }
}

impl SigningKey for SoftwareSigningKey {
    fn public(&self) -> PublicKey {
        self.public
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, [u8; 64]> {
        Box::pin(async move {
            let signature: Signature = self.secret.sign_prehash(&digest).map_err(KeyError::new)?;
            Ok(signature.normalize_s().to_bytes().into())
        })
    }
}

fn secret_key(bytes: &[u8]) -> Result<p256::SecretKey, KeyFormatError> {
    if bytes.len() != SECRET_KEY_BYTES {
        return Err(KeyFormatError::Length {
            bytes: bytes.len(),
            expected: SECRET_KEY_BYTES,
        });
    }
    p256::SecretKey::from_slice(bytes).map_err(|_| KeyFormatError::Scalar)
}

fn public_key(secret: &p256::SecretKey) -> PublicKey {
    PublicKey(secret.public_key().to_uncompressed_point().into())
}

/// A scalar of P-256.
const SECRET_KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::fixture::{rng, vector};
    use crate::keys::verify;

    /// NIST CAVP, SP 800-56A ECC CDH Primitive, P-256, count 0.
    #[test]
    fn ecdh_gives_the_published_secret() {
        let key = SoftwareStaticKey::from_bytes(
            &hex::decode("7d7dc5f71eb29ddaf80d6214632eeae03d9058af1fb6d22ed80badb62bc1a534")
                .unwrap(),
        )
        .unwrap();
        let peer = PublicKey::parse(
            &hex::decode(concat!(
                "04",
                "700c48f77f56584c5cc632ca65640db91b6bacce3a4df6b42ce7cc838833d287",
                "db71e509e3fd9b060ddb20ba5c51dcc5948d46fbf640dfe0441782cab85fa4ac"
            ))
            .unwrap(),
        )
        .unwrap();

        let secret = ready(key.ecdh(peer)).unwrap();

        assert_eq!(
            hex::encode(secret.as_bytes()),
            "46fc62106420ff012e54a434fbdd2d25ccc5852060561e68040dd7778997bd7b"
        );
    }

    #[test]
    fn a_signature_over_a_digest_is_one_over_its_message() {
        let key = SoftwareSigningKey::from_bytes(&vector("identity_scalar")).unwrap();
        assert_eq!(*key.public().as_bytes(), *vector("identity_public"));

        let signature = ready(key.sign(Sha256::digest(b"message").into())).unwrap();

        assert_eq!(signature, key.sign_now(b"message"));
        assert_eq!(signature, *vector("message_signature"));
    }

    #[test]
    fn no_signature_has_a_high_s() {
        let key = SoftwareSigningKey::generate(&mut rng(1));
        for i in 0..64_u8 {
            let digest = ready(key.sign(Sha256::digest([i]).into())).unwrap();
            assert_eq!(verify(&key.public(), &[i], &digest), Ok(()));
            assert_eq!(verify(&key.public(), &[i], &key.sign_now(&[i])), Ok(()));
        }
    }

    #[test]
    fn keys_survive_their_bytes() {
        let key = SoftwareStaticKey::generate(&mut rng(1));
        let again = SoftwareStaticKey::from_bytes(key.to_bytes().as_slice()).unwrap();
        assert_eq!(again.public(), key.public());

        let key = SoftwareSigningKey::generate(&mut rng(2));
        let again = SoftwareSigningKey::from_bytes(key.to_bytes().as_slice()).unwrap();
        assert_eq!(again.public(), key.public());
    }

    #[test]
    fn scalars_out_of_range_are_no_keys() {
        let order = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
            .unwrap();
        for scalar in [[0; 32].as_slice(), &order, &[0xFF; 32]] {
            let error = KeyFormatError::Scalar;
            assert_eq!(SoftwareStaticKey::from_bytes(scalar).err(), Some(error));
            assert_eq!(SoftwareSigningKey::from_bytes(scalar).err(), Some(error));
        }
        for bytes in [0, 24, 31, 33] {
            let error = KeyFormatError::Length {
                bytes,
                expected: 32,
            };
            let scalar = vec![1; bytes];
            assert_eq!(SoftwareStaticKey::from_bytes(&scalar).err(), Some(error));
            assert_eq!(SoftwareSigningKey::from_bytes(&scalar).err(), Some(error));
        }
    }

    /// Software keys never wait.
    fn ready<T>(future: KeyFuture<'_, T>) -> Result<T, KeyError> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("a software key waits for nothing"),
        }
    }
}
