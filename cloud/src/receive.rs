//! The service's side of stream `upload` (protocol.md 3.4 and 4): opens batches, stores them, and
//! acknowledges what is committed.

pub(crate) mod intake;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use channel::{EpochId, EpochOpener, Header, SealedBatch};
use link::{LinkError, Messages, Sender};
use tokio::task::block_in_place;
use wire::{
    Class,
    upload::{LaneOffer, ProblemCode, ToGateway, ToService},
};

use self::intake::{Intake, Taken};
use crate::{
    keys::ServiceKeys,
    registry::{GatewayRecord, Registry},
    sink::sqlite::{SinkError, SqliteSink},
};

/// Receives from one gateway over one session.
pub struct Receiver {
    gateway: GatewayRecord,
    keys: Arc<ServiceKeys>,
    sink: Arc<SqliteSink>,
    registry: Arc<Registry>,
    /// Lanes that this session's hello announced.
    lanes: Vec<Lane>,
    /// Epochs whose headers this session has shown; the one used last is the last.
    epochs: Vec<ShownEpoch>,
    /// When the registry last heard of an ack.
    noted: Option<Instant>,
}

/// Class and chain.
type Lane = (Class, [u8; 16]);

struct ShownEpoch {
    id: EpochId,
    lane: Lane,
    /// `None` if we have no key to it: its batches are on their way before the gateway knows.
    opener: Option<EpochOpener>,
}

/// Why an upload ended.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The gateway broke the rules: its session is closed.
    #[error("the gateway broke the rules: {0}")]
    Peer(String),
    /// The link ended.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Our own database or keys: nothing was acknowledged that is not committed.
    #[error("cannot store")]
    Local(#[source] anyhow::Error),
}

impl Receiver {
    /// A receiver for a gateway that has proved its key.
    #[must_use]
    pub fn new(
        gateway: GatewayRecord,
        keys: Arc<ServiceKeys>,
        sink: Arc<SqliteSink>,
        registry: Arc<Registry>,
    ) -> Self {
        Self {
            gateway,
            keys,
            sink,
            registry,
            lanes: Vec::new(),
            epochs: Vec::new(),
            noted: None,
        }
    }

    /// Receives until the gateway ends the stream.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`]. What was acknowledged is committed in any case.
    pub async fn run(mut self, messages: Messages) -> Result<(), ReceiveError> {
        let (mut sender, mut receiver) = messages.split();
        let Some(first) = receiver.recv().await? else {
            return Ok(());
        };
        let ToService::Hello(offers) = decode(&first)? else {
            return Err(ReceiveError::Peer("it did not say hello".into()));
        };
        let welcome = self.welcome(&offers)?;
        sender.send(&welcome.encode()).await?;
        while let Some(bytes) = receiver.recv().await? {
            self.take(decode(&bytes)?, &mut sender).await?;
        }
        Ok(())
    }

    fn welcome(&mut self, offers: &[LaneOffer]) -> Result<ToGateway, ReceiveError> {
        if LANES_MAX < offers.len() {
            return Err(ReceiveError::Peer(format!("{} lanes", offers.len())));
        }
        let mut lanes = Vec::new();
        for offer in offers {
            self.lanes.push((offer.class, offer.chain_id));
            let known = block_in_place(|| {
                let gateway = &self.gateway.fingerprint;
                self.sink.announce(gateway, &offer.chain_id)?;
                self.sink.lane(gateway, offer.class, &offer.chain_id)
            });
            lanes.extend(known.map_err(local)?);
        }
        Ok(ToGateway::Welcome {
            window: WINDOW_BYTES,
            lanes,
        })
    }

    async fn take(&mut self, message: ToService, sender: &mut Sender) -> Result<(), ReceiveError> {
        let answer = match message {
            ToService::Hello(_) => return Err(ReceiveError::Peer("a second hello".into())),
            ToService::Header(bytes) => self.header(bytes)?,
            ToService::Batch(bytes) => Some(self.batch(&bytes)?),
            ToService::Below { epoch_id, from, .. } => Some(self.below(epoch_id, from)?),
        };
        if let Some(answer) = answer {
            sender.send(&answer.encode()).await?;
        }
        Ok(())
    }

    /// Verifies a header and opens its epoch; answers only if that cannot be.
    fn header(&mut self, bytes: Vec<u8>) -> Result<Option<ToGateway>, ReceiveError> {
        let service = self.keys.statement.fingerprint();
        let header = Header::verify(&bytes, &self.gateway.identity, &service)
            .map_err(|error| ReceiveError::Peer(error.to_string()))?;
        let terms = header.terms();
        let class = Class::try_from(terms.class)
            .map_err(|_| ReceiveError::Peer("a header of an unknown class".into()))?;
        let lane = (class, terms.chain_id);
        if !self.lanes.contains(&lane) {
            return Err(ReceiveError::Peer(
                "a header of a chain that its hello did not announce".into(),
            ));
        }
        let epoch_id = header.epoch_id();
        if let Some(shown) = self.shown(&epoch_id) {
            let unopenable = problem(epoch_id, None, ProblemCode::Unopenable);
            return Ok(shown.opener.is_none().then_some(unopenable));
        }
        let opener = match self.intake().opener(&header) {
            Ok(opener) => opener,
            Err(error) => {
                tracing::error!(
                    gateway = self.gateway.name,
                    "an epoch cannot be opened: {error:#}"
                );
                self.show(epoch_id, lane, None);
                return Ok(Some(problem(epoch_id, None, ProblemCode::Unopenable)));
            }
        };
        match block_in_place(|| self.intake().store_epoch(&header, class, bytes)) {
            Err(SinkError::TooLarge) => {
                return Err(ReceiveError::Peer("an index above 2^63".into()));
            }
            stored => stored.map_err(local)?,
        }
        self.show(epoch_id, lane, Some(opener));
        Ok(None)
    }

    /// Remembers an epoch, and forgets another if there are too many: of the same lane if it can
    /// be, since a lane is sent oldest first and does not come back.
    fn show(&mut self, id: EpochId, lane: Lane, opener: Option<EpochOpener>) {
        if EPOCHS_MAX <= self.epochs.len() {
            let oldest = self.epochs.iter().position(|shown| shown.lane == lane);
            self.epochs.remove(oldest.unwrap_or_default());
        }
        self.epochs.push(ShownEpoch { id, lane, opener });
    }

    fn shown(&mut self, id: &EpochId) -> Option<&mut ShownEpoch> {
        let place = self.epochs.iter().position(|shown| shown.id == *id)?;
        let used = self.epochs.remove(place);
        self.epochs.push(used);
        self.epochs.last_mut()
    }

    fn intake(&self) -> Intake<'_> {
        Intake {
            gateway: &self.gateway,
            keys: &self.keys,
            sink: &self.sink,
        }
    }

    fn batch(&mut self, bytes: &[u8]) -> Result<ToGateway, ReceiveError> {
        let sealed =
            SealedBatch::decode(bytes).map_err(|error| ReceiveError::Peer(error.to_string()))?;
        let (epoch_id, number) = (sealed.epoch_id, sealed.number);
        // Taken out, so that the rest of this may be borrowed, and put back.
        let Some(shown) = self.shown(&epoch_id) else {
            return Err(ReceiveError::Peer("a batch before its header".into()));
        };
        let Some(mut opener) = shown.opener.take() else {
            return Ok(problem(epoch_id, Some(number), ProblemCode::Unopenable));
        };
        let taken = block_in_place(|| self.intake().take(&mut opener, &sealed, bytes));
        if let Some(shown) = self.shown(&epoch_id) {
            shown.opener = Some(opener);
        }
        match taken.map_err(local)? {
            Taken::Committed { next, .. } => {
                self.note_ack();
                Ok(ToGateway::Ack { epoch_id, next })
            }
            Taken::Altered(error) => {
                let gateway = &self.gateway.name;
                tracing::warn!(gateway, number, %error, "altered batch");
                Ok(problem(epoch_id, Some(number), ProblemCode::Altered))
            }
            Taken::NotUnderstood(error) => Ok(self.not_understood(epoch_id, number, &error)),
        }
    }

    /// Authentic, but nothing we can store: a newer gateway, or a bug. Nothing is lost: it stays in
    /// the gateway's spool.
    fn not_understood(
        &self,
        epoch_id: EpochId,
        number: u32,
        error: &dyn std::error::Error,
    ) -> ToGateway {
        let gateway = &self.gateway.name;
        tracing::error!(gateway, number, %error, "a batch is not understood");
        problem(epoch_id, Some(number), ProblemCode::Unopenable)
    }

    /// Lets `ls` know. The readings are committed whether or not this is.
    fn note_ack(&mut self) {
        if self.noted.is_some_and(|at| at.elapsed() < NOTE_INTERVAL) {
            return;
        }
        self.noted = Some(Instant::now());
        let noted = block_in_place(|| self.registry.note_ack(&self.gateway.fingerprint));
        if let Err(error) = noted {
            tracing::warn!("cannot note an ack in the registry: {error:#}");
        }
    }

    fn below(&mut self, epoch_id: EpochId, from: u32) -> Result<ToGateway, ReceiveError> {
        match self.shown(&epoch_id) {
            None => {
                return Err(ReceiveError::Peer(
                    "it speaks of an epoch before its header".into(),
                ));
            }
            Some(ShownEpoch { opener: None, .. }) => {
                return Ok(problem(epoch_id, None, ProblemCode::Unopenable));
            }
            Some(ShownEpoch {
                opener: Some(_), ..
            }) => {}
        }
        let next = block_in_place(|| self.sink.declare_gone(&epoch_id, from)).map_err(local)?;
        Ok(ToGateway::Ack { epoch_id, next })
    }
}

fn decode(bytes: &[u8]) -> Result<ToService, ReceiveError> {
    ToService::decode(bytes).map_err(|error| ReceiveError::Peer(error.to_string()))
}

fn problem(epoch_id: EpochId, number: Option<u32>, code: ProblemCode) -> ToGateway {
    ToGateway::Problem {
        epoch_id,
        number,
        code,
    }
}

fn local(error: impl Into<anyhow::Error>) -> ReceiveError {
    ReceiveError::Local(error.into())
}

/// protocol.md 4: the default; sent and not yet committed.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// A spool has three, and as many of each chain it had before.
const LANES_MAX: usize = 16;

/// Epochs known at once in a session: three lanes and what is in flight around a change of epoch.
/// Each holds up to 65,536 batch keys of 32 bytes.
const EPOCHS_MAX: usize = 16;

/// How exact the age of the last ack in `gateway-cloud ls` is; each note costs the disk a sync.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
