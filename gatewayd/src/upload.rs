//! The gateway's side of stream `upload` (protocol.md 4).

mod feed;
mod flight;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use link::Messages;
use spool::{Lane, Spool};
use tokio::sync::Notify;
use wire::{
    Class,
    upload::{LaneKnown, LaneOffer, ProblemCode, ToGateway, ToService},
};

pub(crate) use self::feed::is_intact;
use self::{feed::Feed, flight::Flight};
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
    /// The service's key.
    key: [u8; 32],
    /// Whose epochs may go: this session's gateway.
    gateway: [u8; 32],
    memory: &'a Mutex<Memory>,
    flight: Mutex<Flight>,
    room: Notify,
}

/// What must outlive a session. It grows with damage only.
#[derive(Default)]
pub(crate) struct Memory {
    /// What the service has called altered once.
    altered: HashSet<(EpochId, Option<u32>)>,
    /// Damaged batches that are in the ledger.
    damaged: HashSet<(EpochId, u32)>,
}

/// An epoch of which the service knows less than was already forgotten here.
struct Lag {
    class: Class,
    epoch_id: EpochId,
    count: u32,
}

/// Who speaks to whom.
pub(crate) struct Ends {
    /// Fingerprint of the service's identity.
    pub(crate) service: [u8; 32],
    /// Fingerprint of the gateway's.
    pub(crate) gateway: [u8; 32],
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        service: &'a Service,
        spool: &'a Spool,
        clock: &'a Clock,
        ends: &Ends,
        memory: &'a Mutex<Memory>,
    ) -> Self {
        Self {
            service,
            spool,
            clock,
            key: ends.service,
            gateway: ends.gateway,
            memory,
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
        let window = usize::try_from(window).unwrap_or(WINDOW_MAX);
        self.lock()
            .open_window(window.clamp(WINDOW_MIN, WINDOW_MAX));
        self.service.note_link(|note| {
            note.state = LinkState::Connected;
            note.problem = None;
            note.advice = None;
        });
        let mut lags = Vec::new();
        for lane in lanes {
            lags.extend(self.welcome(lane).await?);
        }

        let (mut sender, mut receiver) = messages.split();
        let sending = async {
            let mut feed = Feed::new(self);
            for lag in lags {
                for message in feed.admit(lag).await? {
                    sender.send(&message).await?;
                }
            }
            let mut changed = self.spool.changed();
            loop {
                while let Some(messages) = feed.next().await? {
                    for message in messages {
                        sender.send(&message).await?;
                    }
                }
                // Both remember what happened since the last look: a permit, a version.
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
        // Whichever ends first ends the upload; neither is polled again.
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

    /// Forgets what the service has committed, as the welcome tells; returns what it lacks that
    /// was forgotten before.
    async fn welcome(&self, known: LaneKnown) -> Result<Option<Lag>, Failure> {
        if known.chain_id != self.spool.chain_id() {
            return Ok(None);
        }
        let state = self.spool.lane(self.lane(known.class)).await?;
        let own = state
            .newest
            .as_ref()
            .filter(|newest| newest.epoch_id == known.epoch_id);
        let count = own.map(|newest| newest.count);
        let index = state.newest.as_ref().map(|newest| newest.index);
        if count.is_some_and(|count| count < known.next)
            || (own.is_none() && index.is_none_or(|index| index <= known.index))
        {
            self.note_rolled_back(known.class);
        }
        self.lock().extend(known.class, known.epoch_id, known.next);
        self.forget(known.class, known.epoch_id, known.next).await?;
        let lag = count.filter(|count| state.oldest.is_none() && known.next < *count);
        Ok(lag.map(|count| Lag {
            class: known.class,
            epoch_id: known.epoch_id,
            count,
        }))
    }

    fn note_rolled_back(&self, class: Class) {
        tracing::error!(
            service = self.service.name,
            %class,
            "the service knows more of this spool's chain than the spool does: an old copy?"
        );
        self.service.note_link(|note| {
            note.problem = Some("the spool is an old copy of itself".to_owned());
            note.advice = Some("find out who put it back; readings may be missing".to_owned());
        });
    }

    async fn take(&self, message: ToGateway) -> Result<(), Failure> {
        match message {
            ToGateway::Ack { epoch_id, next } => {
                let known = self.lock().reach(&epoch_id);
                let Some((class, reach)) = known else {
                    tracing::warn!(service = self.service.name, "ack for an unknown epoch");
                    return Ok(());
                };
                if reach < next {
                    if self.spool.exported(epoch_id).await? < next {
                        return Err(protocol("an ack passes what was sent"));
                    }
                    // Nothing below need be declared gone.
                    self.lock().extend(class, epoch_id, next);
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

    /// What the service cannot take must not hold up the rest of the lane.
    async fn problem(
        &self,
        epoch_id: EpochId,
        number: Option<u32>,
        code: ProblemCode,
    ) -> Result<(), Failure> {
        let service = &self.service.name;
        if self.lock().reach(&epoch_id).is_none() {
            tracing::warn!(service, %code, "a problem with an unknown epoch");
            return Ok(());
        }
        let first = match code {
            ProblemCode::Unopenable | ProblemCode::NotYours | ProblemCode::TooLarge => false,
            // It was intact when it was read: sent once more, in a new session.
            ProblemCode::Altered => self.memory().altered.insert((epoch_id, number)),
            ProblemCode::Later => return Err(Failure::Later),
        };
        if first {
            return Err(protocol("the service calls a batch altered"));
        }
        tracing::error!(service, number, %code, "the service cannot take an epoch: it is set aside");
        self.spool.set_aside(epoch_id).await?;
        self.land(|sent| sent.epoch_id == epoch_id);
        Ok(())
    }

    /// Only here does the spool forget: the service has committed everything below `next`.
    async fn forget(&self, class: Class, epoch_id: EpochId, next: u32) -> Result<(), Failure> {
        let acked = self.spool.ack(self.lane(class), epoch_id, next).await?;
        let now = self.clock.now().boottime_ms;
        self.service.note_link(|note| {
            note.last_ack_ms = Some(now);
            note.acked_readings += acked.readings;
        });
        self.land(|sent| sent.epoch_id == epoch_id && sent.number < next);
        Ok(())
    }

    /// Takes batches out of the flight; there may be room for others.
    fn land(&self, landed: impl Fn(&flight::Sent) -> bool) {
        self.lock().land(landed);
        self.note_flight();
        self.room.notify_one();
    }

    /// Writes down since when something waits for an ack.
    fn note_flight(&self) {
        let oldest_ms = self.lock().oldest_ms();
        self.service
            .note_link(|note| note.unacked_since_ms = oldest_ms);
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

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
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
