//! The X-Wing keys to which epochs are sealed (draft-connolly-cfrg-xwing-kem).

use std::fmt;

use hpke::kem::XWing;
use hpke::{Deserializable as _, Kem, Serializable as _};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{Fingerprint, KeyFormatError, KeyKind};

/// A service's private record key: the 32-byte seed of X-Wing, wiped when dropped.
///
/// It opens every epoch ever sealed to it, for as long as it is kept.
pub struct RecordKey(<XWing as Kem>::PrivateKey);

impl RecordKey {
    /// Makes a new key.
    pub fn generate(mut rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let (key, _) = XWing::gen_keypair_with_rng(&mut rng);
        Self(key)
    }

    /// Takes a key from where [`to_bytes`](Self::to_bytes) put it.
    ///
    /// # Errors
    ///
    /// [`KeyFormatError::Length`] if there are not 32 bytes; any 32 bytes are a seed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        <XWing as Kem>::PrivateKey::from_bytes(bytes)
            .map(Self)
            .map_err(|_| KeyFormatError::Length {
                bytes: bytes.len(),
                expected: RECORD_KEY_BYTES,
            })
    }

    /// The seed.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; RECORD_KEY_BYTES]> {
        let mut bytes = Zeroizing::new([0; RECORD_KEY_BYTES]);
        self.0.write_exact(bytes.as_mut());
        bytes
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> RecordPublicKey {
        RecordPublicKey(XWing::sk_to_pk(&self.0))
    }

    /// The name of the public half, as a header's field 9 has it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.public().fingerprint()
    }

    /// For HPKE.
    pub(crate) fn inner(&self) -> &<XWing as Kem>::PrivateKey {
        &self.0
    }
}

/// A service's public record key: 1184 bytes of ML-KEM-768, then 32 of X25519.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordPublicKey(<XWing as Kem>::PublicKey);

impl RecordPublicKey {
    /// Takes a key as it came from outside.
    ///
    /// # Errors
    ///
    /// [`KeyFormatError::Length`], or [`KeyFormatError::Record`] if a coefficient of the ML-KEM
    /// part is not below q (FIPS 203, 7.2).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        if bytes.len() != RECORD_PUBLIC_KEY_BYTES {
            return Err(KeyFormatError::Length {
                bytes: bytes.len(),
                expected: RECORD_PUBLIC_KEY_BYTES,
            });
        }
        <XWing as Kem>::PublicKey::from_bytes(bytes)
            .map(Self)
            .map_err(|_| KeyFormatError::Record)
    }

    /// The key as it travels and is hashed: 1216 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes().to_vec()
    }

    /// The name of this key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::Record, &self.to_bytes())
    }

    /// For HPKE.
    pub(crate) fn inner(&self) -> &<XWing as Kem>::PublicKey {
        &self.0
    }
}

impl fmt::Debug for RecordPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordPublicKey({})", self.fingerprint())
    }
}

/// X-Wing's private key is its seed.
const RECORD_KEY_BYTES: usize = 32;

/// ML-KEM-768 (1184) and X25519 (32).
const RECORD_PUBLIC_KEY_BYTES: usize = 1216;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{rng, vector};

    /// Draft-connolly-cfrg-xwing-kem, appendix C, first vector.
    #[test]
    fn a_published_seed_gives_the_published_key() {
        let key = RecordKey::from_bytes(&vector("xwing_seed")).unwrap();
        assert_eq!(key.public().to_bytes(), vector("xwing_public"));
        assert_eq!(*key.to_bytes(), *vector("xwing_seed"));
    }

    #[test]
    fn a_coefficient_of_q_or_more_is_refused() {
        let bytes = vector("xwing_public");
        assert_eq!(
            RecordPublicKey::from_bytes(&bytes).unwrap().to_bytes(),
            bytes
        );
        // Two coefficients of 12 bits in three bytes, little-endian: q is 3329 = 0xD01.
        let high_bits = bytes[1] & 0xF0;
        let at_q = [&[0x01, high_bits | 0x0D], &bytes[2..]].concat();
        let below_q = [&[0x00, high_bits | 0x0D], &bytes[2..]].concat();

        assert_eq!(
            RecordPublicKey::from_bytes(&at_q),
            Err(KeyFormatError::Record)
        );
        assert!(RecordPublicKey::from_bytes(&below_q).is_ok());
    }

    #[test]
    fn a_cut_key_is_refused() {
        let bytes = vector("xwing_public");
        assert_eq!(
            RecordPublicKey::from_bytes(&bytes[1..]),
            Err(KeyFormatError::Length {
                bytes: 1215,
                expected: 1216
            })
        );
        assert_eq!(
            RecordKey::from_bytes(&[1; 31]).err(),
            Some(KeyFormatError::Length {
                bytes: 31,
                expected: 32
            })
        );
    }

    #[test]
    fn generated_keys_differ() {
        let (one, other) = (
            RecordKey::generate(&mut rng(1)),
            RecordKey::generate(&mut rng(2)),
        );
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert_eq!(one.fingerprint(), one.public().fingerprint());
    }
}
