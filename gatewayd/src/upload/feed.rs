//! The sending half: which messages go next.

use std::collections::HashSet;

use channel::{Header, SealedBatch};
use spool::{Loss, StoredBatch, StoredHeader};
use wire::{
    Class,
    batch::{LossReason, LostBatches},
    upload::ToService,
};

use super::{EpochId, Lag, Upload, flight::Sent};
use crate::uplink::Failure;

/// Where the sending half stands in each lane.
pub(super) struct Feed<'a> {
    upload: &'a Upload<'a>,
    cursors: Vec<Cursor>,
    /// Epochs whose headers this session has shown.
    shown: HashSet<EpochId>,
}

#[derive(Clone, Copy)]
struct Cursor {
    class: Class,
    after: Option<(EpochId, u32)>,
}

/// What a look at a lane found.
enum Look {
    /// These messages, in order.
    Send(Vec<Vec<u8>>),
    /// Something that must not be sent was left out: look again.
    Again,
    /// Nothing that may be sent now.
    Nothing,
    /// A batch that the window has no room for.
    NoRoom,
}

impl<'a> Feed<'a> {
    pub(super) fn new(upload: &'a Upload<'a>) -> Self {
        let cursor = |&class: &Class| Cursor { class, after: None };
        Self {
            upload,
            cursors: Class::ALL.iter().map(cursor).collect(),
            shown: HashSet::new(),
        }
    }

    /// Tells a service that lags behind what was forgotten here that it will not come again: its
    /// database was restored, or its acks outlived its commits.
    pub(super) async fn admit(&mut self, lag: Lag) -> Result<Vec<Vec<u8>>, Failure> {
        let header = self.upload.spool.header(lag.epoch_id).await?;
        let Some(StoredHeader::Signed(header)) = header else {
            return Ok(Vec::new());
        };
        self.shown.insert(lag.epoch_id);
        self.upload
            .lock()
            .extend(lag.class, lag.epoch_id, lag.count);
        Ok(vec![
            ToService::Header(header).encode(),
            self.below(lag.epoch_id, lag.count),
        ])
    }

    /// The next messages, critical before normal before bulk; `None` when there is nothing to
    /// send, or no room in the window.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>, Failure> {
        for place in 0..self.cursors.len() {
            loop {
                match self.look(place).await? {
                    Look::Send(messages) => return Ok(Some(messages)),
                    Look::Again => {}
                    Look::Nothing => break,
                    // What is less urgent does not slip past.
                    Look::NoRoom => return Ok(None),
                }
            }
        }
        Ok(None)
    }

    async fn look(&mut self, place: usize) -> Result<Look, Failure> {
        let upload = self.upload;
        let Some(Cursor { class, after }) = self.cursors.get(place).copied() else {
            return Ok(Look::Nothing);
        };
        if !upload.lock().has_room(1) {
            return Ok(Look::NoRoom);
        }
        let found = upload.spool.read(upload.lane(class), after, 1).await?;
        let Some(batch) = found.into_iter().next() else {
            return Ok(Look::Nothing);
        };
        let mut messages = Vec::new();
        if !self.shown.contains(&batch.epoch_id) {
            let Some(StoredHeader::Signed(header)) = upload.spool.header(batch.epoch_id).await?
            else {
                // Not signed yet, or evicted this moment: the spool tells when that changes.
                return Ok(Look::Nothing);
            };
            if !matches!(Header::gateway_of(&header), Ok(gateway) if gateway == upload.gateway) {
                tracing::warn!(%class, "an epoch of an earlier identity is set aside");
                upload.spool.set_aside(batch.epoch_id).await?;
                return Ok(Look::Again);
            }
            messages.push(ToService::Header(header).encode());
        }
        let intact = is_intact(&batch);
        if !intact {
            self.note_damage(class, &batch).await?;
        } else if !upload.lock().has_room(batch.bytes.len()) {
            return Ok(Look::NoRoom);
        }
        self.shown.insert(batch.epoch_id);
        if let Some(cursor) = self.cursors.get_mut(place) {
            cursor.after = Some((batch.epoch_id, batch.number));
        }
        messages.extend(self.depart(class, batch, intact));
        Ok(Look::Send(messages))
    }

    /// Enters a batch into the flight; what is missing before it, or the batch itself if it is
    /// damaged, is declared gone.
    fn depart(&self, class: Class, batch: StoredBatch, intact: bool) -> Vec<Vec<u8>> {
        let upload = self.upload;
        let next = batch.number.saturating_add(1);
        let sent_ms = upload.clock.now().boottime_ms;
        let mut flight = upload.lock();
        let reach = flight.extend(class, batch.epoch_id, next);
        if !intact {
            return vec![self.below(batch.epoch_id, next)];
        }
        flight.depart(Sent {
            epoch_id: batch.epoch_id,
            number: batch.number,
            bytes: batch.bytes.len(),
            sent_ms,
        });
        drop(flight);
        upload.note_flight();
        let mut messages = Vec::new();
        if reach < batch.number {
            messages.push(self.below(batch.epoch_id, batch.number));
        }
        messages.push(ToService::Batch(batch.bytes).encode());
        messages
    }

    fn below(&self, epoch_id: EpochId, from: u32) -> Vec<u8> {
        let chain_id = self.upload.spool.chain_id();
        let below = ToService::Below {
            chain_id,
            epoch_id,
            from,
        };
        below.encode()
    }

    /// Puts a batch that the disk has damaged into the ledger, once.
    async fn note_damage(&self, class: Class, batch: &StoredBatch) -> Result<(), Failure> {
        let name = (batch.epoch_id, batch.number);
        if self.upload.memory().damaged.contains(&name) {
            return Ok(());
        }
        tracing::error!(%class, number = name.1, "a batch is damaged on the disk");
        let now_ms = self.upload.clock.now().wall_ms;
        let loss = Loss {
            lane: self.upload.lane(class),
            reason: LossReason::Damaged,
            // How many readings it held, only the spool's own rows say.
            tallies: Vec::new(),
            from_ms: 0,
            until_ms: now_ms,
            batches: vec![LostBatches {
                epoch_id: name.0,
                first: name.1,
                last: name.1,
            }],
        };
        self.upload.spool.record_loss(loss).await?;
        self.upload.memory().damaged.insert(name);
        Ok(())
    }
}

/// Whether a batch is what was appended.
pub(crate) fn is_intact(batch: &StoredBatch) -> bool {
    SealedBatch::decode(&batch.bytes).is_ok_and(|sealed| {
        sealed.epoch_id == batch.epoch_id
            && sealed.number == batch.number
            && sealed.chain() == batch.chain
    })
}
