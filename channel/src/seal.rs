//! The seal, on the gateway: epochs are opened, batches sealed, headers signed (protocol.md 3).
//!
//! Sealing needs no TPM. The header may wait unsigned until there is one, in this process or in a
//! later one.

use hpke::aead::ExportOnlyAead;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::{HpkeError, OpModeS, Serializable as _};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use crate::batch::{BATCH_PLAINTEXT_BYTES_MAX, BATCHES_MAX, CIPHERTEXT_BYTES_MAX, SealedBatch};
use crate::cose;
use crate::epoch::{
    ENC_BYTES, EpochId, EpochSecret, EpochTerms, HeaderSigner, Payload, TermsError, epoch_id,
    hpke_info,
};
use crate::keys::RecordPublicKey;
use crate::ratchet::ChainKey;
use crate::stack;

/// An open epoch: its key, which is nowhere else, and how far it got.
///
/// The key moves on with each batch and cannot move back, so whoever takes it opens no batch
/// already sealed. It is never written: dropping the epoch ends it.
pub struct Epoch {
    id: EpochId,
    /// `K[count]`; none once the cipher has refused.
    key: Option<ChainKey>,
    count: u32,
    head: [u8; 32],
    bytes: usize,
}

impl Epoch {
    /// Opens an epoch to the service's record key, with a fresh encapsulation.
    ///
    /// # Errors
    ///
    /// [`SealError::Terms`] or [`SealError::Encapsulation`].
    pub fn open(
        terms: EpochTerms,
        record_key: &RecordPublicKey,
        mut rng: &mut dyn CryptoRng,
    ) -> Result<(Self, UnsignedHeader), SealError> {
        terms.check()?;
        let record_key_name = record_key.fingerprint();
        let (enc, secret) = stack::wiped::<{ stack::ENCAPSULATION }, _>(|| {
            let (enc, context) = hpke::setup_sender_with_rng::<ExportOnlyAead, HkdfSha256, XWing>(
                &OpModeS::Base,
                record_key.inner(),
                &hpke_info(&terms, &record_key_name),
                &mut rng,
            )?;
            let secret = EpochSecret::export(|label, out| context.export(label, out))?;
            Ok((enc, secret))
        })
        .map_err(SealError::Encapsulation)?;
        let enc: [u8; ENC_BYTES] = enc.to_bytes().into();

        let header = UnsignedHeader::new(Payload {
            terms,
            record_key: record_key_name,
            enc,
            commit: secret.commit,
        });
        let epoch = Self {
            id: header.epoch_id,
            key: Some(secret.chain_key),
            count: 0,
            head: header.epoch_id,
            bytes: 0,
        };
        Ok((epoch, header))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> EpochId {
        self.id
    }

    /// How many batches it has.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The chain hash of its last batch; its name if it has none.
    #[must_use]
    pub fn head(&self) -> [u8; 32] {
        self.head
    }

    /// Whether a new epoch must be opened before the next batch: after 65,536 batches, or when a
    /// batch of the greatest size might bring this one above 256 MiB.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.key.is_none()
            || BATCHES_MAX <= self.count
            || EPOCH_BYTES_MAX - CIPHERTEXT_BYTES_MAX < self.bytes
    }

    /// Seals the next batch.
    ///
    /// The number is spent when this is called, and its key is gone when it returns. If the batch
    /// cannot be kept, that loss is recorded; its readings may be sealed again only under another
    /// number.
    ///
    /// # Errors
    ///
    /// [`SealError::TooLarge`] and [`SealError::Full`] spend nothing. After [`SealError::Cipher`]
    /// the epoch is full.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<SealedBatch, SealError> {
        if BATCH_PLAINTEXT_BYTES_MAX < plaintext.len() {
            return Err(SealError::TooLarge {
                bytes: plaintext.len(),
            });
        }
        if self.is_full() {
            return Err(SealError::Full);
        }
        // Spent until proven otherwise: only success puts a key back, and it is the next one.
        let key = self.key.take().ok_or(SealError::Full)?;
        let place = (self.id, self.count, self.head);
        let (batch, next) = stack::wiped::<{ stack::SEALING }, _>(|| {
            let batch = SealedBatch::seal(place, &key.batch_key(), plaintext)?;
            let next = key.next();
            drop(key);
            Some((batch, next))
        })
        .ok_or(SealError::Cipher)?;
        self.key = Some(next);
        self.count += 1;
        self.head = batch.chain();
        self.bytes += batch.ciphertext.len();
        Ok(batch)
    }
}

/// A header that waits for its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedHeader {
    epoch_id: EpochId,
    terms: EpochTerms,
    payload: Vec<u8>,
}

impl UnsignedHeader {
    fn new(payload: Payload) -> Self {
        let bytes = payload.encode();
        Self {
            epoch_id: epoch_id(&bytes),
            terms: payload.terms,
            payload: bytes,
        }
    }

    /// Takes a header from the disk.
    ///
    /// # Errors
    ///
    /// [`SealError::HeaderDamaged`] if [`payload`](Self::payload) did not make these bytes.
    pub fn from_payload(payload: &[u8]) -> Result<Self, SealError> {
        let decoded = Payload::decode(payload).map_err(|_| SealError::HeaderDamaged)?;
        Ok(Self::new(decoded))
    }

    /// Which epoch it opens.
    #[must_use]
    pub fn epoch_id(&self) -> EpochId {
        self.epoch_id
    }

    /// What the epoch was opened under.
    #[must_use]
    pub fn terms(&self) -> &EpochTerms {
        &self.terms
    }

    /// The bytes for the disk.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the gateway's identity is to sign. A process that did not open the epoch itself signs
    /// as [`HeaderSigner::Adopted`] only.
    #[must_use]
    pub fn digest(&self, signer: HeaderSigner) -> [u8; 32] {
        Sha256::digest(cose::to_be_signed(&self.payload, signer.aad())).into()
    }

    /// The header as it is kept and sent, with a low-s signature over [`digest`](Self::digest).
    #[must_use]
    pub fn finish(&self, signature: [u8; 64]) -> Vec<u8> {
        cose::assemble(&self.payload, &signature)
    }
}

/// Why the gateway could not seal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The caller asked for an epoch that cannot be.
    #[error("epoch cannot be opened under these terms")]
    Terms(#[from] TermsError),

    /// HPKE refused.
    #[error("epoch key could not be made")]
    Encapsulation(#[source] HpkeError),

    /// The caller offered more than fits a batch.
    #[error("batch has {bytes} bytes, the limit is {BATCH_PLAINTEXT_BYTES_MAX}")]
    TooLarge {
        /// Length of the refused plaintext.
        bytes: usize,
    },

    /// The epoch takes no more batches: open the next.
    #[error("epoch is full")]
    Full,

    /// The cipher refused, so the epoch is over.
    #[error("batch could not be encrypted")]
    Cipher,

    /// What came from the disk is no header.
    #[error("stored header is damaged")]
    HeaderDamaged,
}

/// 256 MiB of ciphertext: what one record key and one signature stand for.
const EPOCH_BYTES_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ListedRng, vector};

    /// The gateway is seized while it runs: what it still holds opens nothing it has sealed.
    #[test]
    fn an_open_epoch_opens_no_batch_already_sealed() {
        let mut epoch = epoch();
        let sealed: Vec<_> = (0..4_u8).map(|i| epoch.seal(&[i]).unwrap()).collect();

        let mut key = epoch.key.take().unwrap();
        for _ in 0..8 {
            for batch in &sealed {
                assert!(batch.open(&key.batch_key()).is_none());
            }
            key = key.next();
        }
    }

    #[test]
    fn an_epoch_whose_cipher_refused_is_over() {
        let mut epoch = epoch();
        epoch.seal(b"one").unwrap();
        let head = epoch.head();
        // What `seal` leaves behind when it returns `Cipher`.
        epoch.key = None;

        assert!(epoch.is_full());
        assert!(matches!(epoch.seal(b"two"), Err(SealError::Full)));
        assert_eq!((epoch.count(), epoch.head()), (1, head));
    }

    /// Checked with its counter set, since 256 MiB take half a minute without optimisation.
    #[test]
    fn an_epoch_never_exceeds_256_mib() {
        let mut epoch = epoch();
        let batch = epoch.seal(b"payload").unwrap();
        assert_eq!(epoch.bytes, batch.ciphertext.len());

        epoch.bytes = 255 * 1024 * 1024;
        assert!(!epoch.is_full());
        let largest = epoch.seal(&vec![0; BATCH_PLAINTEXT_BYTES_MAX]).unwrap();
        assert_eq!(largest.ciphertext.len(), 1024 * 1024);
        assert_eq!(epoch.bytes, 256 * 1024 * 1024);
        assert!(epoch.is_full());

        epoch.bytes = 255 * 1024 * 1024 + 1;
        assert!(epoch.is_full());
        assert!(matches!(epoch.seal(b""), Err(SealError::Full)));
    }

    fn epoch() -> Epoch {
        let terms = Payload::decode(&vector("header_payload")).unwrap().terms;
        let record_key = RecordPublicKey::from_bytes(&vector("xwing_public")).unwrap();
        let mut rng = ListedRng(vector("xwing_randomness"));
        Epoch::open(terms, &record_key, &mut rng).unwrap().0
    }
}
