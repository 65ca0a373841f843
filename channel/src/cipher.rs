//! The two ciphers of a session, as ring has them: the processor's own instructions, in place.

use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroize as _;

use crate::Suite;
use crate::stack::{SEALING, wiped};

/// A key of a session's cipher, with the nonces of Noise (Noise 12.3, 12.4).
///
/// ring does not wipe its keys. They live in a box of their own, which is overwritten when the key
/// is dropped.
pub(crate) struct AeadKey {
    suite: Suite,
    key: Box<LessSafeKey>,
}

impl AeadKey {
    /// Expands the key.
    pub(crate) fn new(suite: Suite, key: &[u8; KEY_BYTES]) -> Result<Self, CipherError> {
        Ok(Self {
            suite,
            // Boxed in there, so that only its address comes out of frames that are wiped.
            key: wiped::<SEALING, _>(|| expand(suite, key).map(Box::new))?,
        })
    }

    /// Encrypts in place, and returns the tag.
    pub(crate) fn seal(
        &self,
        nonce: u64,
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CipherError> {
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(nonce), Aad::from(aad), in_out)
            .map_err(|_| CipherError)?;
        tag.as_ref().try_into().map_err(|_| CipherError)
    }

    /// Decrypts `in_out`, whose end is the tag, in place. Returns the length of the plaintext,
    /// which is at its beginning. After an error nothing of it is left.
    pub(crate) fn open(
        &self,
        nonce: u64,
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<usize, CipherError> {
        self.key
            .open_in_place(self.nonce(nonce), Aad::from(aad), in_out)
            .map(|plaintext| plaintext.len())
            .map_err(|_| CipherError)
    }

    /// 32 zero bits, then the counter: little-endian for ChaCha20 (Noise 12.3), big-endian for AES
    /// (Noise 12.4).
    fn nonce(&self, counter: u64) -> Nonce {
        let [a, b, c, d, e, f, g, h] = match self.suite {
            Suite::ChaChaPoly => counter.to_le_bytes(),
            Suite::AesGcm => counter.to_be_bytes(),
        };
        let bytes: [u8; NONCE_LEN] = [0, 0, 0, 0, a, b, c, d, e, f, g, h];
        Nonce::assume_unique_for_key(bytes)
    }
}

impl Drop for AeadKey {
    fn drop(&mut self) {
        // A key of the same form covers the old one byte for byte.
        if let Ok(zero) = expand(self.suite, &[0; KEY_BYTES]) {
            *self.key = zero;
        }
        // Without a reader the compiler could leave the write out.
        black_box(&mut self.key);
    }
}

/// In a frame of its own, below which the caller wipes.
#[inline(never)]
fn expand(suite: Suite, key: &[u8; KEY_BYTES]) -> Result<LessSafeKey, CipherError> {
    let algorithm = match suite {
        Suite::ChaChaPoly => &CHACHA20_POLY1305,
        Suite::AesGcm => &AES_256_GCM,
    };
    let key = UnboundKey::new(algorithm, key).map_err(|_| CipherError)?;
    Ok(LessSafeKey::new(key))
}

/// The cipher refused: the bytes do not authenticate, or are more than it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CipherError;

impl From<CipherError> for snow::Error {
    fn from(_: CipherError) -> Self {
        Self::Input
    }
}

/// Both have 256 bits.
pub(crate) const KEY_BYTES: usize = 32;

/// The tag of both ciphers (RFC 8439, 2.8; NIST SP 800-38D, 5.2.1.2).
pub(crate) const TAG_BYTES: usize = 16;

/// An [`AeadKey`] as snow sees it, for the handshake.
pub(crate) struct NoiseCipher {
    suite: Suite,
    key: Option<AeadKey>,
}

impl NoiseCipher {
    /// Without a key, until snow sets one.
    pub(crate) fn new(suite: Suite) -> Self {
        Self { suite, key: None }
    }
}

impl snow::types::Cipher for NoiseCipher {
    fn name(&self) -> &'static str {
        match self.suite {
            Suite::ChaChaPoly => "ChaChaPoly",
            Suite::AesGcm => "AESGCM",
        }
    }

    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.key = AeadKey::new(self.suite, key).ok();
    }

    /// snow's signature knows no failure. There is none: snow sets a key first, and no message of
    /// the handshake is near the gigabytes at which a cipher refuses. If it were otherwise, zeros
    /// go out, which no peer accepts.
    fn encrypt(&self, nonce: u64, aad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let bytes = plaintext.len() + TAG_BYTES;
        let Some((body, rest)) = out.split_at_mut_checked(plaintext.len()) else {
            return 0;
        };
        body.copy_from_slice(plaintext);
        let sealed = self
            .key
            .as_ref()
            .and_then(|key| key.seal(nonce, aad, body).ok());
        match (sealed, rest.first_chunk_mut()) {
            (Some(tag), Some(room)) => *room = tag,
            (None, _) | (_, None) => body.zeroize(),
        }
        bytes
    }

    fn decrypt(
        &self,
        nonce: u64,
        aad: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let key = self.key.as_ref().ok_or(snow::Error::Decrypt)?;
        let mut buffer = zeroize::Zeroizing::new(ciphertext.to_vec());
        let bytes = key
            .open(nonce, aad, &mut buffer)
            .map_err(|_| snow::Error::Decrypt)?;
        let plaintext = buffer.get(..bytes).ok_or(snow::Error::Decrypt)?;
        out.get_mut(..bytes)
            .ok_or(snow::Error::Decrypt)?
            .copy_from_slice(plaintext);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use super::*;

    /// RFC 8439 2.8.2 has another nonce than Noise can make, and so has every test case of the GCM
    /// specification but the first ones. Noise itself is checked by the foreign sessions of
    /// `tests/session`; these are the two cases that fit.
    #[test]
    fn published_ciphertexts_come_out() {
        // The Galois/Counter Mode of Operation (McGrew, Viega), appendix B, test case 13 and 14.
        let key = AeadKey::new(Suite::AesGcm, &[0; 32]).unwrap();
        let tag = key.seal(0, &[], &mut []).unwrap();
        assert_eq!(hex::encode(tag), "530f8afbc74536b9a963b4f1c4cb738b");
        let mut block = [0; 16];
        let tag = key.seal(0, &[], &mut block).unwrap();
        assert_eq!(hex::encode(block), "cea7403d4d606b6e074ec5d3baf39d18");
        assert_eq!(hex::encode(tag), "d0d1c8a799996bf0265b98b5d48ab919");
    }

    #[test]
    fn counters_are_encoded_as_noise_says() {
        for (suite, expected) in [
            (Suite::ChaChaPoly, "000000000807060504030201"),
            (Suite::AesGcm, "000000000102030405060708"),
        ] {
            let key = AeadKey::new(suite, &[1; 32]).unwrap();
            let nonce = key.nonce(0x0102_0304_0506_0708);
            assert_eq!(hex::encode(nonce.as_ref()), expected);
        }
    }

    #[test]
    fn what_was_altered_does_not_open_and_leaves_nothing() {
        for suite in [Suite::ChaChaPoly, Suite::AesGcm] {
            let key = AeadKey::new(suite, &[1; 32]).unwrap();
            let mut sealed = b"reading".to_vec();
            let tag = key.seal(3, b"aad", &mut sealed).unwrap();
            sealed.extend(tag);
            for (nonce, aad, flip) in [
                (4, &b"aad"[..], None),
                (3, b"aae", None),
                (3, b"aad", Some(9)),
            ] {
                let mut altered = sealed.clone();
                if let Some(at) = flip {
                    altered[at] ^= 1;
                }
                assert_eq!(key.open(nonce, aad, &mut altered), Err(CipherError));
                assert!(!altered.starts_with(b"reading"));
            }
            assert_eq!(key.open(3, b"aad", &mut sealed), Ok(7));
            assert!(sealed.starts_with(b"reading"));
        }
    }
    /// Looked at through `/proc`: safe code has no way to a place that was freed.
    #[test]
    fn nothing_of_a_key_is_left_where_it_was_when_it_is_dropped() {
        let memory = File::open("/proc/self/mem").unwrap();
        for suite in [Suite::ChaChaPoly, Suite::AesGcm] {
            let bytes: [u8; KEY_BYTES] = std::array::from_fn(|n| 3 + 7 * u8::try_from(n).unwrap());
            let key = AeadKey::new(suite, &bytes).unwrap();
            let place = u64::try_from(std::ptr::from_ref(&*key.key).addr()).unwrap();
            // Both now: a buffer made after the key is gone could be given its place.
            let [mut before, mut after] = [(); 2].map(|()| vec![0; size_of::<LessSafeKey>()]);
            memory.read_exact_at(&mut before, place).unwrap();
            drop(key);
            memory.read_exact_at(&mut after, place).unwrap();

            let has = |image: &[u8]| {
                let mut parts = image.windows(16);
                parts.any(|part| part == &bytes[..16] || part == &bytes[16..])
            };
            // Processors without instructions for AES have it in another form.
            assert!(has(&before) || suite == Suite::AesGcm);
            assert!(!has(&after), "{suite:?}");
        }
    }
}
