//! Epochs: at most an hour of one lane, sealed to one record key and signed for once
//! (protocol.md 3.1).
//!
//! This file is what gateway and service have in common: the fields of a header, their encoding,
//! and what is derived from it.

use hpke::HpkeError;
use minicbor::Decoder;
use minicbor::data::Type;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::batch::BATCHES_MAX;
use crate::cbor::{self, Encoder, Malformed, Written};
use crate::keys::{Fingerprint, KeyKind};
use crate::ratchet::ChainKey;

/// The name of an epoch: a hash over everything in its header but the signature.
pub type EpochId = [u8; 32];

/// Under which terms an epoch is opened: fields 2 to 8 and 10 of its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochTerms {
    /// The gateway's identity, which signs the header.
    pub gateway: Fingerprint,
    /// The service's identity.
    pub service: Fingerprint,
    /// 0 critical, 1 normal, 2 bulk.
    pub class: u8,
    /// Random, born with the spool file.
    pub chain_id: [u8; 16],
    /// Place in the chain of this lane: 0, 1, 2, ...
    pub index: u64,
    /// Random, born with the process.
    pub run_id: [u8; 16],
    /// The epoch before; none exactly if `index` is 0.
    pub previous: Option<Previous>,
    /// When the epoch was opened.
    pub opened: EpochClock,
}

/// How the epoch before ended. The signature over it makes count and order of its batches provable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Its name.
    pub epoch_id: EpochId,
    /// How many batches it has, up to 65,536.
    pub count: u32,
    /// Its last chain hash; its name if it has no batches.
    pub head: [u8; 32],
    /// Whether it was closed, and not cut off by a crash.
    pub clean: bool,
}

/// What a gateway's clocks said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochClock {
    /// The kernel's boot id.
    pub boot_id: [u8; 16],
    /// `CLOCK_BOOTTIME` in milliseconds.
    pub boottime_ms: u64,
    /// Milliseconds since 1970, as far as the gateway knew.
    pub wall_ms: i64,
    /// How far to trust `wall_ms`: 0 synchronised, 1 unsynchronised, 2 corrected.
    pub clock: u8,
}

impl EpochTerms {
    /// Refuses terms that no gateway can mean.
    pub(crate) fn check(&self) -> Result<(), TermsError> {
        if self.gateway.kind() != KeyKind::GatewayIdentity {
            return Err(TermsError::Gateway);
        }
        if self.service.kind() != KeyKind::ServiceIdentity {
            return Err(TermsError::Service);
        }
        if CLASS_MAX < self.class {
            return Err(TermsError::Class(self.class));
        }
        if CLOCK_MAX < self.opened.clock {
            return Err(TermsError::Clock(self.opened.clock));
        }
        if self.previous.is_some() != (self.index != 0) {
            return Err(TermsError::Previous { index: self.index });
        }
        match self.previous {
            Some(previous) if BATCHES_MAX < previous.count => {
                Err(TermsError::Count(previous.count))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Why terms are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TermsError {
    /// `gateway` is the name of a key of another kind.
    #[error("gateway is not named by its identity")]
    Gateway,

    /// `service` is the name of a key of another kind.
    #[error("service is not named by its identity")]
    Service,

    /// There is no such class.
    #[error("class {0} is not 0 to {CLASS_MAX}")]
    Class(u8),

    /// There is no such clock state.
    #[error("clock state {0} is not 0 to {CLOCK_MAX}")]
    Clock(u8),

    /// A first epoch with one before it, or a later one without.
    #[error("epoch {index} of a chain names an epoch before exactly if it is not epoch 0")]
    Previous {
        /// The index in question.
        index: u64,
    },

    /// More batches than an epoch has.
    #[error("epoch before has {0} batches, the limit is {BATCHES_MAX}")]
    Count(u32),
}

/// Under which external data a header is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderSigner {
    /// By the process that opened the epoch.
    Own,
    /// By a later process, which found the epoch on its disk and did not witness it.
    Adopted,
}

impl HeaderSigner {
    /// The external data of the signature.
    pub(crate) fn aad(self) -> &'static [u8] {
        match self {
            Self::Own => b"gatewayd/1 epoch",
            Self::Adopted => b"gatewayd/1 epoch adopted",
        }
    }
}

/// The payload of a header: the terms, and what HPKE made of them.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) terms: EpochTerms,
    /// The record key to which the epoch is sealed.
    pub(crate) record_key: Fingerprint,
    /// HPKE's encapsulated key.
    pub(crate) enc: [u8; ENC_BYTES],
    /// Binds the header to the one epoch key that was meant, which the AEAD alone does not.
    pub(crate) commit: [u8; 32],
}

impl Payload {
    /// The signed bytes: a map of fields 1 to 12.
    pub(crate) fn encode(&self) -> Vec<u8> {
        cbor::encode(|e| {
            e.map(12)?;
            write_terms(e, &self.terms, &self.record_key)?;
            e.u8(11)?.bytes(&self.enc)?;
            e.u8(12)?.bytes(&self.commit)?.ok()
        })
    }

    /// Reads what [`encode`](Self::encode) wrote, and nothing else.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, PayloadError> {
        let mut decoder = Decoder::new(payload);
        let d = &mut decoder;
        // The version comes before all else: another version may have other fields.
        d.map().map_err(Malformed::from)?;
        cbor::key(d, 1)?;
        let version = d.u64().map_err(Malformed::from)?;
        if version != VERSION {
            return Err(PayloadError::Version(version));
        }
        let (terms, record_key) = read_terms(d)?;
        cbor::key(d, 11)?;
        let enc = cbor::bytes(d)?;
        cbor::key(d, 12)?;
        let commit = cbor::bytes(d)?;
        let decoded = Self {
            terms,
            record_key,
            enc,
            commit,
        };
        decoded.terms.check().map_err(|_| Malformed)?;
        cbor::check(payload, &decoded.encode())?;
        Ok(decoded)
    }
}

/// Why bytes are not the payload of a header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PayloadError {
    Malformed,
    Version(u64),
}

impl From<Malformed> for PayloadError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Names the epoch of an encoded payload.
pub(crate) fn epoch_id(payload: &[u8]) -> EpochId {
    Sha256::new()
        .chain_update(b"gatewayd/1 epoch id\0")
        .chain_update(payload)
        .finalize()
        .into()
}

/// HPKE's `info`: it binds the epoch key to gateway, service, lane and place, so that an `enc` in
/// any other header gives another key.
pub(crate) fn hpke_info(terms: &EpochTerms, record_key: &Fingerprint) -> Vec<u8> {
    let fields = cbor::encode(|e| {
        e.map(10)?;
        write_terms(e, terms, record_key)
    });
    [b"gatewayd/1 epoch\0".as_slice(), &Sha256::digest(fields)].concat()
}

/// What both sides take from an HPKE context, which is then wiped.
pub(crate) struct EpochSecret {
    /// `K[0]`.
    pub(crate) chain_key: ChainKey,
    /// Field 12.
    pub(crate) commit: [u8; 32],
}

impl EpochSecret {
    /// Takes it, through the context's `Export` (RFC 9180, 5.3).
    pub(crate) fn export(
        export: impl Fn(&[u8], &mut [u8]) -> Result<(), HpkeError>,
    ) -> Result<Self, HpkeError> {
        let mut key = Box::new(Zeroizing::new([0; 32]));
        export(b"gatewayd/1 batch chain\0", key.as_mut_slice())?;
        let mut commit = [0; 32];
        export(b"gatewayd/1 commit\0", &mut commit)?;
        Ok(Self {
            chain_key: ChainKey::new(key),
            commit,
        })
    }
}

/// Writes fields 1 to 10.
fn write_terms(e: &mut Encoder<'_>, terms: &EpochTerms, record_key: &Fingerprint) -> Written {
    e.u8(1)?.u64(VERSION)?;
    e.u8(2)?.bytes(terms.gateway.bytes())?;
    e.u8(3)?.bytes(terms.service.bytes())?;
    e.u8(4)?.u8(terms.class)?;
    e.u8(5)?.bytes(&terms.chain_id)?;
    e.u8(6)?.u64(terms.index)?;
    e.u8(7)?.bytes(&terms.run_id)?;
    e.u8(8)?;
    match &terms.previous {
        None => e.null()?,
        Some(previous) => e
            .array(4)?
            .bytes(&previous.epoch_id)?
            .u32(previous.count)?
            .bytes(&previous.head)?
            .bool(previous.clean)?,
    };
    e.u8(9)?.bytes(record_key.bytes())?;
    let EpochClock {
        boot_id,
        boottime_ms,
        wall_ms,
        clock,
    } = terms.opened;
    e.u8(10)?.array(4)?.bytes(&boot_id)?;
    e.u64(boottime_ms)?.i64(wall_ms)?.u8(clock)?.ok()
}

/// Reads fields 2 to 10.
fn read_terms(d: &mut Decoder<'_>) -> Result<(EpochTerms, Fingerprint), Malformed> {
    cbor::key(d, 2)?;
    let gateway = Fingerprint::new(KeyKind::GatewayIdentity, cbor::bytes(d)?);
    cbor::key(d, 3)?;
    let service = Fingerprint::new(KeyKind::ServiceIdentity, cbor::bytes(d)?);
    cbor::key(d, 4)?;
    let class = d.u8()?;
    cbor::key(d, 5)?;
    let chain_id = cbor::bytes(d)?;
    cbor::key(d, 6)?;
    let index = d.u64()?;
    cbor::key(d, 7)?;
    let run_id = cbor::bytes(d)?;
    cbor::key(d, 8)?;
    let previous = read_previous(d)?;
    cbor::key(d, 9)?;
    let record_key = Fingerprint::new(KeyKind::Record, cbor::bytes(d)?);
    cbor::key(d, 10)?;
    cbor::array(d, 4)?;
    let opened = EpochClock {
        boot_id: cbor::bytes(d)?,
        boottime_ms: d.u64()?,
        wall_ms: d.i64()?,
        clock: d.u8()?,
    };
    let terms = EpochTerms {
        gateway,
        service,
        class,
        chain_id,
        index,
        run_id,
        previous,
        opened,
    };
    Ok((terms, record_key))
}

fn read_previous(d: &mut Decoder<'_>) -> Result<Option<Previous>, Malformed> {
    if d.datatype()? == Type::Null {
        d.null()?;
        return Ok(None);
    }
    cbor::array(d, 4)?;
    Ok(Some(Previous {
        epoch_id: cbor::bytes(d)?,
        count: d.u32()?,
        head: cbor::bytes(d)?,
        clean: d.bool()?,
    }))
}

/// Field 1.
const VERSION: u64 = 1;

/// Bulk, the last class.
const CLASS_MAX: u8 = 2;

/// Corrected, the last clock state.
const CLOCK_MAX: u8 = 2;

/// X-Wing: an ML-KEM-768 ciphertext (1088) and an X25519 key (32).
pub(crate) const ENC_BYTES: usize = 1120;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::vector;

    #[test]
    fn a_foreign_payload_is_read_and_written_back() {
        let bytes = vector("header_payload");
        let payload = Payload::decode(&bytes).unwrap();
        assert_eq!(payload.encode(), bytes);
        assert_eq!(epoch_id(&bytes), *vector("epoch_id"));
        assert_eq!(
            hpke_info(&payload.terms, &payload.record_key),
            vector("hpke_info")
        );
    }

    #[test]
    fn every_term_counts_for_the_epoch_key() {
        let edits: [fn(&mut Payload); 17] = [
            |p| p.terms.gateway = Fingerprint::new(KeyKind::GatewayIdentity, [1; 32]),
            |p| p.terms.service = Fingerprint::new(KeyKind::ServiceIdentity, [1; 32]),
            |p| p.terms.class = 2,
            |p| p.terms.chain_id[0] ^= 1,
            |p| p.terms.index += 1,
            |p| p.terms.run_id[0] ^= 1,
            |p| p.terms.previous = None,
            |p| p.terms.previous.as_mut().unwrap().epoch_id[0] ^= 1,
            |p| p.terms.previous.as_mut().unwrap().count -= 1,
            |p| p.terms.previous.as_mut().unwrap().head[0] ^= 1,
            |p| p.terms.previous.as_mut().unwrap().clean = true,
            |p| p.record_key = Fingerprint::new(KeyKind::Record, [1; 32]),
            |p| p.terms.opened.boot_id[0] ^= 1,
            |p| p.terms.opened.boottime_ms += 1,
            |p| p.terms.opened.wall_ms += 1,
            |p| p.terms.opened.clock = 0,
            |p| p.terms.opened.clock = 2,
        ];
        for (i, edit) in edits.into_iter().enumerate() {
            let mut payload = Payload::decode(&vector("header_payload")).unwrap();
            edit(&mut payload);
            assert_ne!(
                hpke_info(&payload.terms, &payload.record_key),
                vector("hpke_info"),
                "edit {i}"
            );
            assert_ne!(epoch_id(&payload.encode()), *vector("epoch_id"));
        }
    }

    #[test]
    fn another_encoding_of_the_same_payload_is_refused() {
        let good = vector("header_payload");
        let class = 73..75;
        assert_eq!(good[class.clone()], [4, 1]);
        let replaced = |range: std::ops::Range<usize>, by: &[u8]| {
            [&good[..range.start], by, &good[range.end..]].concat()
        };
        for (other, why) in [
            (replaced(class.clone(), &[4, 0x18, 1]), "long integer"),
            (replaced(class.clone(), &[0x18, 4, 1]), "long key"),
            (replaced(class.clone(), &[4, 3]), "unknown class"),
            (replaced(class, &[3, 1]), "doubled key"),
            (replaced(0..1, &[0xAD]), "too many entries"),
            (replaced(0..1, &[0xBF]), "map of unknown length"),
            (replaced(0..3, &[0xAC, 1, 0x18, 1]), "long version"),
            ([&*good, &[0]].concat(), "trailing byte"),
            ([&*good, &[0; 2048]].concat(), "too long"),
            (good[..good.len() - 1].to_vec(), "cut"),
        ] {
            assert_eq!(
                Payload::decode(&other).err(),
                Some(PayloadError::Malformed),
                "{why}"
            );
        }
    }

    #[test]
    fn the_largest_numbers_survive() {
        let mut payload = Payload::decode(&vector("header_payload")).unwrap();
        payload.terms.index = u64::MAX;
        payload.terms.opened.boottime_ms = u64::MAX;
        payload.terms.opened.wall_ms = i64::MIN;
        let bytes = payload.encode();
        assert_eq!(Payload::decode(&bytes).unwrap().encode(), bytes);
    }
}
