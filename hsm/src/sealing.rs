//! Secrets that this TPM opens in the states that an authority has signed.
//!
//! What this does not give: PCRs are extended in the clear, so whoever is on the bus can restart the
//! TPM and play a signed boot to it. Who sealed a secret nobody can tell: whoever may use the TPM can
//! seal another one for the same authority, so what a secret opens must be authenticated by itself.
//! And whoever may use the TPM can raise a counter, and so end policies.

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::structures::{
    Digest, KeyedHashScheme, Public as TpmtPublic, PublicBuilder, PublicKeyedHashParameters,
    SensitiveData,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use wire::tpm::{PolicyAuthority, SignedPolicy};
use zeroize::Zeroizing;

use crate::config::Tpm;
use crate::connection::PARENT;
use crate::direct::{Direct, PolicySession};
use crate::engine::Engine;
use crate::error::{HsmError, SealFault};
use crate::files::Keyring;
use crate::owner::Office;
use crate::response::{During, INTEGRITY, Operation};
use crate::templates::{Name, point_of};
use crate::tss2_key::{self, Form};

impl Engine {
    pub(crate) fn seal(
        &mut self,
        secret: &[u8],
        authority: &PolicyAuthority,
    ) -> Result<String, HsmError> {
        if SECRET_BYTES_MAX < secret.len() {
            return Err(HsmError::Sealed(SealFault::TooLong));
        }
        if VerifyingKey::from_sec1_bytes(authority.key()).is_err() {
            return Err(HsmError::Sealed(SealFault::NotAKey));
        }
        let template = template(authority)?;
        let secret = SensitiveData::try_from(secret).during(Operation::Seal)?;
        let keys = self.keys()?;
        let (public, private) = self.ready(&keys)?.create_sealed(template, secret)?;
        let public = public.marshall().during(Operation::Seal)?;
        tss2_key::encode(Form::Sealed, &public, private.value())
            .ok_or(HsmError::Sealed(SealFault::Damaged))
    }

    /// Opens what [`seal`](Self::seal) made, by the first policy that fits.
    pub(crate) fn unseal(
        &mut self,
        sealed: &str,
        authority: &PolicyAuthority,
        policies: &[SignedPolicy],
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let damaged = || HsmError::Sealed(SealFault::Damaged);
        let (public, private) = tss2_key::decode(Form::Sealed, sealed).ok_or_else(damaged)?;
        let area = TpmtPublic::unmarshall(&public).map_err(|_| damaged())?;
        if area.auth_policy().value() != authority.policy().as_bytes() {
            return Err(HsmError::Sealed(SealFault::OtherAuthority));
        }
        let keys = self.keys()?;
        // Sees to it that the TPM is started and the root key there and ours; then the library
        // lets go of the TPM.
        self.ready(&keys)?.rest()?;
        self.disconnect();
        let mut unsealing = Unsealing::start(&keys, self.tpm(), self.office().clone())?;
        let opened = unsealing.open((&public, &private), authority, policies);
        // After a failure the next connection of the library sweeps out what is left.
        opened.and_then(|secret| unsealing.end().map(|()| secret))
    }
}

/// A conversation with the TPM in which a secret is opened.
struct Unsealing {
    tpm: Direct,
    session: PolicySession,
}

impl Unsealing {
    fn start(keys: &Keyring, tpm: &Tpm, office: Office) -> Result<Self, HsmError> {
        let mut tpm = Direct::open(tpm, office)?;
        let area = tpm.read_public(PARENT)?;
        // Before anything takes it apart: from here on it is, byte for byte, what was pinned.
        if Name::of_area(&area) != keys.parent {
            return Err(HsmError::KeyNotOfThisTpm);
        }
        let parent = TpmtPublic::unmarshall(&area).map_err(|_| HsmError::Tampered)?;
        let point = point_of(&parent).ok_or(HsmError::Tampered)?;
        let session = tpm.start_policy(PARENT, &point)?;
        Ok(Self { tpm, session })
    }

    fn open(
        &mut self,
        (public, private): (&[u8], &[u8]),
        authority: &PolicyAuthority,
        policies: &[SignedPolicy],
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let loaded = self.tpm.load(PARENT, private, public);
        let object = loaded.map_err(|error| {
            if error.is_refusal(INTEGRITY) {
                HsmError::Sealed(SealFault::Damaged)
            } else {
                error
            }
        })?;
        let name = Name::of_area(public);
        let mut fault = SealFault::State;
        for policy in policies {
            let mut tries = 0;
            loop {
                let opened = self
                    .satisfy(authority, policy)
                    .and_then(|()| self.tpm.unseal(&mut self.session, object, name.as_bytes()));
                match opened {
                    Ok(secret) => {
                        self.tpm.flush(object)?;
                        return Ok(secret);
                    }
                    // Somebody measured something between the demand and the use. That need not
                    // have been a PCR of the policy: the TPM has one count for all.
                    Err(error) if error.is_refusal(PCR_CHANGED) && tries < TRIES_MAX => tries += 1,
                    Err(error) if error.is_refusal(PCR_CHANGED) => return Err(HsmError::Busy),
                    Err(HsmError::Sealed(reason)) => {
                        // That a policy does not fit is said of any; the others say more.
                        if fault == SealFault::State {
                            fault = reason;
                        }
                        break;
                    }
                    Err(error) => return Err(error),
                }
                self.tpm.policy_restart(&self.session)?;
            }
            self.tpm.policy_restart(&self.session)?;
        }
        self.tpm.flush(object)?;
        self.tpm.flush(self.session.handle())?;
        Err(HsmError::Sealed(fault))
    }

    /// Brings the session to the authority's policy, by way of one that it has signed.
    fn satisfy(
        &mut self,
        authority: &PolicyAuthority,
        policy: &SignedPolicy,
    ) -> Result<(), HsmError> {
        self.tpm.policy_pcr(&self.session, policy.pcrs)?;
        if let Some(limit) = policy.counter {
            // Nothing but our counter is asked: an index with a password would take ours for a wrong
            // one, and count it.
            if self.tpm.index_name(limit.index())?.as_deref() != Some(limit.name().as_slice()) {
                return Err(HsmError::Sealed(SealFault::NoCounter));
            }
            self.tpm
                .policy_counter(&self.session, limit)
                .map_err(|error| {
                    if error.is_refusal(POLICY) {
                        HsmError::Sealed(SealFault::Withdrawn)
                    } else {
                        error
                    }
                })?;
        }
        let reached = self.tpm.policy_digest(&self.session)?;
        let message = authority.message(reached.into());
        // The TPM would say no more than that the signature is wrong.
        if !is_signed(&message, authority, policy) {
            return Err(HsmError::Sealed(SealFault::State));
        }
        let key = self.tpm.load_external(&authority.key_public())?;
        let digest = Sha256::digest(&message).into();
        let ticket = self.tpm.verify(key, &digest, &policy.signature)?;
        self.tpm.flush(key)?;
        self.tpm
            .policy_authorize(&self.session, &reached, authority, &ticket)
    }

    /// Leaves nothing in the TPM.
    fn end(mut self) -> Result<(), HsmError> {
        self.tpm.flush(self.session.handle())
    }
}

fn is_signed(message: &[u8], authority: &PolicyAuthority, policy: &SignedPolicy) -> bool {
    let key = VerifyingKey::from_sec1_bytes(authority.key());
    let signature = Signature::from_slice(&policy.signature);
    match (key, signature) {
        (Ok(key), Ok(signature)) => key.verify(message, &signature).is_ok(),
        _ => false,
    }
}

/// Data that no password opens, and only the authority's policy does.
fn template(authority: &PolicyAuthority) -> Result<TpmtPublic, HsmError> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_admin_with_policy(true)
        .with_no_da(true)
        .build()
        .during(Operation::Seal)?;
    let policy = authority.policy();
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(Digest::try_from(policy.as_bytes().as_slice()).during(Operation::Seal)?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
        .during(Operation::Seal)
}

/// `MAX_SYM_DATA` of the reference implementation, which chips keep to.
const SECRET_BYTES_MAX: usize = 128;

// `TPM_RC` (TPM 2.0 Part 2, 6.6.3).
const POLICY: u32 = 0x126;
const PCR_CHANGED: u32 = 0x128;

/// With IMA a measurement follows the other while files are opened; five in a row within the same
/// ten milliseconds mean a storm.
const TRIES_MAX: u32 = 5;
