//! What our keys are: their public templates, Names, and what makes a parent fit.

use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{
    EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public as TpmtPublic,
    PublicBuilder, PublicEccParameters, SymmetricDefinitionObject,
};
use tss_esapi::traits::Marshall;
use zeroize::Zeroizing;

use crate::error::{HsmError, ParentFault};
use crate::response::{During, Operation};

/// One of the keys under the storage root key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Key {
    Identity,
    Channel,
    Attestation,
}

impl Key {
    pub(crate) const ALL: [Self; 3] = [Self::Identity, Self::Channel, Self::Attestation];

    /// The name of its file.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Identity => "identity.pem",
            Self::Channel => "channel.pem",
            Self::Attestation => "attestation.pem",
        }
    }

    /// The template the TPM makes it from: fixed to the TPM, usable with an empty password, not
    /// subject to lockout.
    pub(crate) fn template(self) -> tss_esapi::Result<TpmtPublic> {
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_sensitive_data_origin(true)
            .with_user_with_auth(true)
            .with_no_da(true);
        let attributes = match self {
            Self::Identity => attributes.with_sign_encrypt(true),
            Self::Channel => attributes.with_decrypt(true),
            Self::Attestation => attributes.with_sign_encrypt(true).with_restricted(true),
        };
        let scheme = match self {
            Self::Identity | Self::Attestation => {
                EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256))
            }
            Self::Channel => EccScheme::Null,
        };
        p256(attributes.build()?, scheme, SymmetricDefinitionObject::Null)
    }
}

/// The storage root key: ECC P-256, AES-128-CFB, unique fields empty, as tpm2-tools, OpenSSL's
/// `tpm2` provider and systemd make it, and not subject to lockout.
pub(crate) fn parent_template() -> tss_esapi::Result<TpmtPublic> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    p256(
        attributes,
        EccScheme::Null,
        SymmetricDefinitionObject::AES_128_CFB,
    )
}

fn p256(
    attributes: ObjectAttributes,
    scheme: EccScheme,
    symmetric: SymmetricDefinitionObject,
) -> tss_esapi::Result<TpmtPublic> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(PublicEccParameters::new(
            symmetric,
            scheme,
            EccCurve::NistP256,
            KeyDerivationFunctionScheme::Null,
        ))
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Checks a storage root key that somebody else made before our keys go under it.
pub(crate) fn check_parent(public: &TpmtPublic) -> Result<(), ParentFault> {
    let TpmtPublic::Ecc {
        object_attributes: attributes,
        name_hashing_algorithm: HashingAlgorithm::Sha256,
        parameters,
        ..
    } = public
    else {
        return Err(ParentFault::Algorithm);
    };
    if parameters.ecc_curve() != EccCurve::NistP256
        || parameters.symmetric_definition_object() != SymmetricDefinitionObject::AES_128_CFB
    {
        return Err(ParentFault::Algorithm);
    }
    if !attributes.restricted() || !attributes.decrypt() || attributes.sign_encrypt() {
        return Err(ParentFault::NotStorage);
    }
    if !attributes.fixed_tpm()
        || !attributes.fixed_parent()
        || !attributes.sensitive_data_origin()
        || attributes.st_clear()
    {
        return Err(ParentFault::NotFixed);
    }
    if !attributes.no_da() {
        return Err(ParentFault::Lockable);
    }
    if !attributes.user_with_auth() {
        return Err(ParentFault::Locked);
    }
    Ok(())
}

/// The Name of a TPM object: its name algorithm and the hash of its public area
/// (TPM 2.0 Part 1, 16).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Name([u8; NAME_BYTES]);

impl Name {
    /// Computes it from the public area, whatever anyone says it is.
    pub(crate) fn of(public: &TpmtPublic) -> Result<Self, HsmError> {
        let area = public.marshall().during(Operation::Open)?;
        Ok(Self::of_area(&area))
    }

    /// Computes it from a `TPMT_PUBLIC`.
    pub(crate) fn of_area(area: &[u8]) -> Self {
        let mut name = [0; NAME_BYTES];
        let (algorithm, hash) = name.split_at_mut(SHA256.len());
        algorithm.copy_from_slice(&SHA256);
        hash.copy_from_slice(&Sha256::digest(area));
        Self(name)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; NAME_BYTES] {
        &self.0
    }

    /// Whether the library's form of a Name is this one.
    pub(crate) fn is(&self, name: &tss_esapi::structures::Name) -> bool {
        name.value() == self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .filter(|bytes: &[u8; NAME_BYTES]| bytes.starts_with(&SHA256))
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not the Name of a TPM object by SHA-256"))
    }
}

/// A coordinate or scalar as 32 bytes. A TPM may leave out leading zeros, so they are put back.
pub(crate) fn left_padded(value: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut padded = Zeroizing::new([0; 32]);
    let start = padded.len().checked_sub(value.len())?;
    padded.get_mut(start..)?.copy_from_slice(value);
    Some(padded)
}

/// A public key as `04‖X‖Y`.
pub(crate) fn point_of(public: &TpmtPublic) -> Option<[u8; 65]> {
    let TpmtPublic::Ecc { unique, .. } = public else {
        return None;
    };
    let mut point = [4; 65];
    let (x, y) = point.get_mut(1..)?.split_at_mut(32);
    x.copy_from_slice(left_padded(unique.x().value())?.as_slice());
    y.copy_from_slice(left_padded(unique.y().value())?.as_slice());
    Some(point)
}

/// `TPM_ALG_SHA256`.
const SHA256: [u8; 2] = [0x00, 0x0B];

/// Algorithm and SHA-256.
const NAME_BYTES: usize = 2 + 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_put_back() {
        assert_eq!(
            left_padded(&[7]).unwrap().as_slice(),
            [&[0; 31][..], &[7]].concat()
        );
        assert_eq!(left_padded(&[9; 32]).unwrap().as_slice(), [9; 32]);
        assert!(left_padded(&[9; 33]).is_none());
    }

    #[test]
    fn our_own_parent_is_fit() {
        assert_eq!(check_parent(&parent_template().unwrap()), Ok(()));
    }

    #[test]
    fn a_parent_with_any_wrong_attribute_is_unfit() {
        let fault = |change: fn(ObjectAttributesBuilder) -> ObjectAttributesBuilder| {
            let fit = ObjectAttributesBuilder::new()
                .with_fixed_tpm(true)
                .with_fixed_parent(true)
                .with_sensitive_data_origin(true)
                .with_user_with_auth(true)
                .with_no_da(true)
                .with_restricted(true)
                .with_decrypt(true);
            let public = p256(
                change(fit).build().unwrap(),
                EccScheme::Null,
                SymmetricDefinitionObject::AES_128_CFB,
            );
            check_parent(&public.unwrap()).unwrap_err()
        };
        assert_eq!(fault(|a| a.with_restricted(false)), ParentFault::NotStorage);
        assert_eq!(fault(|a| a.with_decrypt(false)), ParentFault::NotStorage);
        assert_eq!(
            fault(|a| a.with_sign_encrypt(true)),
            ParentFault::NotStorage
        );
        assert_eq!(fault(|a| a.with_fixed_tpm(false)), ParentFault::NotFixed);
        assert_eq!(fault(|a| a.with_fixed_parent(false)), ParentFault::NotFixed);
        assert_eq!(
            fault(|a| a.with_sensitive_data_origin(false)),
            ParentFault::NotFixed
        );
        assert_eq!(fault(|a| a.with_st_clear(true)), ParentFault::NotFixed);
        assert_eq!(fault(|a| a.with_no_da(false)), ParentFault::Lockable);
        assert_eq!(fault(|a| a.with_user_with_auth(false)), ParentFault::Locked);
    }

    #[test]
    fn a_parent_of_another_cipher_or_for_signing_is_unfit() {
        let parent = parent_template().unwrap().object_attributes();
        let public = p256(
            parent,
            EccScheme::Null,
            SymmetricDefinitionObject::AES_256_CFB,
        );
        assert_eq!(check_parent(&public.unwrap()), Err(ParentFault::Algorithm));
    }

    #[test]
    fn a_name_survives_the_manifest_and_nothing_else_is_one() {
        let name = Name::of(&parent_template().unwrap()).unwrap();
        let text = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<Name>(&text).unwrap(), name);
        for other in ["\"\"", "\"000b00\"", &text.replace("000b", "000c")] {
            assert!(serde_json::from_str::<Name>(other).is_err(), "{other}");
        }
    }
}
