//! From a verified header and a sealed batch to committed rows: the same for a session and for a
//! file that was carried by hand.

use anyhow::Context;
use channel::{EpochId, EpochOpener, Header, OpenError, SealedBatch};
use sha2::{Digest, Sha256};
use wire::{Class, WireError, batch::Batch};

use crate::{
    keys::ServiceKeys,
    registry::GatewayRecord,
    sink::{
        Alarm, EpochRecord, OpenedBatch, Stored,
        sqlite::{SinkError, SqliteSink, count},
    },
};

/// Takes the batches of one gateway.
pub(crate) struct Intake<'a> {
    pub(crate) gateway: &'a GatewayRecord,
    pub(crate) keys: &'a ServiceKeys,
    pub(crate) sink: &'a SqliteSink,
}

/// What became of a batch.
pub(crate) enum Taken {
    /// It is committed, now or before; everything below `next` is.
    Committed { stored: Stored, next: u32 },
    /// It is not what was sealed.
    Altered(OpenError),
    /// Authentic, but nothing we can store: a newer gateway, or a bug.
    NotUnderstood(NotUnderstood),
}

/// Why an authentic batch cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotUnderstood {
    #[error(transparent)]
    Content(#[from] WireError),
    #[error(transparent)]
    Sink(SinkError),
}

impl Intake<'_> {
    /// The key to an epoch's batches.
    pub(crate) fn opener(&self, header: &Header) -> anyhow::Result<EpochOpener> {
        let wanted = header.record_key();
        let mut records = self.keys.records.iter();
        let key = records
            .find(|key| key.fingerprint() == wanted)
            .with_context(|| format!("no record key {}", wanted.short()))?;
        Ok(EpochOpener::new(header, key)?)
    }

    /// Stores a header, and logs what it says that somebody must look at.
    pub(crate) fn store_epoch(
        &self,
        header: &Header,
        class: Class,
        bytes: Vec<u8>,
    ) -> Result<(), SinkError> {
        let terms = header.terms();
        let epoch_id = header.epoch_id();
        let record = EpochRecord {
            gateway: self.gateway.fingerprint,
            epoch_id,
            class,
            chain_id: terms.chain_id,
            index: terms.index,
            run_id: terms.run_id,
            adopted: header.adopted(),
            previous: terms
                .previous
                .as_ref()
                .map(|previous| (previous.epoch_id, previous.count, previous.head)),
            header: bytes,
        };
        let alarms = self.sink.store_epoch(&record)?;
        alarms.iter().for_each(|alarm| self.alarm(&epoch_id, alarm));
        Ok(())
    }

    /// Opens a batch and stores what is in it.
    pub(crate) fn take(
        &self,
        opener: &mut EpochOpener,
        sealed: &SealedBatch,
        bytes: &[u8],
    ) -> Result<Taken, SinkError> {
        let plaintext = match opener.open(sealed) {
            Ok(plaintext) => plaintext,
            Err(error) => return Ok(Taken::Altered(error)),
        };
        let content = match Batch::decode(&plaintext) {
            Ok(content) => content,
            Err(error) => return Ok(Taken::NotUnderstood(error.into())),
        };
        let opened = OpenedBatch {
            epoch_id: sealed.epoch_id,
            number: sealed.number,
            prev: sealed.prev,
            chain: sealed.chain(),
            ciphertext: Sha256::digest(&sealed.ciphertext).into(),
            sealed: bytes,
            gateway_name: &self.gateway.name,
            content: &content,
        };
        let (stored, next, alarm) = match self.sink.store_batch(&opened) {
            Err(error @ SinkError::TooLarge) => {
                return Ok(Taken::NotUnderstood(NotUnderstood::Sink(error)));
            }
            done => done?,
        };
        if stored == Stored::Conflict {
            tracing::error!(
                gateway = self.gateway.name,
                number = sealed.number,
                "two different batches under one number: the epoch's key is in other hands"
            );
        }
        if let Some(alarm) = alarm {
            self.alarm(&sealed.epoch_id, &alarm);
        }
        Ok(Taken::Committed { stored, next })
    }

    fn alarm(&self, epoch_id: &EpochId, alarm: &Alarm) {
        let epoch = data_encoding::HEXLOWER.encode(epoch_id);
        let gateway = &self.gateway.name;
        match alarm {
            Alarm::Fork => tracing::error!(
                gateway,
                epoch,
                "two epochs at one place of the chain: rolled-back disk, cloned process or abused TPM"
            ),
            Alarm::WrongHead => {
                tracing::error!(
                    gateway,
                    epoch,
                    "what was received is not what the next header says of an epoch's end"
                );
            }
            Alarm::Jump => {
                tracing::error!(gateway, epoch, "the epoch before is not known here");
            }
            Alarm::Gap { missing } => {
                tracing::warn!(
                    gateway,
                    epoch,
                    batches = count(missing),
                    "batches of the epoch before are missing"
                );
            }
            Alarm::BrokenChain => {
                tracing::error!(gateway, epoch, "a batch does not fit its neighbours");
            }
        }
    }
}
