//! The endorsement key, by which the vendor vouches for the TPM, and what it opens.

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, ek};
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::PolicySession;
use tss_esapi::structures::{Digest, EncryptedSecret, IdObject, Nonce, Public as TpmtPublic};
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::error::HsmError;
use crate::response::{During, Operation};

impl Connection {
    /// Makes the endorsement key by template L-2; the caller flushes it.
    ///
    /// The TPM derives it from a seed that the vendor put in, so it is the same each time. It is
    /// made anew rather than taken from a persistent handle, where anybody could have put a key.
    pub(crate) fn make_endorsement(&mut self) -> Result<(KeyHandle, TpmtPublic), HsmError> {
        let template = ek::create_ek_public_from_default_template_2(
            AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            None,
        )
        .during(Operation::Endorsement)?;
        let made = self.in_session(Operation::Endorsement, |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })?;
        Ok((made.key_handle, made.out_public))
    }

    /// Opens a credential with the endorsement key and the attestation key.
    pub(crate) fn activate(
        &mut self,
        attestation: KeyHandle,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let credential = IdObject::try_from(credential).during(Operation::Activate)?;
        let secret = EncryptedSecret::try_from(secret).during(Operation::Activate)?;
        let (endorsement, _) = self.make_endorsement()?;

        // The template's policy: whoever knows the password of the endorsement hierarchy.
        let policy = self.policy_session()?;
        let policy_session = PolicySession::try_from(policy).during(Operation::Endorsement)?;
        self.in_session(Operation::Endorsement, |context| {
            context.policy_secret(
                policy_session,
                AuthHandle::Endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        })?;
        let opened = self.in_session_and(Operation::Activate, policy, |context| {
            context.activate_credential(attestation, endorsement, credential, secret)
        })?;
        self.end(policy)?;
        self.flush(endorsement)?;
        Ok(Zeroizing::new(opened.value().to_vec()))
    }

    /// Reads the certificates the vendor left: the endorsement key's, then its issuers'.
    pub(crate) fn endorsement_certificates(&mut self) -> Result<Vec<Vec<u8>>, HsmError> {
        let mut certificates = Vec::new();
        for (first, last) in [(LEAF, LEAF), (ISSUERS_FIRST, ISSUERS_LAST)] {
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
        let mut content = Vec::new();
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

/// Certificate of the P-256 key of template L-2 (TCG EK Credential Profile 2.5, 2.2.1.4).
const LEAF: u32 = 0x01C0_000A;

/// Certificates that lead to the vendor's root (TCG EK Credential Profile 2.5, 2.2.1.5.2).
const ISSUERS_FIRST: u32 = 0x01C0_0100;
const ISSUERS_LAST: u32 = 0x01C0_01FF;

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
