//! The thread that owns the TPM, and what replaces it when the TPM does not let it go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::HsmConfig;
use crate::engine::Engine;
use crate::error::HsmError;

/// Hands work to the thread and waits for its answers.
#[derive(Clone)]
pub(crate) struct Owner {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

impl Owner {
    pub(crate) fn start(config: HsmConfig) -> Self {
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let shared = Arc::new(Shared {
            config,
            waiting: Mutex::new(waiting),
            tenure: Tenure::default(),
            counters: Counters::default(),
        });
        spawn(&shared, 0);
        Self { jobs, shared }
    }

    /// Has the thread do `work` and waits for it, at most `limit`.
    ///
    /// `work` may be called again if the TPM was reset or asked to wait.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        mut work: impl FnMut(&mut Engine) -> Result<T, HsmError> + Send + 'static,
    ) -> Result<T, HsmError> {
        let (answer, answered) = oneshot::channel();
        let give_up = Instant::now() + limit;
        let job: Job = Box::new(move |engine| {
            // Nobody waits for it any more.
            if answer.is_closed() {
                return;
            }
            // The receiver may be gone by now; then the answer has no use.
            let _ = answer.send(engine.attempt(give_up, &mut work));
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => HsmError::Busy,
            TrySendError::Disconnected(_) => HsmError::Stopped,
        })?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(HsmError::Stopped),
            Err(_) => {
                self.replace_if_stuck(limit);
                Err(HsmError::Timeout { after: limit })
            }
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Starts a new thread if the present one sits in a single operation.
    ///
    /// "Sits" is half of the limit that just passed: the rest may have gone by in the queue. To
    /// replace a thread that was merely slow does no harm: it answers its caller and ends.
    fn replace_if_stuck(&self, limit: Duration) {
        // While files are being written the thread is not stuck in the TPM.
        let Ok(mut tenure) = self.shared.tenure.0.try_lock() else {
            return;
        };
        let stuck = tenure
            .working_since
            .is_some_and(|since| limit / 2 <= since.elapsed());
        if !stuck || ABANDONED_MAX <= tenure.abandoned {
            return;
        }
        tenure.abandoned += 1;
        tenure.generation += 1;
        tenure.working_since = None;
        self.shared.counters.add_reconnect();
        tracing::warn!(
            abandoned = tenure.abandoned,
            "the TPM holds an operation for too long; starting on a new connection"
        );
        spawn(&self.shared, tenure.generation);
    }
}

/// What every thread of one [`Owner`] shares.
pub(crate) struct Shared {
    pub(crate) config: HsmConfig,
    waiting: Mutex<Receiver<Job>>,
    tenure: Tenure,
    pub(crate) counters: Counters,
}

impl Shared {
    /// Runs `write` unless the thread of `generation` was replaced meanwhile, and holds off its
    /// replacement until it is done: two threads never write the key files at once.
    pub(crate) fn while_in_office<T>(
        &self,
        generation: u64,
        write: impl FnOnce() -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        let tenure = lock(&self.tenure.0);
        if tenure.generation != generation {
            return Err(HsmError::Timeout {
                after: self.config.timeout,
            });
        }
        let result = write();
        drop(tenure);
        result
    }

    /// Runs `work`, which may hang in the TPM; `false` if the thread was replaced meanwhile.
    fn work(&self, generation: u64, work: impl FnOnce()) -> bool {
        {
            let mut tenure = lock(&self.tenure.0);
            if tenure.generation != generation {
                return false;
            }
            tenure.working_since = Some(Instant::now());
        }
        work();
        let mut tenure = lock(&self.tenure.0);
        if tenure.generation != generation {
            tenure.abandoned = tenure.abandoned.saturating_sub(1);
            return false;
        }
        tenure.working_since = None;
        true
    }

    /// The next job: at once if one waits, otherwise after `rest`. `None` when the thread has no
    /// more to do.
    fn next_job(&self, generation: u64, rest: impl FnOnce()) -> Option<Job> {
        match lock(&self.waiting).try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        if !self.work(generation, rest) {
            return None;
        }
        lock(&self.waiting).recv().ok()
    }
}

/// Which thread is in office, and since when it works on one thing.
#[derive(Default)]
struct Tenure(Mutex<TenureState>);

#[derive(Default)]
struct TenureState {
    generation: u64,
    working_since: Option<Instant>,
    abandoned: usize,
}

fn spawn(shared: &Arc<Shared>, generation: u64) {
    let shared = Arc::clone(shared);
    let spawned = thread::Builder::new()
        .name("tpm".to_owned())
        .spawn(move || {
            let mut engine = Engine::new(Arc::clone(&shared), generation);
            while let Some(job) = shared.next_job(generation, || engine.rest()) {
                if !shared.work(generation, || job(&mut engine)) {
                    return;
                }
            }
        });
    if let Err(error) = spawned {
        tracing::error!(%error, "cannot start the thread for the TPM");
    }
}

/// Takes a lock; a thread that panicked while holding it left nothing half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What happened since the start.
#[derive(Default)]
pub(crate) struct Counters {
    operations: AtomicU64,
    failures: AtomicU64,
    tampered: AtomicU64,
    resets: AtomicU64,
    reconnects: AtomicU64,
    latency_microseconds: AtomicU64,
}

impl Counters {
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn tampered(&self) -> u64 {
        self.tampered.load(Ordering::Relaxed)
    }

    pub(crate) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Of the last success; zero stands for none so far.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match self.latency_microseconds.load(Ordering::Relaxed) {
            0 => None,
            microseconds => Some(Duration::from_micros(microseconds)),
        }
    }

    pub(crate) fn add_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one operation by its outcome.
    pub(crate) fn add_operation(&self, error: Option<&HsmError>, took: Duration) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        match error {
            None => {
                let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.latency_microseconds
                    .store(microseconds.max(1), Ordering::Relaxed);
            }
            Some(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if matches!(error, HsmError::Tampered) {
                    self.tampered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Calls that may wait: a handshake and an epoch header for each of a dozen services, and some for
/// people. Past that the TPM does not keep up, and callers had better hear it.
const WAITING_MAX: usize = 32;

/// Threads that may hang in the TPM at once. Each costs a stack and an open file; a TPM that hangs
/// four times in a row is not helped by a fifth connection.
const ABANDONED_MAX: usize = 4;
