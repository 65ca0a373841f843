//! Policies: in which state of the machine a TPM opens a sealed secret, and who may say so.
//!
//! A secret is sealed for a [`PolicyAuthority`], not for a state. The authority signs a
//! [`PolicyDigest`] for each state that it approves of, so that an update of the software needs a
//! signature and no new seal. Digests are computed as the TPM does (*TPM 2.0 Library
//! Specification*, Part 3, 23), so that tpm2-tools and OpenSSL can stand in for an authority.

use super::cursor::COORDINATE_BYTES;
use super::pcr::{PcrSelection, PcrValues};
use super::qualified::sha256_name;
use super::{ALG_ECC, ALG_NULL, ALG_SHA256, CURVE_P256};
use crate::mac::hash;

/// What a TPM demands before it opens something: a chain of hashes, one link for each demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyDigest([u8; 32]);

/// Who approves of states: a P-256 key, and a word for what its signatures are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyAuthority {
    key: [u8; 65],
    reference: Vec<u8>,
}

/// A state of the machine that an authority approves of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPolicy {
    /// The PCRs (SHA-256 bank) that count. Their values are in the signature alone: the TPM knows
    /// the present ones itself.
    pub pcrs: PcrSelection,
    /// The gateway's counter and its highest value under which the policy holds; `None` if it is
    /// never withdrawn.
    pub counter: Option<CounterLimit>,
    /// `r‖s` over [`PolicyAuthority::message`] with SHA-256.
    pub signature: [u8; 64],
}

/// A policy ends when a monotonic counter of the TPM passes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterLimit {
    /// Which of the gateway's counters.
    pub number: u8,
    /// Its highest value.
    pub value_max: u64,
}

impl PolicyDigest {
    /// No demand yet.
    #[must_use]
    pub fn new() -> Self {
        Self([0; 32])
    }

    /// And the PCRs hold `values` (`TPM2_PolicyPCR`).
    #[must_use]
    pub fn and_pcrs(self, values: &PcrValues) -> Self {
        let selection = values.selection().to_bytes();
        Self(hash(&[
            &self.0,
            &CC_POLICY_PCR,
            &selection,
            &values.digest(),
        ]))
    }

    /// And the counter has not passed its limit (`TPM2_PolicyNV`).
    #[must_use]
    pub fn and_counter(self, limit: CounterLimit) -> Self {
        let demand = hash(&[
            &limit.value_max.to_be_bytes(),
            &[0, 0], // offset
            &UNSIGNED_LE.to_be_bytes(),
        ]);
        let name = limit.name();
        Self(hash(&[&self.0, &CC_POLICY_NV, &demand, &name]))
    }

    /// The digest as the TPM has it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Default for PolicyDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl From<[u8; 32]> for PolicyDigest {
    /// Takes what `TPM2_PolicyGetDigest` or `tpm2_policypcr` returned.
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl PolicyAuthority {
    /// Takes the authority's public key (`04‖X‖Y`) and the word, like `gatewayd data 1`, that keeps
    /// its signatures apart from those for other secrets; `None` if the word has more than 32 bytes.
    #[must_use]
    pub fn new(key: [u8; 65], reference: &[u8]) -> Option<Self> {
        let fits = reference.len() <= REFERENCE_BYTES_MAX;
        fits.then(|| Self {
            key,
            reference: reference.to_vec(),
        })
    }

    /// The public key, `04‖X‖Y`.
    #[must_use]
    pub fn key(&self) -> &[u8; 65] {
        &self.key
    }

    /// The word.
    #[must_use]
    pub fn reference(&self) -> &[u8] {
        &self.reference
    }

    /// What the authority signs to approve of a policy: ECDSA with SHA-256 over these bytes.
    #[must_use]
    pub fn message(&self, policy: PolicyDigest) -> Vec<u8> {
        [&policy.0, self.reference.as_slice()].concat()
    }

    /// What a secret is sealed under: whatever the authority signs (`TPM2_PolicyAuthorize`).
    #[must_use]
    pub fn policy(&self) -> PolicyDigest {
        let signed_by = hash(&[&[0; 32], &CC_POLICY_AUTHORIZE, &self.key_name()]);
        PolicyDigest(hash(&[&signed_by, &self.reference]))
    }

    /// The key as a TPM loads it to verify signatures: `TPMT_PUBLIC`.
    #[must_use]
    pub fn key_public(&self) -> Vec<u8> {
        let mut public = Vec::new();
        public.extend(ALG_ECC.to_be_bytes());
        public.extend(ALG_SHA256.to_be_bytes());
        public.extend(SIGN_AND_USER_WITH_AUTH.to_be_bytes());
        public.extend([0, 0]); // no policy
        public.extend(ALG_NULL.to_be_bytes()); // symmetric
        public.extend(ALG_NULL.to_be_bytes()); // scheme
        public.extend(CURVE_P256.to_be_bytes());
        public.extend(ALG_NULL.to_be_bytes()); // key derivation
        let [_, coordinates @ ..] = &self.key;
        for coordinate in coordinates.chunks_exact(COORDINATE_BYTES) {
            public.extend([0, 32]);
            public.extend(coordinate);
        }
        public
    }

    /// Name of that key.
    #[must_use]
    pub fn key_name(&self) -> [u8; 34] {
        sha256_name(&[&self.key_public()])
    }
}

impl CounterLimit {
    /// Handle of the counter's NV index.
    #[must_use]
    pub fn index(self) -> u32 {
        counter_index(self.number)
    }

    /// Name of the counter's NV index, once it has a value.
    #[must_use]
    pub fn name(self) -> [u8; 34] {
        counter_name(self.number, true)
    }
}

/// Name of the NV index that is the gateway's counter `number`: another one when it is `written`, so
/// has a value (Part 2, 13.5: `TPMS_NV_PUBLIC`).
#[must_use]
pub fn counter_name(number: u8, written: bool) -> [u8; 34] {
    let attributes = COUNTER_ATTRIBUTES | if written { WRITTEN } else { 0 };
    let mut public = Vec::new();
    public.extend(counter_index(number).to_be_bytes());
    public.extend(ALG_SHA256.to_be_bytes());
    public.extend(attributes.to_be_bytes());
    public.extend([0, 0]); // no policy
    public.extend([0, 8]); // size of its value
    sha256_name(&[&public])
}

/// Handle of the NV index that is the gateway's counter `number`.
#[must_use]
pub fn counter_index(number: u8) -> u32 {
    COUNTER_FIRST + u32::from(number)
}

// `TPM_CC` (Part 2, 6.5.2).
const CC_POLICY_NV: [u8; 4] = [0, 0, 0x01, 0x49];
const CC_POLICY_AUTHORIZE: [u8; 4] = [0, 0, 0x01, 0x6A];
const CC_POLICY_PCR: [u8; 4] = [0, 0, 0x01, 0x7F];

/// `TPM_EO_UNSIGNED_LE` (Part 2, 6.8): the counter is at most the operand.
pub const UNSIGNED_LE: u16 = 0x0009;

/// `TPMA_OBJECT`: sign, userWithAuth; what `tpm2_loadexternal` gives a key that only verifies.
const SIGN_AND_USER_WITH_AUTH: u32 = 0x0004_0040;

/// `TPMA_NV` (Part 2, 13.4): a counter, read and written with its empty password, not subject to
/// lockout.
const COUNTER_ATTRIBUTES: u32 = 1 << 2 | 1 << 4 | 1 << 18 | 1 << 25;

/// `TPMA_NV_WRITTEN` (Part 2, 13.4).
const WRITTEN: u32 = 1 << 29;

/// In the range of the owner (TCG Registry of Reserved TPM 2.0 Handles, table 2), at a place that
/// spells "gwd".
const COUNTER_FIRST: u32 = 0x0186_7764;

/// `TPM2B_NONCE` with SHA-256 takes no more.
const REFERENCE_BYTES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    // Everything expected was made by tpm2-tools 5.4 in swtpm 0.7.1: tpm2_policypcr -l sha256:0,7
    // right after a start, then tpm2_policynv with "ule" and 255 on a counter; tpm2_loadexternal
    // and tpm2_policyauthorize with the key and word below; tpm2_nvreadpublic.

    #[test]
    fn each_demand_changes_the_digest_as_in_a_tpm() {
        let pcrs = PolicyDigest::new().and_pcrs(&started());
        assert_eq!(
            hex::encode(pcrs.as_bytes()),
            "02e3642b3e29eeccfffd8031c00a6f0a0febe5ceea2f6ef6b0322fe81598cf31"
        );
        let counter = CounterLimit {
            number: 3,
            value_max: 255,
        };
        assert_eq!(
            hex::encode(pcrs.and_counter(counter).as_bytes()),
            "5a2ce50f1961d2bc49902396a3dc5aeb5732e2678f563a006bc49454e1499f8e"
        );
    }

    #[test]
    fn an_authority_has_the_name_and_policy_that_a_tpm_gives_it() {
        let authority = PolicyAuthority::new(authority_key(), b"gatewayd data 1").unwrap();
        assert_eq!(
            hex::encode(authority.key_name()),
            "000b28c4960013e7f198f904c2759c27d55cdb479a44a174fe0b09fde8a088062a48"
        );
        assert_eq!(
            hex::encode(authority.policy().as_bytes()),
            "cfdab23124939c08bf4fa8b08234b238bd392ef1f1d0a9409a3353fd6bda239c"
        );
    }

    #[test]
    fn a_word_that_is_too_long_is_no_part_of_another() {
        assert!(PolicyAuthority::new(authority_key(), &[b'a'; 32]).is_some());
        assert!(PolicyAuthority::new(authority_key(), &[b'a'; 33]).is_none());
    }

    #[test]
    fn a_counter_has_the_name_that_a_tpm_gives_it() {
        let counter = CounterLimit {
            number: 3,
            value_max: 0,
        };
        assert_eq!(counter.index(), 0x0186_7767);
        assert_eq!(
            hex::encode(counter.name()),
            "000b0a4e26d301f0e7b930aaa1f7586eb69b96f3fbd5d04dc54a3abb65857cf839a5"
        );
    }

    #[test]
    fn other_values_counters_limits_words_and_keys_give_other_policies() {
        let base = PolicyDigest::new().and_pcrs(&started());
        let limit = |number, value_max| base.and_counter(CounterLimit { number, value_max });
        let mut key = authority_key();
        key[64] ^= 1;
        let authority = |key, word: &[u8]| PolicyAuthority::new(key, word).unwrap().policy();
        let different = [
            PolicyDigest::new(),
            base,
            PolicyDigest::new().and_pcrs(&[(0, [0; 32]), (7, [1; 32])].into_iter().collect()),
            PolicyDigest::new().and_pcrs(&[(0, [0; 32]), (8, [0; 32])].into_iter().collect()),
            limit(1, 5),
            limit(2, 5),
            limit(1, 6),
            authority(authority_key(), b"data 1"),
            authority(authority_key(), b"data 2"),
            authority(key, b"data 1"),
        ];
        for (place, policy) in different.iter().enumerate() {
            assert!(!different[..place].contains(policy), "{place}");
        }
    }

    fn started() -> PcrValues {
        [(0, [0; 32]), (7, [0; 32])].into_iter().collect()
    }

    fn authority_key() -> [u8; 65] {
        hex::decode(
            "042b21c83b66d795ae240e6f8b08ff2c7ba89616664768232437e61d237a73c8e5\
             9d8bf628979db4ce869ae1d884d557adbe44288eaef2873d01144625d6a0b45d",
        )
        .unwrap()
        .try_into()
        .unwrap()
    }
}
