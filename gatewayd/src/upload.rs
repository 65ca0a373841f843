//! The gateway's side of stream `upload` (protocol.md 4).

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use link::Messages;
use spool::{Lane, Spool, StoredBatch, StoredHeader};
use tokio::sync::Notify;
use wire::{
    Class,
    upload::{LaneKnown, LaneOffer, ProblemCode, ToGateway, ToService},
};

use crate::{
    clock::Clock,
    service::{LinkState, Service},
    uplink::Failure,
};

type EpochId = [u8; 32];

/// One upload over one session.
///
/// Two halves run side by side, so that this end always reads while it writes: one sends batches
/// while the window has room, one takes acks and makes room.
pub(crate) struct Upload<'a> {
    service: &'a Service,
    spool: &'a Spool,
    clock: &'a Clock,
    key: [u8; 32],
    flight: Mutex<Flight>,
    room: Notify,
}

/// What was sent and is not acknowledged.
#[derive(Default)]
struct Flight {
    window_bytes: usize,
    bytes: usize,
    batches: Vec<Sent>,
    /// By epoch: its lane, and one more than the highest number sent or known to the service.
    epochs: HashMap<EpochId, (Class, u32)>,
}

struct Sent {
    epoch_id: EpochId,
    number: u32,
    bytes: usize,
}

/// Where the sending half stands in one lane.
struct Cursor {
    class: Class,
    after: Option<(EpochId, u32)>,
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        service: &'a Service,
        spool: &'a Spool,
        clock: &'a Clock,
        key: [u8; 32],
    ) -> Self {
        Self {
            service,
            spool,
            clock,
            key,
            flight: Mutex::default(),
            room: Notify::new(),
        }
    }

    /// Greets, learns what the service has, and uploads until the stream ends.
    pub(crate) async fn run(&self, mut messages: Messages) -> Result<(), Failure> {
        let hello = ToService::Hello(self.offers().await?);
        messages.send(&hello.encode()).await?;
        let Some(bytes) = messages.recv().await? else {
            return Ok(());
        };
        let ToGateway::Welcome { window, lanes } = decode(&bytes)? else {
            return Err(protocol("the service did not say welcome"));
        };
        self.lock().window_bytes = usize::try_from(window)
            .unwrap_or(WINDOW_MAX)
            .clamp(WINDOW_MIN, WINDOW_MAX);
        for lane in lanes {
            self.welcome(lane).await?;
        }

        let (mut sender, mut receiver) = messages.split();
        let sending = async {
            let cursor = |&class: &Class| Cursor { class, after: None };
            let mut cursors: Vec<_> = Class::ALL.iter().map(cursor).collect();
            let mut headers = HashSet::new();
            let mut changed = self.spool.changed();
            loop {
                while let Some((class, batch)) = self.next(&mut cursors, &headers).await? {
                    for message in self.announce(class, &batch, &mut headers).await? {
                        sender.send(&message).await?;
                    }
                    let message = ToService::Batch(batch.bytes).encode();
                    sender.send(&message).await?;
                }
                tokio::select! {
                    () = self.room.notified() => {}
                    alive = changed.changed() => {
                        alive.map_err(|error| Failure::Local(error.into()))?;
                    }
                }
            }
        };
        let receiving = async {
            while let Some(bytes) = receiver.recv().await? {
                self.take(decode(&bytes)?).await?;
            }
            Ok(())
        };
        tokio::select! {
            end = sending => end,
            end = receiving => end,
        }
    }

    async fn offers(&self) -> Result<Vec<LaneOffer>, Failure> {
        let mut offers = Vec::new();
        for &class in Class::ALL {
            let lane = self.spool.lane(self.lane(class)).await?;
            offers.push(LaneOffer {
                class,
                chain_id: self.spool.chain_id(),
                oldest: lane.oldest,
            });
        }
        Ok(offers)
    }

    /// Forgets what the service has committed, as the welcome tells.
    async fn welcome(&self, known: LaneKnown) -> Result<(), Failure> {
        if known.chain_id != self.spool.chain_id() {
            return Ok(());
        }
        let lane = self.lane(known.class);
        let newest = self.spool.lane(lane).await?.newest;
        let rolled_back = newest.is_none_or(|newest| {
            newest.index < known.index
                || (newest.index == known.index && newest.epoch_id != known.epoch_id)
        });
        if rolled_back {
            tracing::error!(
                service = self.service.name,
                class = %known.class,
                "the service knows a newer epoch than this spool: was it rolled back to an old copy?"
            );
        }
        self.lock()
            .epochs
            .insert(known.epoch_id, (known.class, known.next));
        self.forget(known.class, known.epoch_id, known.next).await
    }

    /// The next batch to send, critical before normal before bulk; `None` when there is none, its
    /// header is not signed yet, or the window is full.
    async fn next(
        &self,
        cursors: &mut [Cursor],
        headers: &HashSet<EpochId>,
    ) -> Result<Option<(Class, StoredBatch)>, Failure> {
        {
            let flight = self.lock();
            if 0 < flight.bytes && flight.window_bytes <= flight.bytes {
                return Ok(None);
            }
        }
        for cursor in cursors {
            let lane = self.lane(cursor.class);
            let found = self.spool.read(lane, cursor.after, 1).await?;
            let Some(batch) = found.into_iter().next() else {
                continue;
            };
            let announced = headers.contains(&batch.epoch_id);
            if !announced && !self.is_signed(batch.epoch_id).await? {
                continue;
            }
            cursor.after = Some((batch.epoch_id, batch.number));
            return Ok(Some((cursor.class, batch)));
        }
        Ok(None)
    }

    async fn is_signed(&self, epoch_id: EpochId) -> Result<bool, Failure> {
        let header = self.spool.header(epoch_id).await?;
        Ok(matches!(header, Some(StoredHeader::Signed(_))))
    }

    /// What must be said before a batch: its epoch's header, and that what is missing before it
    /// is gone. Enters the batch into the flight.
    async fn announce(
        &self,
        class: Class,
        batch: &StoredBatch,
        headers: &mut HashSet<EpochId>,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let mut messages = Vec::new();
        if headers.insert(batch.epoch_id)
            && let Some(StoredHeader::Signed(header)) = self.spool.header(batch.epoch_id).await?
        {
            messages.push(ToService::Header(header).encode());
        }
        let mut flight = self.lock();
        let (_, next) = flight.epochs.entry(batch.epoch_id).or_insert((class, 0));
        if *next < batch.number {
            let below = ToService::Below {
                chain_id: self.spool.chain_id(),
                epoch_id: batch.epoch_id,
                from: batch.number,
            };
            messages.push(below.encode());
        }
        *next = (*next).max(batch.number.saturating_add(1));
        flight.bytes += batch.bytes.len();
        flight.batches.push(Sent {
            epoch_id: batch.epoch_id,
            number: batch.number,
            bytes: batch.bytes.len(),
        });
        drop(flight);
        let now = self.clock.now().boottime_ms;
        self.service.note_link(|note| {
            let since = *note.unacked_since_ms.get_or_insert(now);
            if UNACKED_MAX_MS < now.saturating_sub(since) {
                note.state = LinkState::Draining;
            }
        });
        Ok(messages)
    }

    async fn take(&self, message: ToGateway) -> Result<(), Failure> {
        match message {
            ToGateway::Ack { epoch_id, next } => {
                let known = self.lock().epochs.get(&epoch_id).copied();
                let Some((class, sent)) = known else {
                    tracing::warn!(service = self.service.name, "ack for an unknown epoch");
                    return Ok(());
                };
                if sent < next {
                    return Err(protocol("an ack passes what was sent"));
                }
                self.forget(class, epoch_id, next).await
            }
            ToGateway::Problem {
                epoch_id,
                number,
                code,
            } => self.problem(epoch_id, number, code).await,
            ToGateway::Welcome { .. } => Err(protocol("a second welcome")),
        }
    }

    async fn problem(
        &self,
        epoch_id: EpochId,
        number: Option<u32>,
        code: ProblemCode,
    ) -> Result<(), Failure> {
        let service = &self.service.name;
        tracing::error!(service, number, %code, "the service cannot take an epoch or batch");
        match code {
            ProblemCode::Unopenable | ProblemCode::NotYours | ProblemCode::TooLarge => {
                self.spool.set_aside(epoch_id).await?;
            }
            // Kept; offered again in the next session.
            ProblemCode::Altered | ProblemCode::Later => {}
        }
        self.land(|sent| sent.epoch_id == epoch_id && number.is_none_or(|n| n == sent.number));
        Ok(())
    }

    /// Only here does the spool forget: the service has committed everything below `next`.
    async fn forget(&self, class: Class, epoch_id: EpochId, next: u32) -> Result<(), Failure> {
        let acked = self.spool.ack(self.lane(class), epoch_id, next).await?;
        let left = self.land(|sent| sent.epoch_id == epoch_id && sent.number < next);
        let now = self.clock.now().boottime_ms;
        self.service.note_link(|note| {
            note.last_ack_ms = Some(now);
            note.acked_readings += acked.readings;
            note.unacked_since_ms = (0 < left).then_some(now);
            note.state = LinkState::Connected;
        });
        Ok(())
    }

    /// Takes batches out of the flight and returns how many are left in it.
    fn land(&self, landed: impl Fn(&Sent) -> bool) -> usize {
        let mut flight = self.lock();
        flight.batches.retain(|sent| !landed(sent));
        flight.bytes = flight.batches.iter().map(|sent| sent.bytes).sum();
        let left = flight.batches.len();
        drop(flight);
        self.room.notify_one();
        left
    }

    fn lane(&self, class: Class) -> Lane {
        Lane {
            service: self.key,
            class,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(bytes: &[u8]) -> Result<ToGateway, Failure> {
    ToGateway::decode(bytes).map_err(|error| Failure::Protocol(error.to_string()))
}

fn protocol(what: &str) -> Failure {
    Failure::Protocol(what.to_owned())
}

/// protocol.md 4: the bounds of the window.
const WINDOW_MIN: usize = 64 * 1024;
const WINDOW_MAX: usize = 8 * 1024 * 1024;

/// ux.md 1: connected means that nothing waits for an ack longer than this.
const UNACKED_MAX_MS: u64 = 60_000;
