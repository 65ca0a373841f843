//! Quotes: what the TPM saw the machine boot, signed by the attestation key.

use sha2::{Digest as _, Sha256};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{
    Attest, AttestInfo, Data, PcrSelectionList, PcrSlot, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall as _;

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
    /// The values that were quoted (SHA-256 bank), by rising number.
    pub pcrs: Vec<(u8, [u8; 32])>,
}

impl Engine {
    pub(crate) fn quote(
        &mut self,
        pcrs: &[u8],
        qualifying: &[u8; 32],
    ) -> Result<QuoteEvidence, HsmError> {
        let selected = Selected::new(pcrs)?;
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let attestation = connection.load(&keys, Key::Attestation)?;
        for _ in 0..TRIES_MAX {
            let (attest, signature) = connection.quote(attestation, qualifying, &selected)?;
            let AttestInfo::Quote { info } = attest.attested() else {
                return Err(HsmError::Tampered);
            };
            let values = connection.pcr_values(&selected)?;
            // Somebody measures while we read: then these are not the values that were quoted.
            if info.pcr_digest().value() == digest(&values).as_slice() {
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
        selected: &Selected,
    ) -> Result<(Attest, Signature), HsmError> {
        let qualifying = Data::try_from(qualifying.as_slice()).during(Operation::Quote)?;
        let list = selected.list(&selected.slots)?;
        self.in_session(Operation::Quote, |context| {
            context.quote(attestation, qualifying, SignatureScheme::Null, list)
        })
    }

    /// The present values, which nothing authenticates: the quote does.
    pub(crate) fn pcr_values(
        &mut self,
        selected: &Selected,
    ) -> Result<Vec<(u8, [u8; 32])>, HsmError> {
        let mut values = Vec::new();
        // A TPM answers with eight at most (TPM 2.0 Part 2, 10.9.7: TPML_DIGEST).
        for slots in selected.slots.chunks(DIGESTS_MAX) {
            let list = selected.list(slots)?;
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
        Ok(values)
    }
}

/// PCRs of the SHA-256 bank, by rising number.
pub(crate) struct Selected {
    slots: Vec<PcrSlot>,
}

impl Selected {
    /// Takes the numbers of PCRs, 0 to 23, in any order.
    pub(crate) fn new(pcrs: &[u8]) -> Result<Self, HsmError> {
        let mut numbers = pcrs.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        let slots = numbers.into_iter().map(|number| {
            let bit = 1_u32.checked_shl(number.into()).unwrap_or(0);
            PcrSlot::try_from(bit).during(Operation::Quote)
        });
        Ok(Self {
            slots: slots.collect::<Result<_, _>>()?,
        })
    }

    fn list(&self, slots: &[PcrSlot]) -> Result<PcrSelectionList, HsmError> {
        PcrSelectionList::builder()
            .with_selection(HashingAlgorithm::Sha256, slots)
            .build()
            .during(Operation::Quote)
    }
}

fn number(slot: PcrSlot) -> u8 {
    u8::try_from(u32::from(slot).trailing_zeros()).unwrap_or(u8::MAX)
}

/// What a quote signs of the values: their hash, by rising number (TPM 2.0 Part 3, 18.4).
fn digest(values: &[(u8, [u8; 32])]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (_, value) in values {
        hash.update(value);
    }
    hash.finalize().into()
}

/// Measurements come at boot and with each file that IMA sees; five misses in a row mean a storm.
const TRIES_MAX: u32 = 5;

const DIGESTS_MAX: usize = 8;
