//! Batches: readings sealed together, each chained to the one before (protocol.md 3.2).

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use minicbor::Decoder;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::cbor::{self, Malformed};
use crate::epoch::EpochId;
use crate::ratchet::BatchKey;

/// A sealed batch, as it is kept and sent. Named by epoch and number, and never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBatch {
    /// Its epoch.
    pub epoch_id: EpochId,
    /// Its place in the epoch, from 0 and below [`BATCHES_MAX`].
    pub number: u32,
    /// The chain hash of the batch before; the epoch id for batch 0.
    pub prev: [u8; 32],
    /// ChaCha20-Poly1305, the tag at the end.
    pub ciphertext: Vec<u8>,
}

impl SealedBatch {
    /// Its place in the chain, `C[number]`: a hash over this batch and all before it.
    #[must_use]
    pub fn chain(&self) -> [u8; 32] {
        Sha256::new()
            .chain_update(b"gatewayd/1 chain\0")
            .chain_update(self.prev)
            .chain_update(u64::from(self.number).to_be_bytes())
            .chain_update(Sha256::digest(&self.ciphertext))
            .finalize()
            .into()
    }

    /// The batch as it is kept and sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(|e| {
            e.array(4)?.bytes(&self.epoch_id)?.u32(self.number)?;
            e.bytes(&self.prev)?.bytes(&self.ciphertext)?.ok()
        })
    }

    /// Takes a batch from disk or wire. Whether it is genuine,
    /// [`EpochOpener::open`](crate::EpochOpener::open) says.
    ///
    /// # Errors
    ///
    /// [`BatchFormatError`] if [`encode`](Self::encode) cannot have made these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchFormatError> {
        let mut decoder = Decoder::new(bytes);
        let d = &mut decoder;
        let batch = Self::read(d)?;
        if CIPHERTEXT_BYTES_MAX < batch.ciphertext.len() {
            return Err(BatchFormatError::TooLarge {
                bytes: batch.ciphertext.len(),
            });
        }
        let whole = TAG_BYTES <= batch.ciphertext.len() && batch.number < BATCHES_MAX;
        cbor::demand(whole)?;
        cbor::check(bytes, &batch.encode())?;
        Ok(batch)
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        cbor::array(d, 4)?;
        Ok(Self {
            epoch_id: cbor::bytes(d)?,
            number: d.u32()?,
            prev: cbor::bytes(d)?,
            ciphertext: d.bytes()?.to_vec(),
        })
    }

    /// Seals `plaintext` as batch `number` behind `prev`; `None` if the cipher refuses.
    pub(crate) fn seal(
        (epoch_id, number, prev): (EpochId, u32, [u8; 32]),
        key: &BatchKey,
        plaintext: &[u8],
    ) -> Option<Self> {
        // With room for the tag, so that the plaintext is not copied once more.
        let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + TAG_BYTES));
        buffer.extend_from_slice(plaintext);
        let mut batch = Self {
            epoch_id,
            number,
            prev,
            ciphertext: Vec::new(),
        };
        ChaCha20Poly1305::new(key.as_bytes().into())
            .encrypt_in_place(&batch.nonce(), &batch.aad(), &mut *buffer)
            .ok()?;
        batch.ciphertext = std::mem::take(&mut *buffer);
        Some(batch)
    }

    /// Opens the batch; `None` if it is not what was sealed under `key`.
    pub(crate) fn open(&self, key: &BatchKey) -> Option<Zeroizing<Vec<u8>>> {
        let mut buffer = Zeroizing::new(self.ciphertext.clone());
        ChaCha20Poly1305::new(key.as_bytes().into())
            .decrypt_in_place(&self.nonce(), &self.aad(), &mut *buffer)
            .ok()?;
        Some(buffer)
    }

    /// `00000000 ‖ u64 number`. The key is another for each number as well.
    fn nonce(&self) -> Nonce {
        let [a, b, c, d, e, f, g, h] = u64::from(self.number).to_be_bytes();
        [0, 0, 0, 0, a, b, c, d, e, f, g, h].into()
    }

    fn aad(&self) -> Vec<u8> {
        [
            b"gatewayd/1 batch\0".as_slice(),
            &self.epoch_id,
            &u64::from(self.number).to_be_bytes(),
            &self.prev,
        ]
        .concat()
    }
}

/// Why bytes are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchFormatError {
    /// Not a batch in deterministic CBOR.
    #[error("batch is malformed")]
    Malformed,

    /// More than a batch carries.
    #[error("batch has {bytes} bytes of ciphertext, the limit is {CIPHERTEXT_BYTES_MAX}")]
    TooLarge {
        /// Length of the ciphertext.
        bytes: usize,
    },
}

impl From<Malformed> for BatchFormatError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Most batches of an epoch: what bounds the work of a service that is handed the last one first.
pub const BATCHES_MAX: u32 = 65_536;

/// Most bytes that one batch seals.
pub const BATCH_PLAINTEXT_BYTES_MAX: usize = CIPHERTEXT_BYTES_MAX - TAG_BYTES;

/// 1 MiB: a window of the upload stream holds one.
pub(crate) const CIPHERTEXT_BYTES_MAX: usize = 1024 * 1024;

/// RFC 8439, 2.8: Poly1305 makes 128 bits.
const TAG_BYTES: usize = 16;
