//! A certificate request (PKCS#10, RFC 2986) for the identity key, signed in the TPM.
//!
//! The subject is a common name, which whoever asks may choose, and the gateway's fingerprint as
//! `serialNumber` (2.5.4.5): there IEEE 802.1AR puts what tells one device from all others, and its
//! alphabet is that of fingerprints. So an operator of a certification authority can compare what
//! is asked for with `gatewayctl status`, and two gateways of one name stay two. A URI as a subject
//! alternative name would need a scheme that nobody has registered. It discloses nothing: the
//! fingerprint is the hash of the public key, which any certificate shows.

use std::cell::Cell;

use channel::Fingerprint;
use hsm::{HsmError, IdentitySigner};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, PublicKeyData, SignatureAlgorithm,
    SigningKey, string::PrintableString,
};

/// A common name that may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject(String);

/// Why a text is no common name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubjectError {
    /// Nothing is left of it.
    #[error("the subject is empty, or begins or ends with a blank")]
    Blank,
    /// Certification authorities would refuse it (RFC 5280, appendix A: `ub-common-name`).
    #[error("the subject has {characters} characters, 64 at most are allowed")]
    Length {
        /// How many it has.
        characters: usize,
    },
    /// A person could not see what it says.
    #[error("the subject has a control character, or one that reverses the direction of text")]
    Unprintable,
}

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsrError {
    /// The TPM did not sign.
    #[error("the TPM did not sign")]
    Tpm(#[source] HsmError),
    /// It cannot be encoded: a bug of ours.
    #[error("the request cannot be encoded")]
    Encoding(#[source] rcgen::Error),
}

impl Subject {
    /// Takes any text that reads as what it is. Quotes, commas and letters of any language need no
    /// escape: the name is a string of its own in the request.
    pub(crate) fn parse(text: &str) -> Result<Self, SubjectError> {
        if text.is_empty() || text.trim() != text {
            return Err(SubjectError::Blank);
        }
        let characters = text.chars().count();
        if COMMON_NAME_CHARACTERS_MAX < characters {
            return Err(SubjectError::Length { characters });
        }
        if text
            .chars()
            .any(|letter| letter.is_control() || turns(letter))
        {
            return Err(SubjectError::Unprintable);
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Has the TPM sign a request; returns it as PEM. Blocks for as long as the TPM takes.
pub(crate) fn request(
    signer: IdentitySigner,
    subject: &Subject,
    gateway: &Fingerprint,
) -> Result<String, CsrError> {
    let serial = PrintableString::try_from(gateway.to_string()).map_err(CsrError::Encoding)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, DnValue::Utf8String(subject.0.clone()));
    name.push(
        DnType::CustomDnType(SERIAL_NUMBER.to_vec()),
        DnValue::PrintableString(serial),
    );
    let mut asked = CertificateParams::default();
    asked.distinguished_name = name;
    let key = Witness {
        signer,
        failure: Cell::new(None),
    };
    let made = asked
        .serialize_request(&key)
        .and_then(|request| request.pem());
    made.map_err(|error| match key.failure.take() {
        Some(failure) => CsrError::Tpm(failure),
        None => CsrError::Encoding(error),
    })
}

/// The identity key, keeping what the TPM said: the library's error has no place for a cause.
struct Witness {
    signer: IdentitySigner,
    failure: Cell<Option<HsmError>>,
}

impl PublicKeyData for Witness {
    fn der_bytes(&self) -> &[u8] {
        self.signer.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.signer.algorithm()
    }
}

impl SigningKey for Witness {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // A request begins with 0x30: nothing else that this key signs does.
        self.signer.sign(message).map_err(|error| {
            self.failure.set(Some(error));
            rcgen::Error::RemoteKeyError
        })
    }
}

/// Marks, embeddings, overrides and isolates of direction (Unicode Standard Annex 9, 2).
fn turns(letter: char) -> bool {
    matches!(
        letter,
        '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
    )
}

/// `id-at-serialNumber` (X.520, 6.2.9).
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// RFC 5280, appendix A: `ub-common-name`.
const COMMON_NAME_CHARACTERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hsm::{Hsm, HsmConfig, Tpm};

    use super::*;

    #[test]
    fn a_subject_is_any_text_that_reads_as_what_it_is() {
        for text in ["greenhouse-7", "Grünhaus \"7\", O=x/CN=y+z", "温室七号"] {
            assert_eq!(Subject::parse(text).unwrap().as_str(), text);
        }
        assert!(Subject::parse(&"ü".repeat(64)).is_ok());
    }

    #[test]
    fn a_subject_that_deceives_or_does_not_fit_is_refused() {
        let long = "x".repeat(65);
        for (text, fault) in [
            ("", SubjectError::Blank),
            (" a", SubjectError::Blank),
            ("a\n", SubjectError::Blank),
            (&long, SubjectError::Length { characters: 65 }),
            ("a\0b", SubjectError::Unprintable),
            ("a\nCN=b", SubjectError::Unprintable),
            ("a\u{1b}[31mb", SubjectError::Unprintable),
            ("a\u{202e}b", SubjectError::Unprintable),
        ] {
            assert_eq!(Subject::parse(text), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn a_tpm_that_does_not_sign_is_the_named_cause() {
        let folder = tempfile::tempdir().unwrap();
        let hsm = Hsm::start(HsmConfig {
            tpm: Tpm::Device(folder.path().join("none")),
            keys: folder.path().join("keys"),
            timeout: Duration::from_secs(5),
        });
        let keys = hsm::Public {
            identity: [4; 65],
            channel: [4; 65],
            identity_public: Vec::new(),
            channel_public: Vec::new(),
            attestation_public: Vec::new(),
            vendor: String::new(),
        };
        let gateway = Fingerprint::new(channel::KeyKind::GatewayIdentity, [7; 32]);
        let subject = Subject::parse("a").unwrap();

        let error = request(hsm.signer(&keys), &subject, &gateway).unwrap_err();

        let CsrError::Tpm(cause) = error else {
            panic!("{error}");
        };
        assert!(matches!(cause, HsmError::NotProvisioned { .. }), "{cause}");
    }
}
