//! ES256 with one encoding for each signature.

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::elliptic_curve::scalar::IsHigh as _;

use super::PublicKey;

/// Verifies an ES256 signature, `r ‖ s`, over `message` (which is hashed here).
///
/// # Errors
///
/// Any [`SignatureError`]. A high s is refused although the equation holds: whoever sees a
/// signature can make the other form of it.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    let signature = parse(signature)?;
    if signature.s().is_high().into() {
        return Err(SignatureError::HighS);
    }
    VerifyingKey::from_sec1_bytes(key.as_bytes())
        .and_then(|key| key.verify(message, &signature))
        .map_err(|_| SignatureError::Wrong)
}

/// Gives a signature its one accepted form: s, or n - s, whichever is at most n / 2.
///
/// For signers, since a TPM returns either.
///
/// # Errors
///
/// [`SignatureError::Format`] if r or s is zero or not below n.
pub fn normalise(signature: [u8; 64]) -> Result<[u8; 64], SignatureError> {
    Ok(parse(&signature)?.normalize_s().to_bytes().into())
}

fn parse(signature: &[u8]) -> Result<Signature, SignatureError> {
    Signature::from_slice(signature).map_err(|_| SignatureError::Format)
}

/// Why a signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not 64 bytes, or r or s out of range.
    #[error("signature is malformed")]
    Format,

    /// The second form of a signature, with s above n / 2.
    #[error("signature has a high s")]
    HighS,

    /// Made by another key, or over other bytes.
    #[error("signature does not match")]
    Wrong,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SoftwareSigningKey;
    use crate::fixture::vector;

    /// The order n of P-256 (SEC 2, 2.4.2).
    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

    fn key() -> PublicKey {
        PublicKey::parse(&vector("identity_public")).unwrap()
    }

    #[test]
    fn a_foreign_signature_is_verified() {
        let signature = vector("message_signature");
        assert_eq!(verify(&key(), b"message", &signature), Ok(()));
        assert_eq!(
            verify(&key(), b"massage", &signature),
            Err(SignatureError::Wrong)
        );
        let other = PublicKey::parse(&vector("service_public")).unwrap();
        assert_eq!(
            verify(&other, b"message", &signature),
            Err(SignatureError::Wrong)
        );
    }

    #[test]
    fn high_s_is_refused_and_normalised() {
        let low = vector("message_signature");
        let high = vector("message_signature_high");
        assert_eq!(
            verify(&key(), b"message", &high),
            Err(SignatureError::HighS)
        );
        for form in [&low, &high] {
            let normal = normalise(form.as_slice().try_into().unwrap()).unwrap();
            assert_eq!(normal, *low);
        }
    }

    #[test]
    fn scalars_out_of_range_are_refused() {
        let good = vector("message_signature");
        let (r, s) = good.split_at(32);
        let order = hex::decode(ORDER).unwrap();
        for bad in [
            [&[0; 32], s].concat(),
            [r, &[0; 32]].concat(),
            [&order, s].concat(),
            [r, &order].concat(),
            good[..63].to_vec(),
            [&good, [0].as_slice()].concat(),
            Vec::new(),
        ] {
            assert_eq!(
                verify(&key(), b"message", &bad),
                Err(SignatureError::Format)
            );
            if let Ok(bad) = bad.try_into() {
                assert_eq!(normalise(bad), Err(SignatureError::Format));
            }
        }
    }

    /// RFC 6979, A.2.5, SHA-256, "sample": its s is high.
    #[test]
    fn we_sign_as_rfc_6979_with_low_s() {
        let key = SoftwareSigningKey::from_bytes(
            &hex::decode("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
                .unwrap(),
        )
        .unwrap();
        let published: [u8; 64] = hex::decode(concat!(
            "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716",
            "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
        ))
        .unwrap()
        .try_into()
        .unwrap();

        assert_eq!(key.sign_now(b"sample"), normalise(published).unwrap());
    }
}
