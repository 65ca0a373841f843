//! The handle, and the thread that owns the file.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use tokio::sync::{mpsc, oneshot, watch};
use wire::batch::LedgerEntry;

use crate::file::Files;
use crate::store::Store;
use crate::{
    Acked, Appended, Lane, LaneState, Limits, Loss, NewBatch, NewEpoch, SpoolError, Status,
    StoredBatch, StoredHeader, UnsignedHeader,
};

/// The spool; clones share it.
///
/// A thread of its own has the file open, and does one request after the other. It ends when the
/// last clone is dropped. Dropping the future of a request does not take the request back: it may
/// still be done. All requests that change something may be made again with the same arguments,
/// but [`record_loss`](Self::record_loss), which would count twice.
///
/// # Errors
///
/// Besides what each method says: [`SpoolError::Disk`] if the disk fails; [`SpoolError::Corrupt`]
/// if the file is found damaged, after which every request is refused, and the next
/// [`open`](Self::open) makes a new file; [`SpoolError::Stopped`] if the thread died.
#[derive(Clone, Debug)]
pub struct Spool {
    jobs: mpsc::Sender<Job>,
    chain_id: [u8; 16],
    changed: watch::Receiver<u64>,
}

impl Spool {
    /// Opens the spool in `folder`, makes folder (0700) and file (0600) if there are none, and
    /// starts the thread. Takes the same time whatever the spool holds.
    ///
    /// A damaged file is renamed to `spool.db.damaged-N`, and a new one takes its place, with a
    /// new chain id and a ledger entry of unknown counts for each service. Of damaged files only
    /// the last is kept, and only until its space is needed. A file that was replaced by an older
    /// copy of itself cannot be told here: it opens, and the service tells.
    ///
    /// # Errors
    ///
    /// [`SpoolError::NotOurs`], [`SpoolError::Newer`], [`SpoolError::InUse`] and
    /// [`SpoolError::LimitTooSmall`] change nothing; [`SpoolError::Disk`] if the system does not
    /// let us.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, SpoolError> {
        let files = Files::new(folder);
        let path = files.database().to_owned();
        let (changed_sender, changed) = watch::channel(0);
        let store = Store::open(files, limits, changed_sender).map_err(|error| error.at(&path))?;
        let chain_id = store.chain_id().map_err(|error| error.at(&path))?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        start(store, queue).map_err(|error| SpoolError::from_io(&path, error))?;
        Ok(Self {
            jobs,
            chain_id,
            changed,
        })
    }

    /// The chain id, born with the file.
    #[must_use]
    pub fn chain_id(&self) -> [u8; 16] {
        self.chain_id
    }

    /// Changes whenever a batch was appended, a header was signed or an epoch was set aside, so
    /// that nobody need poll. The number itself means nothing.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// What a lane holds, and its newest epoch. A lane never used is empty.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn lane(&self, lane: Lane) -> Result<LaneState, SpoolError> {
        self.call(move |store| store.lane(lane)).await
    }

    /// Makes an epoch the newest of its lane, with its header still unsigned. May evict.
    ///
    /// # Errors
    ///
    /// [`SpoolError::Passed`] if its index is not above that of the lane's newest epoch;
    /// [`SpoolError::Full`] and [`SpoolError::Reserved`] as for [`append`](Self::append);
    /// [`SpoolError::TooMany`] lanes; else see [`Spool`].
    pub async fn open_epoch(&self, epoch: NewEpoch) -> Result<(), SpoolError> {
        self.call(move |store| store.open_epoch(&epoch)).await
    }

    /// Replaces an epoch's header by the signed one. If the epoch is unknown, as it was evicted
    /// meanwhile, or signed already, nothing changes.
    ///
    /// # Errors
    ///
    /// [`SpoolError::Reserved`]; else see [`Spool`].
    pub async fn sign_header(&self, epoch_id: [u8; 32], header: Vec<u8>) -> Result<(), SpoolError> {
        self.call(move |store| store.sign_header(epoch_id, &header))
            .await
    }

    /// The header of an epoch; `None` if the epoch is unknown, or forgotten.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn header(&self, epoch_id: [u8; 32]) -> Result<Option<StoredHeader>, SpoolError> {
        self.call(move |store| store.header(epoch_id)).await
    }

    /// Epochs whose headers wait for a signature, oldest first, 64 at most: sign them and ask
    /// again.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn unsigned_headers(&self) -> Result<Vec<UnsignedHeader>, SpoolError> {
        self.call(|store| store.unsigned_headers()).await
    }

    /// Stores a batch of its lane's newest epoch; it is on the medium when this returns.
    ///
    /// When the spool is full, the oldest batches of the lowest class go first, but none more
    /// urgent than this one; the loss is in the ledger in the same transaction. The same batch
    /// may be appended again, which changes nothing.
    ///
    /// # Errors
    ///
    /// [`SpoolError::Full`], [`SpoolError::Reserved`] or [`SpoolError::Disk`]: keep the batch, and
    /// append the same bytes later, or record it as lost. [`SpoolError::Altered`] if other bytes
    /// have its number, [`SpoolError::Passed`] if its number is below one appended, and it is not
    /// held; [`SpoolError::NotNewest`], [`SpoolError::Oversized`], [`SpoolError::TooMany`],
    /// [`SpoolError::Tally`]; else see [`Spool`].
    pub async fn append(&self, batch: NewBatch) -> Result<Appended, SpoolError> {
        self.call(move |store| store.append(&batch)).await
    }

    /// Says whether the lane's newest epoch ended in order, for field 8 of the next one.
    ///
    /// # Errors
    ///
    /// [`SpoolError::NotNewest`]; else see [`Spool`].
    pub async fn close_epoch(
        &self,
        lane: Lane,
        epoch_id: [u8; 32],
        clean: bool,
    ) -> Result<(), SpoolError> {
        self.call(move |store| store.close_epoch(lane, epoch_id, clean))
            .await
    }

    /// The lane's batches behind epoch and number `after`, oldest first, across epochs, without
    /// those set aside.
    ///
    /// Together they have `bytes_max` bytes at most (and never above 8 MiB), but the first is
    /// returned whatever its size. Starts at the oldest if the epoch `after` is forgotten.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn read(
        &self,
        lane: Lane,
        after: Option<([u8; 32], u32)>,
        bytes_max: usize,
    ) -> Result<Vec<StoredBatch>, SpoolError> {
        self.call(move |store| store.read(lane, after, bytes_max, false))
            .await
    }

    /// As [`read`](Self::read), with the epochs that are set aside: what can be carried by hand.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn read_all(
        &self,
        lane: Lane,
        after: Option<([u8; 32], u32)>,
        bytes_max: usize,
    ) -> Result<Vec<StoredBatch>, SpoolError> {
        self.call(move |store| store.read(lane, after, bytes_max, true))
            .await
    }

    /// Writes down that all of an epoch below `next` left by hand, so that an ack may cover it. It
    /// is kept until that comes. An epoch that is unknown, or forgotten, changes nothing.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn note_exported(&self, epoch_id: [u8; 32], next: u32) -> Result<(), SpoolError> {
        self.call(move |store| store.note_exported(epoch_id, next))
            .await
    }

    /// How far an epoch left by hand: one more than the highest number; 0 if nothing of it did, or
    /// if it is unknown.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn exported(&self, epoch_id: [u8; 32]) -> Result<u32, SpoolError> {
        self.call(move |store| store.exported(epoch_id)).await
    }

    /// Forgets the batches of this epoch with numbers below `next`, and the ledger entries they
    /// carried. An epoch that is unknown, or of another lane, changes nothing.
    ///
    /// # Errors
    ///
    /// See [`Spool`]. What was forgotten until then stays so.
    pub async fn ack(
        &self,
        lane: Lane,
        epoch_id: [u8; 32],
        next: u32,
    ) -> Result<Acked, SpoolError> {
        self.call(move |store| store.ack(lane, epoch_id, next))
            .await
    }

    /// Leaves an epoch that its service cannot open out of what is read and sent. It is kept
    /// until it is evicted; ledger entries in it wait to be sealed again.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn set_aside(&self, epoch_id: [u8; 32]) -> Result<(), SpoolError> {
        self.call(move |store| store.set_aside(epoch_id)).await
    }

    /// The oldest losses of a service that no batch carries, eight at most, to be sealed into the
    /// next batch of its critical lane, whose `ledger_ids` names them.
    ///
    /// From here on these entries never change; further losses make new ones. Entries that are
    /// not appended are handed out again. While the service has 16 that it has not committed, no
    /// new ones are made. They have no `names`: the spool knows none.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn ledger_open(&self, service: [u8; 32]) -> Result<Vec<LedgerEntry>, SpoolError> {
        self.call(move |store| store.ledger_open(service)).await
    }

    /// Writes a loss to the ledger that did not happen here.
    ///
    /// # Errors
    ///
    /// [`SpoolError::Tally`], [`SpoolError::TooMany`], [`SpoolError::Oversized`] (in pieces it
    /// fits), [`SpoolError::Reserved`]; else see [`Spool`].
    pub async fn record_loss(&self, loss: Loss) -> Result<(), SpoolError> {
        self.call(move |store| store.record_loss(&loss)).await
    }

    /// Keeps a small value, in the place of an older one. It is readable to whoever has the disk:
    /// no secrets, no names.
    ///
    /// # Errors
    ///
    /// [`SpoolError::Oversized`], [`SpoolError::TooMany`], [`SpoolError::Reserved`]; else see
    /// [`Spool`].
    pub async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), SpoolError> {
        let key = key.to_owned();
        self.call(move |store| store.put(&key, &value)).await
    }

    /// The small value of this name.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        let key = key.to_owned();
        self.call(move |store| store.get(&key)).await
    }

    /// The spool at a glance.
    ///
    /// # Errors
    ///
    /// See [`Spool`].
    pub async fn status(&self) -> Result<Status, SpoolError> {
        self.call(|store| store.status()).await
    }

    /// Has the thread do `request`, and waits for the answer.
    async fn call<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |owner| {
            // Nobody waits any more if the caller's future was dropped.
            let _ = answer.send(owner.answer(request));
        });
        self.jobs.send(job).await.map_err(|_| SpoolError::Stopped)?;
        answered.await.map_err(|_| SpoolError::Stopped)?
    }
}

type Job = Box<dyn FnOnce(&mut Owner) + Send>;

/// Who has the file open, until it is found damaged.
struct Owner {
    store: Option<Store>,
    path: PathBuf,
}

impl Owner {
    fn answer<T>(
        &mut self,
        request: impl FnOnce(&mut Store) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let Some(store) = &mut self.store else {
            return Err(SpoolError::Corrupt {
                path: self.path.clone(),
                source: None,
            });
        };
        let answer = request(store).map_err(|error| error.at(&self.path));
        if matches!(answer, Err(SpoolError::Corrupt { .. })) {
            self.set_aside();
        }
        answer
    }

    /// Closes the file before its name changes: SQLite deletes its log by name.
    fn set_aside(&mut self) {
        let Some(files) = self.store.take().map(Store::close) else {
            return;
        };
        if let Err(error) = files.set_aside() {
            tracing::error!(path = %self.path.display(), %error, "damaged spool stays where it is");
        }
    }
}

fn start(store: Store, mut queue: mpsc::Receiver<Job>) -> io::Result<()> {
    let mut owner = Owner {
        path: store.files().database().to_owned(),
        store: Some(store),
    };
    thread::Builder::new()
        .name("spool".to_owned())
        .spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut owner);
            }
        })
        .map(drop)
}

/// Requests that may wait: one of each task that uses the spool. A batch waiting here is in
/// memory twice, so the queue is short.
const QUEUE_MAX: usize = 8;
