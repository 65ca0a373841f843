//! The identity key where a library wants to sign: certificate requests and TLS.

use p256::ecdsa::Signature;
use sha2::{Digest as _, Sha256};

use crate::error::HsmError;
use crate::handle::Hsm;

/// The identity key as a signer that blocks its thread for as long as the TPM takes.
///
/// With the feature `rcgen` it signs certificate requests, and with `rustls` it is the key of a TLS
/// client or server certificate. Its signatures are ECDSA over SHA-256, and nothing else.
#[derive(Clone)]
pub struct IdentitySigner {
    hsm: Hsm,
    point: [u8; 65],
}

impl IdentitySigner {
    pub(crate) fn new(hsm: Hsm, point: [u8; 65]) -> Self {
        Self { hsm, point }
    }

    /// The public key, `04‖X‖Y`.
    #[must_use]
    pub fn point(&self) -> &[u8; 65] {
        &self.point
    }

    /// Signs a message: `ECDSA-Sig-Value` in DER (RFC 3279, 2.2.3), with low `s`.
    ///
    /// # Errors
    ///
    /// As [`Hsm::sign`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, HsmError> {
        let signature = self.hsm.sign_blocking(Sha256::digest(message).into())?;
        let signature = Signature::from_slice(&signature).map_err(|_| HsmError::Tampered)?;
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

#[cfg(feature = "rcgen")]
mod certificate_requests {
    use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};

    use super::IdentitySigner;

    impl PublicKeyData for IdentitySigner {
        fn der_bytes(&self) -> &[u8] {
            &self.point
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &PKCS_ECDSA_P256_SHA256
        }
    }

    impl SigningKey for IdentitySigner {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            // The library's error takes no cause; the TPM's own goes to the log.
            Self::sign(self, message).map_err(|error| {
                tracing::warn!(advice = error.advice(), "cannot sign: {error}");
                rcgen::Error::RemoteKeyError
            })
        }
    }
}

#[cfg(feature = "rustls")]
mod tls {
    use std::fmt;

    use rustls::sign::{Signer, SigningKey};
    use rustls::{OtherError, SignatureAlgorithm, SignatureScheme};

    use super::IdentitySigner;

    impl SigningKey for IdentitySigner {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            offered
                .contains(&SCHEME)
                .then(|| Box::new(self.clone()) as Box<dyn Signer>)
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            SignatureAlgorithm::ECDSA
        }
    }

    impl Signer for IdentitySigner {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
            Self::sign(self, message)
                .map_err(|error| rustls::Error::Other(OtherError(std::sync::Arc::new(error))))
        }

        fn scheme(&self) -> SignatureScheme {
            SCHEME
        }
    }

    /// Names the key, and nothing of the TPM.
    impl fmt::Debug for IdentitySigner {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("IdentitySigner").finish_non_exhaustive()
        }
    }

    const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
}
