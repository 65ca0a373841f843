//! The endorsement key, by which the vendor vouches for the TPM, and what it opens.

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, ek};
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, DigestList, EncryptedSecret, IdObject, Nonce, Public as TpmtPublic,
};
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::engine::{Engine, area};
use crate::error::HsmError;
use crate::response::{During, Operation};
use crate::templates::{Key, Name};

/// Which endorsement key: a TPM derives each from the same seed, so each is the same every time.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EndorsementKind {
    /// ECC P-256, the TCG's template L-2.
    P256,
    /// ECC P-384, the TCG's template H-3.
    P384,
    /// RSA with 2,048 bits, the TCG's template L-1. Real chips take seconds to make it.
    Rsa2048,
}

/// An endorsement key, and who vouches for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endorsement {
    /// Which one.
    pub kind: EndorsementKind,
    /// `TPMT_PUBLIC`.
    pub public: Vec<u8>,
    /// Certificates (DER) that the vendor left in the TPM: the key's, then those that lead to the
    /// vendor's root. Empty if there are none.
    pub certificates: Vec<Vec<u8>>,
}

impl EndorsementKind {
    /// In the order in which one is chosen: what the TPM makes fastest comes first.
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    fn algorithm(self) -> AsymmetricAlgorithmSelection {
        match self {
            Self::P256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            Self::P384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
            Self::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
        }
    }

    /// NV index of its certificate (TCG EK Credential Profile 2.5, 2.2.1.4 and 2.2.1.5).
    fn certificate(self) -> u32 {
        match self {
            Self::P256 => 0x01C0_000A,
            Self::P384 => 0x01C0_0016,
            Self::Rsa2048 => 0x01C0_0002,
        }
    }

    /// The hash of its Name and policy.
    fn hash(self) -> HashingAlgorithm {
        match self {
            Self::P256 | Self::Rsa2048 => HashingAlgorithm::Sha256,
            Self::P384 => HashingAlgorithm::Sha384,
        }
    }
}

impl Engine {
    pub(crate) fn endorsement(
        &mut self,
        kind: Option<EndorsementKind>,
    ) -> Result<Endorsement, HsmError> {
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        connection.rest()?;
        let kind = match kind {
            Some(kind) => kind,
            None => connection.certified_kind()?,
        };
        let (handle, public) = connection.make_endorsement(kind)?;
        connection.flush(handle)?;
        Ok(Endorsement {
            kind,
            public: area(&public)?,
            certificates: connection.endorsement_certificates(kind)?,
        })
    }

    pub(crate) fn activate(
        &mut self,
        kind: EndorsementKind,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let credential = IdObject::try_from(credential).during(Operation::Activate)?;
        let secret = EncryptedSecret::try_from(secret).during(Operation::Activate)?;
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let attestation = connection.load(&keys, Key::Attestation)?;
        let (endorsement, _) = connection.make_endorsement(kind)?;
        let policy = connection.endorsement_policy(kind)?;
        let opened = connection.in_session_and(Operation::Activate, policy, |context| {
            context.activate_credential(attestation, endorsement, credential, secret)
        })?;
        connection.end(policy)?;
        connection.flush(endorsement)?;
        Ok(Zeroizing::new(opened.value().to_vec()))
    }
}

impl Connection {
    /// Makes the endorsement key; the caller flushes it.
    ///
    /// It is made anew rather than taken from a persistent handle, where anybody could have put a
    /// key.
    fn make_endorsement(
        &mut self,
        kind: EndorsementKind,
    ) -> Result<(KeyHandle, TpmtPublic), HsmError> {
        let template = ek::create_ek_public_from_default_template_2(kind.algorithm(), None)
            .during(Operation::Endorsement)?;
        let made = self.in_session(Operation::Endorsement, |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })?;
        Ok((made.key_handle, made.out_public))
    }

    /// Name of the P-256 endorsement key.
    pub(crate) fn endorsement_name(&mut self) -> Result<Name, HsmError> {
        let (handle, public) = self.make_endorsement(EndorsementKind::P256)?;
        self.flush(handle)?;
        Name::of(&public)
    }

    /// As [`endorsement_name`](Self::endorsement_name), where there is no root key to salt a session
    /// to: whoever is on the bus may answer instead of the TPM. For advice only.
    pub(crate) fn endorsement_name_in_the_open(&mut self) -> Result<Name, HsmError> {
        let template =
            ek::create_ek_public_from_default_template_2(EndorsementKind::P256.algorithm(), None)
                .during(Operation::Endorsement)?;
        let made = self.with_empty_password(Operation::Endorsement, |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })?;
        self.flush(made.key_handle)?;
        Name::of(&made.out_public)
    }

    /// The first kind that has a certificate; P-256 if none has.
    fn certified_kind(&mut self) -> Result<EndorsementKind, HsmError> {
        for kind in EndorsementKind::ALL {
            let index = kind.certificate();
            if self
                .handles(index, 1)?
                .iter()
                .any(|found| u32::from(*found) == index)
            {
                return Ok(kind);
            }
        }
        Ok(EndorsementKind::P256)
    }

    /// A session that satisfies the policy of the endorsement key's template: whoever knows the
    /// password of the endorsement hierarchy. The caller ends it.
    ///
    /// Template H-3 would take the key's own, empty password too; but its keys count towards
    /// lockout, and a power cut after such a use counts as a wrong password.
    fn endorsement_policy(&mut self, kind: EndorsementKind) -> Result<AuthSession, HsmError> {
        let session = self.salted(SessionType::Policy, kind.hash())?;
        let policy = PolicySession::try_from(session).during(Operation::Endorsement)?;
        self.in_session(Operation::Endorsement, |context| {
            context.policy_secret(
                policy,
                AuthHandle::Endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        })?;
        if kind == EndorsementKind::P384 {
            let mut branches = DigestList::new();
            for branch in [POLICY_A_SHA384, POLICY_C_SHA384] {
                let branch = Digest::try_from(branch.as_slice()).during(Operation::Endorsement)?;
                branches.add(branch).during(Operation::Endorsement)?;
            }
            self.in_the_open(Operation::Endorsement, |context| {
                context.policy_or(policy, branches)
            })?;
        }
        Ok(session)
    }

    /// Reads the certificates the vendor left: the endorsement key's, then its issuers'.
    fn endorsement_certificates(
        &mut self,
        kind: EndorsementKind,
    ) -> Result<Vec<Vec<u8>>, HsmError> {
        let leaf = kind.certificate();
        let mut certificates = Vec::new();
        for (first, last) in [(leaf, leaf), (ISSUERS_FIRST, ISSUERS_LAST)] {
            // Issuers' certificates may run on from one index to the next.
            let mut stored = Vec::new();
            for handle in self.handles(first, INDICES_MAX)? {
                let TpmHandle::NvIndex(index) = handle else {
                    continue;
                };
                if (first..=last).contains(&u32::from(handle)) {
                    stored.extend(self.read_index(index)?);
                }
            }
            certificates.extend(der_values(&stored));
        }
        Ok(certificates)
    }

    /// Reads a whole NV index that needs no password.
    fn read_index(&mut self, index: NvIndexTpmHandle) -> Result<Vec<u8>, HsmError> {
        let mut object = self.in_the_open(Operation::Endorsement, |context| {
            context.tr_from_tpm_public(TpmHandle::NvIndex(index))
        })?;
        let handle = NvIndexHandle::from(object);
        let (public, _) = self.in_the_open(Operation::Endorsement, |context| {
            context.nv_read_public(handle)
        })?;
        let attributes = public.attributes();
        let mut content = Vec::new();
        // Nothing is asked that needs a password: with ours it would count as a wrong one.
        if !(attributes.written() && attributes.auth_read() && attributes.no_da()) {
            return Ok(content);
        }
        // The library authorizes by the Name that comes with the answer, so this may be another index:
        // a certificate proves itself.
        while let Some(left) = public.data_size().checked_sub(content.len())
            && 0 < left
        {
            let size = u16::try_from(left).unwrap_or(u16::MAX).min(READ_BYTES);
            let Ok(offset) = u16::try_from(content.len()) else {
                break;
            };
            let part = self.in_session(Operation::Endorsement, |context| {
                context.nv_read(NvAuth::NvIndex(handle), handle, size, offset)
            })?;
            if part.is_empty() {
                break;
            }
            content.extend_from_slice(&part);
        }
        self.in_the_open(Operation::Endorsement, |context| {
            context.tr_close(&mut object)
        })?;
        Ok(content)
    }
}

/// Cuts the whole DER values out of the front of `bytes`; padding of any kind ends them.
fn der_values(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    // SEQUENCE with a length of two bytes: no certificate is shorter than 256 bytes, and none
    // that an index holds is longer than 65,535.
    while let [0x30, 0x82, high, low, ..] = *bytes {
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        let Some((value, rest)) = bytes.split_at_checked(length) else {
            break;
        };
        values.push(value.to_vec());
        bytes = rest;
    }
    values
}

/// Certificates that lead to the vendor's root (TCG EK Credential Profile 2.5, 2.2.1.5.2).
const ISSUERS_FIRST: u32 = 0x01C0_0100;
const ISSUERS_LAST: u32 = 0x01C0_01FF;

/// PolicyA with SHA-384: PolicySecret of the endorsement hierarchy (TCG EK Credential Profile 2.5,
/// B.6.2).
const POLICY_A_SHA384: [u8; 48] = [
    0x8b, 0xbf, 0x22, 0x66, 0x53, 0x7c, 0x17, 0x1c, 0xb5, 0x6e, 0x40, 0x3c, 0x4d, 0xc1, 0xd4, 0xb6,
    0x4f, 0x43, 0x26, 0x11, 0xdc, 0x38, 0x6e, 0x6f, 0x53, 0x20, 0x50, 0xc3, 0x27, 0x8c, 0x93, 0x0e,
    0x14, 0x3e, 0x8b, 0xb1, 0x13, 0x38, 0x24, 0xcc, 0xb4, 0x31, 0x05, 0x38, 0x71, 0xc6, 0xdb, 0x53,
];

/// PolicyC with SHA-384: PolicyAuthorizeNV of index 0x01C07F02 (as above, B.6.4). It is the branch
/// not taken; the TPM wants to see both.
const POLICY_C_SHA384: [u8; 48] = [
    0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef,
    0x2b, 0x6a, 0x16, 0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5,
    0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6, 0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
];

/// Indices looked at from each start: chains have three or four certificates.
const INDICES_MAX: u32 = 16;

/// What every TPM reads at once (the PC Client profile asks for at least 512 bytes).
const READ_BYTES: u16 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_cut_out_of_their_padding() {
        let value = |length: u16, fill| {
            let [high, low] = length.to_be_bytes();
            [vec![0x30, 0x82, high, low], vec![fill; length.into()]].concat()
        };
        let (first, second) = (value(300, 1), value(700, 2));
        let cut = |parts: &[&[u8]]| der_values(&parts.concat());

        for rest in [&[0xFF; 40][..], &[0; 3], &second[..600], &[]] {
            assert_eq!(cut(&[&first, rest]), [&first[..]]);
            assert_eq!(cut(&[&first, &second, rest]), [&first[..], &second]);
        }
        assert!(cut(&[&[0; 12]]).is_empty());
    }
}
