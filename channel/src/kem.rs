//! The post-quantum half of the handshake: ML-KEM-768 (FIPS 203) gives the Noise psk.
//!
//! The gateway sends an encapsulation key in message 1, the service answers with a ciphertext in
//! front of message 2. Both then hold the same [`Psk`] (protocol.md 2.1, 2.2).

use hmac::{Hmac, KeyInit as _, Mac as _};
use ml_kem::kem::Generate as _;
use ml_kem::{
    Ciphertext, Decapsulate as _, DecapsulationKey768, Encapsulate as _, EncapsulationKey768, Key,
    KeyExport as _, MlKem768,
};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The gateway's key for one handshake, wiped when dropped.
pub(crate) struct KemKey {
    secret: DecapsulationKey768,
    public: [u8; KEM_KEY_BYTES],
}

impl KemKey {
    pub(crate) fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let secret = DecapsulationKey768::generate_from_rng(rng);
        let public = secret.encapsulation_key().to_bytes().into();
        Self { secret, public }
    }

    /// The encapsulation key for message 1.
    pub(crate) fn public(&self) -> &[u8; KEM_KEY_BYTES] {
        &self.public
    }

    /// Opens what the service put in front of message 2.
    ///
    /// Never fails: an altered ciphertext gives another psk (FIPS 203, 6.3), and message 2 is then
    /// rejected.
    pub(crate) fn decapsulate(&self, ciphertext: &[u8; KEM_CIPHERTEXT_BYTES]) -> Psk {
        let shared = self
            .secret
            .decapsulate(&Ciphertext::<MlKem768>::from(*ciphertext));
        Psk::new(&Zeroizing::new(shared.into()), &self.public, ciphertext)
    }
}

/// Encapsulates to the gateway's `key`; the ciphertext goes in front of message 2.
///
/// Returns `None` if `key` is not an encapsulation key: wrong length, or a coefficient that is not
/// below q (FIPS 203, 7.2).
pub(crate) fn encapsulate(
    key: &[u8],
    rng: &mut (impl CryptoRng + ?Sized),
) -> Option<([u8; KEM_CIPHERTEXT_BYTES], Psk)> {
    let encoded = Key::<EncapsulationKey768>::try_from(key).ok()?;
    let (ciphertext, shared) = EncapsulationKey768::new(&encoded)
        .ok()?
        .encapsulate_with_rng(rng);
    let ciphertext = ciphertext.into();
    let psk = Psk::new(&Zeroizing::new(shared.into()), key, &ciphertext);
    Some((ciphertext, psk))
}

/// What Noise mixes in as the psk: M(ss, "gatewayd/1 noise psk" ‖ H(ek) ‖ H(ct)).
pub(crate) struct Psk(Zeroizing<[u8; 32]>);

impl Psk {
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn new(shared: &[u8; 32], key: &[u8], ciphertext: &[u8; KEM_CIPHERTEXT_BYTES]) -> Self {
        // A key of 32 bytes is shorter than SHA-256's block, so HMAC pads it (RFC 2104, 2).
        let mut block = Zeroizing::new([0; HMAC_BLOCK_BYTES]);
        for (padded, byte) in block.iter_mut().zip(shared) {
            *padded = *byte;
        }
        let mac = Hmac::<Sha256>::new((&*block).into())
            .chain_update(PSK_LABEL)
            .chain_update(Sha256::digest(key))
            .chain_update(Sha256::digest(ciphertext))
            .finalize();
        Self(Zeroizing::new(mac.into_bytes().into()))
    }
}

/// An encapsulation key of ML-KEM-768 (FIPS 203, table 3).
pub(crate) const KEM_KEY_BYTES: usize = 1184;

/// A ciphertext of ML-KEM-768 (FIPS 203, table 3).
pub(crate) const KEM_CIPHERTEXT_BYTES: usize = 1088;

const PSK_LABEL: &[u8] = b"gatewayd/1 noise psk\0";

/// The block of SHA-256 (FIPS 180-4, figure 1).
const HMAC_BLOCK_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    /// The expected value is that of Python's hmac and hashlib.
    #[test]
    fn a_psk_is_the_mac_of_both_hashes_under_the_shared_secret() {
        let shared: Vec<u8> = (0..32).collect();
        let key: Vec<u8> = (0..=250).cycle().take(KEM_KEY_BYTES).collect();
        let ciphertext: Vec<u8> = (0..=240).cycle().take(KEM_CIPHERTEXT_BYTES).collect();

        let psk = Psk::new(
            shared[..].try_into().unwrap(),
            &key,
            ciphertext[..].try_into().unwrap(),
        );

        assert_eq!(
            hex::encode(psk.as_bytes()),
            "02f2fa390d0b4874f90ca49159d5502ec80cad9cd78afbe508e770090c3d9b06"
        );
    }

    #[test]
    fn both_sides_have_the_same_psk_unless_the_ciphertext_is_altered() {
        let kem = KemKey::generate(&mut fixture::rng(1));
        let (mut ciphertext, psk) = encapsulate(kem.public(), &mut fixture::rng(2)).unwrap();
        assert_eq!(kem.decapsulate(&ciphertext).as_bytes(), psk.as_bytes());

        ciphertext[0] ^= 1;
        assert_ne!(kem.decapsulate(&ciphertext).as_bytes(), psk.as_bytes());
    }

    #[test]
    fn a_key_of_another_length_is_none() {
        let kem = KemKey::generate(&mut fixture::rng(1));
        let short = &kem.public()[1..];
        assert!(encapsulate(short, &mut fixture::rng(2)).is_none());
    }
}
