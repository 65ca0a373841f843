//! The keys of an epoch, of which each leads to the next and none leads back (protocol.md 3.2).

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// `K[i]`: opens batch i and all after it.
///
/// On the heap, so that moving it leaves no copy behind; wiped when dropped.
pub(crate) struct ChainKey(Box<Zeroizing<[u8; 32]>>);

impl ChainKey {
    /// Takes `K[0]`.
    pub(crate) fn new(key: Box<Zeroizing<[u8; 32]>>) -> Self {
        Self(key)
    }

    /// The key of batch i alone.
    pub(crate) fn batch_key(&self) -> BatchKey {
        BatchKey(self.step(1))
    }

    /// `K[i+1]`.
    pub(crate) fn next(&self) -> Self {
        Self(self.step(2))
    }

    /// HMAC-SHA-256 over one byte.
    fn step(&self, label: u8) -> Box<Zeroizing<[u8; 32]>> {
        // A key shorter than the block is padded with zeros (RFC 2104, 2).
        let mut block = Zeroizing::new([0; SHA256_BLOCK_BYTES]);
        for (to, from) in block.iter_mut().zip(self.0.iter()) {
            *to = *from;
        }
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        mac.update(&[label]);
        // The code is wiped when dropped; `into_bytes` would leave a copy of it.
        let code = mac.finalize();
        let mut key = Box::new(Zeroizing::new([0; 32]));
        for (to, from) in key.iter_mut().zip(code.as_bytes()) {
            *to = *from;
        }
        key
    }
}

/// Opens one batch.
pub(crate) struct BatchKey(Box<Zeroizing<[u8; 32]>>);

impl BatchKey {
    /// For the cipher.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// FIPS 180-4, 1: SHA-256 works on blocks of 512 bits.
const SHA256_BLOCK_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;
    use crate::fixture::vector;

    #[test]
    fn the_keys_are_the_foreign_ones() {
        let first: [u8; 32] = vector("chain_key_0").try_into().unwrap();
        let mut key = ChainKey::new(Box::new(Zeroizing::new(first)));
        for number in 0..3 {
            assert_eq!(**key.0, *vector(&format!("chain_key_{number}")));
            let batch_key = vector(&format!("batch_key_{number}"));
            assert_eq!(*key.batch_key().as_bytes(), *batch_key);
            key = key.next();
        }
    }

    /// Holds as long as the crates are built with their feature `zeroize`.
    #[test]
    fn what_holds_a_key_wipes_it() {
        fn wipes<T: ZeroizeOnDrop>() {}
        wipes::<Zeroizing<[u8; 32]>>();
        // HMAC is two of these.
        wipes::<Sha256>();
        wipes::<chacha20poly1305::ChaCha20Poly1305>();
        wipes::<p256::SecretKey>();
        wipes::<p256::ecdsa::SigningKey>();
    }
}
