//! The 72 bytes that come first, in the clear, and are the Noise prologue (protocol.md 2.1).

use crate::Fingerprint;

/// Which ciphers a session uses. The gateway chooses; a service has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `Noise_XXpsk2_P256_ChaChaPoly_BLAKE2s`: for processors without AES instructions.
    ChaChaPoly = 1,
    /// `Noise_XXpsk2_P256_AESGCM_SHA256`: for processors with them.
    AesGcm = 2,
}

/// The preamble of a new session with the service that has this identity.
pub(super) fn encode(suite: Suite, service: &Fingerprint) -> Vec<u8> {
    let header = [suite as u8, KIND_NEW, ROLE_GATEWAY, PATH_UNBOUND];
    [&MAGIC[..], &header, service.bytes(), &RENEWED_NONE].concat()
}

/// Which suite a preamble asks for; `None` if it is no preamble for this service.
pub(super) fn suite_of(preamble: &[u8], service: &Fingerprint) -> Option<Suite> {
    [Suite::ChaChaPoly, Suite::AesGcm]
        .into_iter()
        .find(|suite| encode(*suite, service) == preamble)
}

pub(super) const PREAMBLE_BYTES: usize = 72;

const MAGIC: &[u8; 4] = b"GWD1";
const KIND_NEW: u8 = 1;
const ROLE_GATEWAY: u8 = 1;
/// Not bound to a relay, the only value there is.
const PATH_UNBOUND: u8 = 0;
/// Where a renewal has the `h` of the session that it renews.
const RENEWED_NONE: [u8; 32] = [0; 32];
