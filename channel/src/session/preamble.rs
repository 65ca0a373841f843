//! The 72 bytes that are the Noise prologue: of a new session, which sends them first and in the
//! clear, or of a renewal, which computes them (protocol.md 2.1, 2.5).

use crate::Fingerprint;

/// Which ciphers a session uses. The gateway chooses; a service has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `Noise_XXpsk2_P256_ChaChaPoly_BLAKE2s`: for processors without AES instructions.
    ChaChaPoly = 1,
    /// `Noise_XXpsk2_P256_AESGCM_SHA256`: for processors with them.
    AesGcm = 2,
}

impl Suite {
    const ALL: [Self; 2] = [Self::ChaChaPoly, Self::AesGcm];
}

/// The bytes of a preamble.
pub(super) type Preamble = [u8; PREAMBLE_BYTES];

/// The preamble of a new session with the service that has this identity.
pub(super) fn of_new(suite: Suite, service: &Fingerprint) -> Preamble {
    encode(suite, KIND_NEW, service, &[0; 32])
}

/// The preamble of a renewal of the session that `handshake_hash` names.
pub(super) fn of_renewal(
    suite: Suite,
    service: &Fingerprint,
    handshake_hash: &[u8; 32],
) -> Preamble {
    encode(suite, KIND_RENEWAL, service, handshake_hash)
}

/// Whether a peer's preamble is one of a new session with this service.
pub(super) fn is_new(preamble: &Preamble, service: &Fingerprint) -> bool {
    Suite::ALL
        .into_iter()
        .any(|suite| of_new(suite, service) == *preamble)
}

/// Which suite a preamble asks for; `None` if it is none of ours.
pub(super) fn suite_in(preamble: &Preamble) -> Option<Suite> {
    let [_, _, _, _, asked, ..] = preamble;
    Suite::ALL.into_iter().find(|suite| *suite as u8 == *asked)
}

fn encode(suite: Suite, kind: u8, service: &Fingerprint, renewed: &[u8; 32]) -> Preamble {
    let mut preamble = [0; PREAMBLE_BYTES];
    let fields: [&[u8]; 4] = [
        MAGIC,
        &[suite as u8, kind, ROLE_GATEWAY, PATH_UNBOUND],
        service.bytes(),
        renewed,
    ];
    for (to, from) in preamble.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    preamble
}

pub(super) const PREAMBLE_BYTES: usize = 72;

const MAGIC: &[u8; 4] = b"GWD1";
const KIND_NEW: u8 = 1;
const KIND_RENEWAL: u8 = 2;
const ROLE_GATEWAY: u8 = 1;
/// Not bound to a relay, the only value there is.
const PATH_UNBOUND: u8 = 0;
