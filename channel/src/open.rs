//! The seal, on the service: headers are verified, batches opened (protocol.md 3.4).
//!
//! What needs memory of other epochs stays with the caller: known epochs and batches, forks, gaps,
//! and the state of the gateway in the registry.

use hpke::aead::ExportOnlyAead;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::{Deserializable as _, Kem, OpModeR};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::batch::{BATCHES_MAX, SealedBatch};
use crate::cbor::Malformed;
use crate::cose::Signed;
use crate::epoch::{
    EpochId, EpochSecret, EpochTerms, HeaderSigner, Payload, PayloadError, epoch_id, hpke_info,
};
use crate::keys::{Fingerprint, KeyKind, PublicKey, RecordKey, SignatureError};
use crate::ratchet::ChainKey;
use crate::stack;

/// A header whose signature was verified.
#[derive(Debug)]
pub struct Header {
    epoch_id: EpochId,
    payload: Payload,
    signer: HeaderSigner,
}

impl Header {
    /// Which gateway a header says it is of, to look up the identity for
    /// [`verify`](Self::verify). Nothing is verified yet.
    ///
    /// # Errors
    ///
    /// [`OpenError::Malformed`] or [`OpenError::Version`].
    pub fn gateway_of(bytes: &[u8]) -> Result<[u8; 32], OpenError> {
        let signed = Signed::decode(bytes)?;
        Ok(*Payload::decode(signed.payload)?.terms.gateway.bytes())
    }

    /// Takes a header that claims to be of `identity`, for the service named `service`.
    ///
    /// # Errors
    ///
    /// [`OpenError::Malformed`], [`OpenError::Version`], [`OpenError::OtherService`],
    /// [`OpenError::OtherGateway`] or [`OpenError::Signature`].
    pub fn verify(
        bytes: &[u8],
        identity: &PublicKey,
        service: &Fingerprint,
    ) -> Result<Self, OpenError> {
        let signed = Signed::decode(bytes)?;
        let payload = Payload::decode(signed.payload)?;
        if payload.terms.service != *service {
            return Err(OpenError::OtherService);
        }
        if payload.terms.gateway != Fingerprint::of(KeyKind::GatewayIdentity, identity.as_bytes()) {
            return Err(OpenError::OtherGateway);
        }
        let signer = match signed.verify(HeaderSigner::Own.aad(), identity) {
            Ok(()) => HeaderSigner::Own,
            Err(_) => {
                signed.verify(HeaderSigner::Adopted.aad(), identity)?;
                HeaderSigner::Adopted
            }
        };
        Ok(Self {
            epoch_id: epoch_id(signed.payload),
            payload,
            signer,
        })
    }

    /// Which epoch it opens.
    #[must_use]
    pub fn epoch_id(&self) -> EpochId {
        self.epoch_id
    }

    /// Under which terms.
    #[must_use]
    pub fn terms(&self) -> &EpochTerms {
        &self.payload.terms
    }

    /// Which record key opens it.
    #[must_use]
    pub fn record_key(&self) -> Fingerprint {
        self.payload.record_key
    }

    /// Whether it was signed by a later process, which found the epoch on its disk.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.signer == HeaderSigner::Adopted
    }
}

/// Opens the batches of one epoch, in any order.
///
/// Keeps each ratchet key it has passed (about 50 bytes a batch), so all batches together cost no
/// more than 65,536 steps.
pub struct EpochOpener {
    id: EpochId,
    /// `K[0]`, `K[1]`, ...; never empty.
    keys: Vec<ChainKey>,
}

impl EpochOpener {
    /// Recovers the epoch key.
    ///
    /// # Errors
    ///
    /// [`OpenError::OtherRecordKey`] if the header names another record key;
    /// [`OpenError::Commitment`] if the key is not the one this header was made with.
    pub fn new(header: &Header, record_key: &RecordKey) -> Result<Self, OpenError> {
        let Payload {
            terms,
            record_key: wanted,
            enc,
            commit,
        } = &header.payload;
        if *wanted != record_key.fingerprint() {
            return Err(OpenError::OtherRecordKey);
        }
        let secret = <XWing as Kem>::EncappedKey::from_bytes(enc)
            .and_then(|enc| {
                hpke::setup_receiver::<ExportOnlyAead, HkdfSha256, XWing>(
                    &OpModeR::Base,
                    record_key.inner(),
                    &enc,
                    &hpke_info(terms, wanted),
                )
            })
            .and_then(|context| EpochSecret::export(|label, out| context.export(label, out)))
            .map_err(|_| OpenError::Commitment)?;
        if !bool::from(secret.commit.ct_eq(commit)) {
            return Err(OpenError::Commitment);
        }
        Ok(Self {
            id: header.epoch_id,
            keys: vec![secret.chain_key],
        })
    }

    /// Opens a batch. Whether its `prev` is the chain hash of its neighbour is for the caller to
    /// compare, who has the neighbour.
    ///
    /// # Errors
    ///
    /// [`OpenError::OtherEpoch`], or [`OpenError::Altered`] if this is not a batch that was sealed
    /// under this epoch, number and `prev`.
    pub fn open(&mut self, batch: &SealedBatch) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        if batch.epoch_id != self.id {
            return Err(OpenError::OtherEpoch);
        }
        if BATCHES_MAX <= batch.number {
            return Err(OpenError::Altered);
        }
        let number = usize::try_from(batch.number).map_err(|_| OpenError::Altered)?;
        while let Some(last) = self.keys.last()
            && self.keys.len() <= number
        {
            self.keys.push(last.next());
        }
        let key = self.keys.get(number).ok_or(OpenError::Altered)?;
        stack::wiped::<{ stack::SEALING }, _>(|| batch.open(&key.batch_key()))
            .ok_or(OpenError::Altered)
    }
}

/// Why a header or batch is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a header in deterministic CBOR.
    #[error("header is malformed")]
    Malformed,

    /// A header of a version that is not known here.
    #[error("header has version {0}, which is not known")]
    Version(u64),

    /// A header for another service.
    #[error("header is for another service")]
    OtherService,

    /// A header that names another gateway than the one it is checked against.
    #[error("header is of another gateway")]
    OtherGateway,

    /// The gateway did not sign this.
    #[error("header is not signed by its gateway")]
    Signature(#[from] SignatureError),

    /// The epoch is sealed to another record key.
    #[error("epoch is sealed to another record key")]
    OtherRecordKey,

    /// The encapsulated key was not made with this header.
    #[error("epoch key does not match its header")]
    Commitment,

    /// The batch is of another epoch.
    #[error("batch is of another epoch")]
    OtherEpoch,

    /// Damaged, forged, or out of its place.
    #[error("batch does not open")]
    Altered,
}

impl From<Malformed> for OpenError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<PayloadError> for OpenError {
    fn from(error: PayloadError) -> Self {
        match error {
            PayloadError::Malformed => Self::Malformed,
            PayloadError::Version(version) => Self::Version(version),
        }
    }
}
