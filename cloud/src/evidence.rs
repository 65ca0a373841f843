//! What a gateway shows to prove that its keys live in one TPM, checked with arithmetic alone
//! (protocol.md 5.3).

pub mod certificate;
mod credential;
mod endorsement;
pub mod quote;

use channel::{Fingerprint, KeyKind, PublicKey};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use wire::{
    enrol::{self, CertifiedKey, Challenge, Evidence, Request},
    tpm::{self, Certification, TpmError, TpmPublic},
};
use zeroize::Zeroizing;

pub use self::{
    certificate::CertificateError,
    credential::CredentialError,
    endorsement::{EndorsementError, EndorsementKey, EndorsementKind},
};
use crate::registry::NewGateway;

/// The keys of message 1, each with the attributes that its role asks for.
pub struct ClaimedKeys {
    endorsement: EndorsementKey,
    attestation: TpmPublic,
    identity: TpmPublic,
    channel: TpmPublic,
}

/// A challenge on its way, and the secret that only the TPM with both keys can open.
pub struct OpenChallenge {
    /// Message 2.
    pub challenge: Challenge,
    secret: Zeroizing<[u8; 32]>,
}

/// Why evidence is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// A key's public area is not what its role asks for.
    #[error("the {role} key")]
    Key {
        /// Which key.
        role: &'static str,
        /// What is wrong with it.
        #[source]
        source: TpmError,
    },
    /// The endorsement key is none that this version knows.
    #[error("the endorsement key")]
    Endorsement(#[from] EndorsementError),
    /// The vendor does not vouch for the endorsement key.
    #[error("the endorsement certificate")]
    Certificate(#[from] CertificateError),
    /// The channel key is not the one of the session.
    #[error("the channel key is not the one of the session")]
    OtherChannelKey,
    /// Two of the keys are one.
    #[error("two of the keys are the same")]
    SameKeys,
    /// A public key is none.
    #[error("a key is no point on P-256")]
    NotAPoint,
    /// No credential could be made to the endorsement key.
    #[error("the endorsement key")]
    Credential(#[from] CredentialError),
    /// The TPM did not open the credential: its attestation key is in another TPM.
    #[error("the credential was not opened: attestation and endorsement key are not in one TPM")]
    NotActivated,
    /// A certification does not hold.
    #[error("the certification of the {role} key")]
    Certification {
        /// Which key.
        role: &'static str,
        /// What is wrong with it.
        #[source]
        source: TpmError,
    },
    /// A certification is not signed by the attestation key.
    #[error("the certification of the {role} key is not signed by the attestation key")]
    NotCertified {
        /// Which key.
        role: &'static str,
    },
    /// A quote does not hold.
    #[error("the quote")]
    Quote(#[source] TpmError),
    /// A quote is not signed by the attestation key.
    #[error("the quote is not signed by the attestation key")]
    QuoteNotSigned,
    /// The identity key did not sign.
    #[error("the identity key did not sign")]
    NoPossession,
}

impl ClaimedKeys {
    /// Takes the keys of message 1 of a session whose Noise static key is `session_key`.
    ///
    /// # Errors
    ///
    /// Whichever item of protocol.md 5.3, 2 to 4, fails.
    pub fn check(request: &Request, session_key: &PublicKey) -> Result<Self, EvidenceError> {
        let parse = |role, bytes: &[u8], check: fn(&TpmPublic) -> Result<(), TpmError>| {
            let key = TpmPublic::parse(bytes).and_then(|key| check(&key).map(|()| key));
            key.map_err(|source| EvidenceError::Key { role, source })
        };
        let keys = Self {
            endorsement: EndorsementKey::parse(&request.ek)?,
            attestation: parse("attestation", &request.ak, TpmPublic::check_attestation)?,
            identity: parse("identity", &request.identity, TpmPublic::check_identity)?,
            channel: parse("channel", &request.channel, TpmPublic::check_channel)?,
        };
        if keys.channel.point() != *session_key.as_bytes() {
            return Err(EvidenceError::OtherChannelKey);
        }
        let mut points = vec![
            keys.attestation.point().to_vec(),
            keys.identity.point().to_vec(),
            keys.channel.point().to_vec(),
        ];
        // A key of another kind is another key.
        points.extend(keys.endorsement.p256_point());
        points.sort_unstable();
        if points.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(EvidenceError::SameKeys);
        }
        Ok(keys)
    }

    /// The endorsement key, by its template.
    #[must_use]
    pub fn endorsement(&self) -> &EndorsementKey {
        &self.endorsement
    }

    /// Makes message 2: a secret that only a TPM with both endorsement and attestation key opens.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Credential`] if nothing can be encrypted to the endorsement key.
    pub fn challenge(&self, rng: &mut dyn CryptoRng) -> Result<OpenChallenge, EvidenceError> {
        let mut nonce = [0; 32];
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut nonce);
        rng.fill_bytes(&mut *secret);
        let made = credential::make(&self.endorsement, &self.attestation.name(), &secret, rng)?;
        Ok(OpenChallenge {
            challenge: Challenge {
                nonce,
                credential: made.blob,
                secret: made.encrypted_seed,
            },
            secret,
        })
    }

    /// Checks message 3 against transcript `t`.
    ///
    /// # Errors
    ///
    /// Whichever item of protocol.md 5.3, 5 to 7, fails.
    pub fn verify(
        &self,
        evidence: &Evidence,
        open: &OpenChallenge,
        t: &[u8; 32],
    ) -> Result<NewGateway, EvidenceError> {
        let expected = enrol::activated(&*open.secret, t);
        if !bool::from(expected.ct_eq(&evidence.activated)) {
            return Err(EvidenceError::NotActivated);
        }
        let point =
            |key: &TpmPublic| PublicKey::parse(&key.point()).map_err(|_| EvidenceError::NotAPoint);
        let attestation = point(&self.attestation)?;
        let certified = [
            (
                "identity",
                CertifiedKey::Identity,
                &self.identity,
                &evidence.identity,
            ),
            (
                "channel",
                CertifiedKey::Channel,
                &self.channel,
                &evidence.channel,
            ),
        ];
        for (role, kind, key, (statement, signature)) in certified {
            let data = enrol::certify_data(kind, t);
            Certification::verify(statement, &key.name(), &data)
                .map_err(|source| EvidenceError::Certification { role, source })?;
            let signed = signed_by(&attestation, statement, signature)
                .map_err(|source| EvidenceError::Certification { role, source })?;
            if !signed {
                return Err(EvidenceError::NotCertified { role });
            }
        }
        let identity = point(&self.identity)?;
        channel::verify(
            &identity,
            &enrol::possession_message(t),
            &evidence.possession,
        )
        .map_err(|_| EvidenceError::NoPossession)?;
        Ok(NewGateway {
            fingerprint: *Fingerprint::of(KeyKind::GatewayIdentity, identity.as_bytes()).bytes(),
            identity,
            channel: point(&self.channel)?,
            attestation,
            endorsement: self.endorsement.public_area().to_vec(),
            names: [
                self.identity.name(),
                self.channel.name(),
                self.attestation.name(),
            ],
        })
    }
}

/// Whether `signature`, as a TPM writes it, is this attestation key's over `attest`.
fn signed_by(attestation: &PublicKey, attest: &[u8], signature: &[u8]) -> Result<bool, TpmError> {
    let signature = tpm::ecdsa_signature(signature)?;
    // A TPM does not choose the lower s.
    let verified = channel::normalise(signature)
        .and_then(|signature| channel::verify(attestation, attest, &signature));
    Ok(verified.is_ok())
}
