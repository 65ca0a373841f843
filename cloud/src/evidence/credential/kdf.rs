//! The key derivations of a TPM (TPM 2.0 Library, Part 1, 11.4.10), for keys of up to one block.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384};
use zeroize::Zeroizing;

/// The hash of an endorsement key's Name, with which everything for it is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    /// Size of a digest.
    pub(super) fn bits(self) -> u16 {
        match self {
            Self::Sha256 => 256,
            Self::Sha384 => 384,
        }
    }

    /// KDFa for one block: the first `bits` of HMAC(key, 1 ‖ label ‖ context ‖ bits).
    ///
    /// `label` ends with its zero byte; `bits` are whole bytes and at most [`Hash::bits`].
    pub(super) fn kdf_a(
        self,
        key: &[u8],
        label: &[u8],
        context: &[u8],
        bits: u16,
    ) -> Zeroizing<Vec<u8>> {
        let counter = 1_u32.to_be_bytes();
        let size = u32::from(bits).to_be_bytes();
        let mut made = self.hmac(key, &[&counter, label, context, &size]);
        made.truncate(usize::from(bits / 8));
        made
    }

    /// KDFe for one block: H(1 ‖ Z ‖ label ‖ party U ‖ party V).
    ///
    /// `label` ends with its zero byte; `parties` are the x coordinates of U and V.
    pub(super) fn kdf_e(self, z: &[u8], label: &[u8], [u, v]: [&[u8]; 2]) -> Zeroizing<Vec<u8>> {
        let counter = 1_u32.to_be_bytes();
        let parts = [&counter, z, label, u, v];
        match self {
            Self::Sha256 => digest::<Sha256>(&parts),
            Self::Sha384 => digest::<Sha384>(&parts),
        }
    }

    /// HMAC over `parts` one after the other.
    pub(super) fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Sha256 => mac::<Hmac<Sha256>>(key, parts),
            Self::Sha384 => mac::<Hmac<Sha384>>(key, parts),
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut hash = D::new();
    for part in parts {
        hash.update(part);
    }
    Zeroizing::new(hash.finalize().to_vec())
}

fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    #[allow(
        clippy::expect_used,
        reason = "HMAC takes a key of any length (RFC 2104)"
    )]
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("any length is a key");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}
