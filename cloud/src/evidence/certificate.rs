//! The endorsement certificate, by which a vendor says that a key is in a TPM it has made (RFC 5280;
//! TCG EK Credential Profile 2.5).

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, Error, KeyUsage};

use super::endorsement::EndorsementKey;
use crate::roots::EndorsementRoots;

/// Why an endorsement certificate is refused; the words go on where "the endorsement certificate"
/// begins.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// None was sent.
    #[error("is missing: this service enrols only TPMs with a certificate of their vendor")]
    Missing,
    /// One of those sent is no DER value.
    #[error("is no certificate (number {number} of those sent)")]
    NotDer {
        /// Which, from 1.
        number: usize,
    },
    /// It vouches for another key than the one in the request.
    #[error("is for another key than the endorsement key")]
    OtherKey,
    /// It does not say that it is for endorsement keys.
    #[error("is not meant for endorsement keys (2.23.133.8.1, tcg-kp-EKCertificate)")]
    OtherPurpose,
    /// Its time, or that of one of its issuers, is over.
    #[error("expired on {}, or one of its issuers did", .0.strftime("%Y-%m-%d"))]
    Expired(Timestamp),
    /// Its time, or that of one of its issuers, has not come.
    #[error("is not valid before {}, or one of its issuers is not", .0.strftime("%Y-%m-%d"))]
    NotYetValid(Timestamp),
    /// No root that the operator trusts stands behind it.
    #[error("does not lead to a root that this service trusts")]
    UnknownRoot,
    /// Anything else that is wrong with it or its issuers.
    #[error("or one of its issuers is refused:")]
    Refused(#[source] Error),
}

/// Checks that a vendor behind `roots` vouches at `now` for `key`.
///
/// `certificates` are DER, the key's own first, then those of its issuers in any order; bytes behind
/// a DER value, with which some TPMs fill an NV index, are left out.
///
/// # Errors
///
/// [`CertificateError`] says what is wrong; revocation by the vendor is not looked at.
pub fn verify(
    certificates: &[Vec<u8>],
    roots: &EndorsementRoots,
    now: SystemTime,
    key: &EndorsementKey,
) -> Result<(), CertificateError> {
    let mut sent = (1..).zip(certificates).map(|(number, padded)| {
        let value = der_value(padded).ok_or(CertificateError::NotDer { number })?;
        Ok(CertificateDer::from(value))
    });
    let own = sent.next().ok_or(CertificateError::Missing)??;
    let own = EndEntityCert::try_from(&own).map_err(|error| {
        if error == Error::BadDer {
            CertificateError::NotDer { number: 1 }
        } else {
            CertificateError::Refused(error)
        }
    })?;
    let certified = own.subject_public_key_info();
    if key.subject_public_key_info().as_deref() != Some(&certified) {
        return Err(CertificateError::OtherKey);
    }

    let mut issuers = sent.collect::<Result<Vec<_>, _>>()?;
    issuers.extend(roots.issuers.iter().cloned());
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let now = UnixTime::since_unix_epoch(since.unwrap_or(Duration::ZERO));
    let algorithms = ALL_VERIFICATION_ALGS;
    // Issuers need not name a purpose, but one that does must name this one.
    let purpose = KeyUsage::required_if_present(EK_CERTIFICATE);
    own.verify_for_usage(
        algorithms,
        &roots.anchors,
        &issuers,
        now,
        purpose,
        None,
        None,
    )
    .map_err(refusal)?;
    // The key's own certificate must name it. Without roots, and once everything else holds, an
    // unknown issuer is the one thing that can be wrong with it.
    let purpose = KeyUsage::required(EK_CERTIFICATE);
    match own.verify_for_usage(algorithms, &[], &[], now, purpose, None, None) {
        Ok(_) | Err(Error::UnknownIssuer) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: Error) -> CertificateError {
    let date = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    };
    if let Error::CertExpired { not_after, .. } = error {
        CertificateError::Expired(date(not_after))
    } else if let Error::CertNotValidYet { not_before, .. } = error {
        CertificateError::NotYetValid(date(not_before))
    } else if matches!(
        error,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension
    ) {
        CertificateError::OtherPurpose
    } else if matches!(
        error,
        // The second: an issuer of the right name with another key.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey
    ) {
        CertificateError::UnknownRoot
    } else {
        CertificateError::Refused(error)
    }
}

/// The SEQUENCE at the front of `bytes`, in DER (X.690, 8.1.3 and 10.1); what follows is left out.
fn der_value(bytes: &[u8]) -> Option<&[u8]> {
    let (head, length) = match *bytes {
        [0x30, length @ 0x00..=0x7F, ..] => (2, usize::from(length)),
        [0x30, 0x81, length @ 0x80..=0xFF, ..] => (3, usize::from(length)),
        [0x30, 0x82, high @ 0x01..=0xFF, low, ..] => {
            (4, usize::from(u16::from_be_bytes([high, low])))
        }
        _ => return None,
    };
    bytes.get(..head + length)
}

/// tcg-kp-EKCertificate, 2.23.133.8.1 (TCG EK Credential Profile 2.5), content of its DER.
const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_der_value_is_left_out() {
        for (length, head) in [
            (0_usize, vec![0x30, 0x00]),
            (127, vec![0x30, 0x7F]),
            (128, vec![0x30, 0x81, 0x80]),
            (255, vec![0x30, 0x81, 0xFF]),
            (256, vec![0x30, 0x82, 0x01, 0x00]),
            (8_000, vec![0x30, 0x82, 0x1F, 0x40]),
        ] {
            let value = [head, vec![0x5A; length]].concat();
            for padding in [&[][..], &[0], &[0xFF; 300]] {
                let padded = [value.as_slice(), padding].concat();
                assert_eq!(der_value(&padded), Some(value.as_slice()));
            }
            assert_eq!(der_value(&value[..value.len() - 1]), None);
        }
    }

    #[test]
    fn other_values_and_lengths_that_der_does_not_allow_are_refused() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x31, 0],
            &[0xFF; 1_000],
            &[0; 1_000],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x81, 0x7F],
            &[0x30, 0x82, 0x00, 0xFF],
            &[0x30, 0x83, 0, 1, 0],
        ] {
            let padded = [bytes, &[0; 300]].concat();
            let shown = bytes.first();
            let value = der_value(if bytes.len() > 2 { &padded } else { bytes });
            assert_eq!(value, None, "{shown:?}");
        }
    }
}
