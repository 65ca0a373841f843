//! Quotes: what the TPM saw the machine boot, signed by the attestation key.

use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{
    Attest, AttestInfo, Data, PcrSelectionList, PcrSlot, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall as _;
use wire::tpm::{PcrSelection, PcrValues};

use crate::connection::Connection;
use crate::engine::Engine;
use crate::error::HsmError;
use crate::response::{During, Operation};
use crate::templates::Key;

/// What [`Hsm::quote`](crate::Hsm::quote) returns; `wire::tpm` checks it without a TPM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QuoteEvidence {
    /// `TPMS_ATTEST` of type quote.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` (ECDSA, SHA-256) of it by the attestation key.
    pub signature: Vec<u8>,
    /// The values that were quoted.
    pub pcrs: PcrValues,
}

impl Engine {
    pub(crate) fn quote(
        &mut self,
        pcrs: PcrSelection,
        qualifying: &[u8; 32],
    ) -> Result<QuoteEvidence, HsmError> {
        let slots = slots(pcrs)?;
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let attestation = connection.load(&keys, Key::Attestation)?;
        for _ in 0..TRIES_MAX {
            let (attest, signature) = connection.quote(attestation, qualifying, &slots)?;
            let AttestInfo::Quote { info } = attest.attested() else {
                return Err(HsmError::Tampered);
            };
            if info.pcr_selection() != &list(&slots)? {
                return Err(HsmError::NoPcrBank);
            }
            let values = connection.pcr_values(&slots)?;
            // Somebody measures while we read: then these are not the values that were quoted.
            if info.pcr_digest().value() == values.digest() {
                return Ok(QuoteEvidence {
                    attest: attest.marshall().during(Operation::Quote)?,
                    signature: signature.marshall().during(Operation::Quote)?,
                    pcrs: values,
                });
            }
        }
        Err(HsmError::Busy)
    }
}

impl Connection {
    fn quote(
        &mut self,
        attestation: tss_esapi::handles::KeyHandle,
        qualifying: &[u8; 32],
        slots: &[PcrSlot],
    ) -> Result<(Attest, Signature), HsmError> {
        let qualifying = Data::try_from(qualifying.as_slice()).during(Operation::Quote)?;
        let list = list(slots)?;
        self.in_session(Operation::Quote, |context| {
            context.quote(attestation, qualifying, SignatureScheme::Null, list)
        })
    }

    /// The present values, which nothing authenticates: the quote does.
    fn pcr_values(&mut self, slots: &[PcrSlot]) -> Result<PcrValues, HsmError> {
        let mut values = Vec::new();
        // A TPM answers with eight at most (TPM 2.0 Part 2, 10.9.7: TPML_DIGEST).
        for slots in slots.chunks(DIGESTS_MAX) {
            let list = list(slots)?;
            let (_, _, digests) =
                self.in_the_open(Operation::Quote, |context| context.pcr_read(list))?;
            if digests.value().len() != slots.len() {
                return Err(HsmError::Tampered);
            }
            for (slot, digest) in slots.iter().zip(digests.value()) {
                let value = <[u8; 32]>::try_from(digest.value()).map_err(|_| HsmError::Tampered)?;
                values.push((number(*slot), value));
            }
        }
        Ok(values.into_iter().collect())
    }
}

fn slots(pcrs: PcrSelection) -> Result<Vec<PcrSlot>, HsmError> {
    let slots = pcrs
        .iter()
        .map(|number| PcrSlot::try_from(1_u32 << number).during(Operation::Quote));
    slots.collect()
}

fn list(slots: &[PcrSlot]) -> Result<PcrSelectionList, HsmError> {
    PcrSelectionList::builder()
        .with_selection(HashingAlgorithm::Sha256, slots)
        .build()
        .during(Operation::Quote)
}

fn number(slot: PcrSlot) -> u8 {
    u8::try_from(u32::from(slot).trailing_zeros()).unwrap_or(u8::MAX)
}

/// Measurements come at boot and with each file that IMA sees; five misses in a row mean a storm.
const TRIES_MAX: u32 = 5;

const DIGESTS_MAX: usize = 8;
