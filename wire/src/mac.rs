//! `H` and `M` of `protocol.md`: SHA-256 and HMAC-SHA-256 over parts laid end to end.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Whether two MACs are the same, in a time that does not depend on where they differ.
///
/// Every proof from a peer is compared with this, never with `==`.
#[must_use]
pub fn same_mac(left: &[u8; 32], right: &[u8; 32]) -> bool {
    left.ct_eq(right).into()
}

/// SHA-256 of `parts`, one after the other.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize().into()
}

/// HMAC-SHA-256 (RFC 2104) of `parts`, one after the other.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // RFC 2104, 2: a key longer than the block is hashed, a shorter one filled up with zeros.
    let mut block = Zeroizing::new([0; BLOCK_BYTES]);
    let hashed;
    let short = if BLOCK_BYTES < key.len() {
        hashed = Zeroizing::new(hash(&[key]));
        hashed.as_slice()
    } else {
        key
    };
    for (to, from) in block.iter_mut().zip(short) {
        *to = *from;
    }

    let mut mac = Hmac::<Sha256>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// SHA-256 works on blocks of 512 bits (FIPS 180-4, 1).
const BLOCK_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 2 (short key) and 6 (key longer than a block).
    #[test]
    fn mac_agrees_with_rfc_4231() {
        assert_eq!(
            hex::encode(mac(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex::encode(mac(
                &[0xaa; 131],
                &[b"Test Using Larger Than Block-Size Key - Hash Key First"]
            )),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    /// FIPS 180-4's example "abc".
    #[test]
    fn hash_agrees_with_fips_180() {
        assert_eq!(
            hex::encode(hash(&[b"a", b"", b"bc"])),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn one_bit_makes_another_mac() {
        let mac = [7; 32];
        assert!(same_mac(&mac, &mac));
        for byte in 0..mac.len() {
            let mut other = mac;
            other[byte] ^= 0x80;
            assert!(!same_mac(&mac, &other));
        }
    }
}
