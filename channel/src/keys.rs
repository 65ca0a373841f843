//! The keys of gateways and services, and what may be done with them (protocol.md 1).
//!
//! A private key is used through [`StaticKey`] or [`SigningKey`], so that it may live in a TPM.
//! The software keys behind the same traits are those of services and tests.

mod fingerprint;
mod record_key;
mod signature;
mod software;

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

pub use fingerprint::{Fingerprint, FingerprintFormatError, KeyKind};
pub use record_key::{RecordKey, RecordPublicKey};
pub use signature::{SignatureError, normalise, verify};
pub use software::{SoftwareSigningKey, SoftwareStaticKey};

/// A P-256 public key: the 65 bytes `04 ‖ X ‖ Y` of a point on the curve (SEC 1, 2.3.3).
///
/// Compared as bytes: (X, -Y) gives the same ECDH result and is another key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; PUBLIC_KEY_BYTES]);

impl PublicKey {
    /// Takes a key as it came from outside.
    ///
    /// # Errors
    ///
    /// [`KeyFormatError::Length`] or [`KeyFormatError::Point`]: compressed points, the point at
    /// infinity and points beside the curve are no keys.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        let key: [u8; PUBLIC_KEY_BYTES] = bytes.try_into().map_err(|_| KeyFormatError::Length {
            bytes: bytes.len(),
            expected: PUBLIC_KEY_BYTES,
        })?;
        // p256 reads more forms than this one (compressed, compact), so the tag is checked here.
        if key.first() != Some(&UNCOMPRESSED) {
            return Err(KeyFormatError::Point);
        }
        p256::PublicKey::from_sec1_bytes(&key).map_err(|_| KeyFormatError::Point)?;
        Ok(Self(key))
    }

    /// The key as it travels and is hashed: `04 ‖ X ‖ Y`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", HEXLOWER.encode(&self.0))
    }
}

/// What an ECDH gave: the X coordinate of the shared point, 32 bytes, wiped when dropped.
pub struct SharedSecret(Zeroizing<[u8; 32]>);

impl SharedSecret {
    /// Takes the X coordinate, left-padded with zeros to 32 bytes (TPMs leave leading zeros out).
    #[must_use]
    pub fn new(x: Zeroizing<[u8; 32]>) -> Self {
        Self(x)
    }

    /// The X coordinate.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A private key's operation under way. A TPM needs from 20 ms to 600 ms for one.
pub type KeyFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyError>> + Send + 'a>>;

/// Why a private key did not do its work: whatever the TPM, or its stand-in, said.
#[derive(Debug, thiserror::Error)]
#[error("private key operation failed")]
pub struct KeyError {
    source: Box<dyn Error + Send + Sync>,
}

impl KeyError {
    /// Wraps the cause.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
        }
    }
}

/// A P-256 key that agrees on secrets: the Noise static key of a gateway or service.
pub trait StaticKey: Send + Sync {
    /// The public half.
    fn public(&self) -> PublicKey;

    /// Runs ECDH with `peer`. This is the one operation of a handshake; whoever drives the
    /// session runs it.
    ///
    /// # Errors
    ///
    /// The future ends in a [`KeyError`] if the key could not be used. That handshake is over.
    fn ecdh(&self, peer: PublicKey) -> KeyFuture<'_, SharedSecret>;
}

/// A P-256 key that signs: the identity of a gateway.
pub trait SigningKey: Send + Sync {
    /// The public half.
    fn public(&self) -> PublicKey;

    /// Signs a SHA-256 digest. The result is ES256, `r ‖ s` with low s (see [`normalise`]).
    ///
    /// # Errors
    ///
    /// The future ends in a [`KeyError`] if the key could not be used; it may be asked again.
    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, [u8; 64]>;
}

/// Why bytes are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFormatError {
    /// Too short or too long.
    #[error("key has {bytes} bytes, expected {expected}")]
    Length {
        /// Length of the refused bytes.
        bytes: usize,
        /// Length of a key of this kind.
        expected: usize,
    },

    /// Not an uncompressed point on P-256.
    #[error("key is not an uncompressed point on P-256")]
    Point,

    /// A private key that is zero, or not below the order of P-256.
    #[error("private key is out of range")]
    Scalar,

    /// A record key whose ML-KEM part fails the check of FIPS 203, 7.2.
    #[error("record key is not an X-Wing public key")]
    Record,
}

/// SEC 1, 2.3.3: one byte of form, two coordinates of 32.
const PUBLIC_KEY_BYTES: usize = 65;

/// SEC 1, 2.3.3: the form byte of a point with both coordinates.
const UNCOMPRESSED: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{rng, vector};

    #[test]
    fn only_the_uncompressed_form_of_a_point_is_a_key() {
        let bytes = vector("identity_public");
        assert_eq!(PublicKey::parse(&bytes).unwrap().as_bytes(), &*bytes);

        for form in (0..=u8::MAX).filter(|form| *form != UNCOMPRESSED) {
            let mut other = bytes.clone();
            other[0] = form;
            assert_eq!(
                PublicKey::parse(&other),
                Err(KeyFormatError::Point),
                "form {form}"
            );
        }
    }

    #[test]
    fn compressed_points_and_infinity_are_refused() {
        let bytes = vector("identity_public");
        let length = |bytes| KeyFormatError::Length {
            bytes,
            expected: 65,
        };
        for form in [2, 3, 5] {
            let compressed = [&[form], &bytes[1..33]].concat();
            assert_eq!(PublicKey::parse(&compressed), Err(length(33)));
        }
        assert_eq!(PublicKey::parse(&[0]), Err(length(1)));
        assert_eq!(PublicKey::parse(&[]), Err(length(0)));
        assert_eq!(PublicKey::parse(&[&*bytes, &[0]].concat()), Err(length(66)));

        let zeros = [&[UNCOMPRESSED], [0; 64].as_slice()].concat();
        assert_eq!(PublicKey::parse(&zeros), Err(KeyFormatError::Point));
    }

    #[test]
    fn a_point_beside_the_curve_is_refused() {
        let bytes = vector("identity_public");
        for i in 1..bytes.len() {
            let mut other = bytes.clone();
            other[i] ^= 1;
            assert_eq!(
                PublicKey::parse(&other),
                Err(KeyFormatError::Point),
                "byte {i}"
            );
        }
    }

    #[test]
    fn a_mirrored_point_is_another_key_with_the_same_secret() {
        let key = SoftwareStaticKey::generate(&mut rng(1));
        let scalar = p256::SecretKey::from_slice(key.to_bytes().as_slice())
            .unwrap()
            .to_nonzero_scalar();
        let mirrored = SoftwareStaticKey::from_bytes(&(-scalar).to_repr()).unwrap();

        let (key, mirrored) = (key.public(), mirrored.public());
        assert_eq!(key.as_bytes()[..33], mirrored.as_bytes()[..33]);
        assert_ne!(key, mirrored);
        let kind = KeyKind::GatewayChannel;
        assert_ne!(
            Fingerprint::of(kind, key.as_bytes()),
            Fingerprint::of(kind, mirrored.as_bytes())
        );

        let peer = SoftwareStaticKey::generate(&mut rng(2));
        assert_eq!(
            peer.ecdh_now(&key).unwrap().as_bytes(),
            peer.ecdh_now(&mirrored).unwrap().as_bytes()
        );
    }

    #[test]
    fn a_failed_key_operation_keeps_its_cause() {
        let error = KeyError::new("TPM is gone");
        assert_eq!(error.to_string(), "private key operation failed");
        assert_eq!(error.source().unwrap().to_string(), "TPM is gone");
    }

    use p256::elliptic_curve::PrimeField as _;
}
