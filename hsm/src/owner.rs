//! The thread that owns the TPM, and what replaces it when the TPM does not let it go.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::HsmConfig;
use crate::counters::Counters;
use crate::engine::Engine;
use crate::error::HsmError;
use crate::queue::{Next, NotTaken, Queue, Rank};

/// Hands work to the thread and waits for its answers; dropping it ends the thread.
pub(crate) struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.waiting.close();
    }
}

/// A call on its way.
struct Job {
    /// When its caller stops waiting.
    give_up: Instant,
    run: Box<dyn FnOnce(&mut Engine) + Send>,
}

impl Owner {
    pub(crate) fn start(config: HsmConfig) -> Self {
        let shared = Arc::new(Shared {
            config,
            waiting: Queue::new(),
            tenure: Tenure::default(),
            counters: Counters::default(),
        });
        lock(&shared.tenure.0).fill(&shared);
        Self { shared }
    }

    /// Has the thread do `work` and waits for it, at most `limit`.
    ///
    /// `work` may be called again if the TPM was reset or asked to wait.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        rank: Rank,
        limit: Duration,
        work: impl FnMut(&mut Engine) -> Result<T, HsmError> + Send + 'static,
    ) -> Result<T, HsmError> {
        let (answer, answered) = oneshot::channel();
        // The receiver may be gone by then; then the answer has no use.
        let _caller = self.submit(rank, limit, work, |result| drop(answer.send(result)))?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(HsmError::Stopped),
            Err(_) => Err(self.late(limit)),
        }
    }

    /// As [`run`](Self::run), for callers that cannot await.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        rank: Rank,
        limit: Duration,
        work: impl FnMut(&mut Engine) -> Result<T, HsmError> + Send + 'static,
    ) -> Result<T, HsmError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let _caller = self.submit(rank, limit, work, move |result| drop(answer.send(result)))?;
        match answered.recv_timeout(limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(HsmError::Stopped),
            Err(RecvTimeoutError::Timeout) => Err(self.late(limit)),
        }
    }

    /// Puts `work` into the queue. It is skipped if the returned value, which stands for the
    /// caller, is dropped before its turn comes.
    fn submit<T: Send + 'static>(
        &self,
        rank: Rank,
        limit: Duration,
        mut work: impl FnMut(&mut Engine) -> Result<T, HsmError> + Send + 'static,
        answer: impl FnOnce(Result<T, HsmError>) + Send + 'static,
    ) -> Result<Arc<()>, HsmError> {
        let caller = Arc::new(());
        let waits = Arc::downgrade(&caller);
        let give_up = Instant::now() + limit;
        let run = Box::new(move |engine: &mut Engine| {
            if waits.strong_count() != 0 {
                answer(engine.attempt((rank, give_up), &mut work));
            }
        });
        // After a panic, or where the system had no thread to give.
        if let Ok(mut tenure) = self.shared.tenure.0.try_lock() {
            tenure.fill(&self.shared);
        }
        let put = self.shared.waiting.put(rank, Job { give_up, run });
        put.map(|()| caller).map_err(|error| match error {
            NotTaken::Full => HsmError::Busy,
            NotTaken::Closed => HsmError::Stopped,
        })
    }

    /// What a caller is told who waited in vain. If the thread sits in a call whose time is over,
    /// another one takes its place.
    fn late(&self, limit: Duration) -> HsmError {
        // While files are being written the thread is not stuck in the TPM.
        if let Ok(mut tenure) = self.shared.tenure.0.try_lock() {
            if tenure.is_stuck() {
                tenure.abandon();
                self.shared.counters.add_reconnect();
                tracing::warn!(
                    abandoned = tenure.abandoned,
                    "the TPM holds an operation for too long; starting on a new connection"
                );
            }
            tenure.fill(&self.shared);
        }
        HsmError::Timeout { after: limit }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

/// What every thread of one [`Owner`] shares.
pub(crate) struct Shared {
    pub(crate) config: HsmConfig,
    waiting: Queue<Job>,
    tenure: Tenure,
    pub(crate) counters: Counters,
}

impl Shared {
    /// Runs `write` unless the thread of this `office` was replaced meanwhile, and holds off its
    /// replacement until it is done: two threads never write the key files at once.
    pub(crate) fn while_in_office<T>(
        &self,
        office: &Office,
        write: impl FnOnce() -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        let tenure = lock(&self.tenure.0);
        if office.is_left() {
            return Err(HsmError::Timeout {
                after: self.config.timeout,
            });
        }
        let result = write();
        drop(tenure);
        result
    }

    /// Runs `work`, which may hang in the TPM; `false` if the thread was replaced meanwhile.
    fn work(&self, office: &Office, give_up: Instant, work: impl FnOnce()) -> bool {
        let before = {
            let mut tenure = lock(&self.tenure.0);
            if office.is_left() {
                return false;
            }
            tenure.give_up.replace(give_up)
        };
        let _end = AtEnd {
            shared: self,
            office,
            before,
        };
        work();
        !office.is_left()
    }

    /// Lets time pass for a call of this rank that the TPM asked to wait, and serves more urgent ones
    /// meanwhile.
    pub(crate) fn pause(
        &self,
        rank: Rank,
        pause: Duration,
        (office, engine): (&Office, &mut Engine),
    ) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.waiting.take_above(rank, left) {
                Next::Item(job) => {
                    if !self.work(office, job.give_up, || (job.run)(engine)) {
                        return;
                    }
                }
                Next::Nothing => return,
                Next::Closed => return thread::sleep(left),
            }
        }
    }

    /// The next job. If none comes soon, `rest` ends the burst of work first. `None` when the
    /// thread has no more to do.
    fn next_job(&self, office: &Office, rest: impl FnOnce()) -> Option<Job> {
        match self.waiting.take(Some(BURST_PAUSE_MAX)) {
            Next::Item(job) => return Some(job),
            Next::Nothing | Next::Closed => {}
        }
        let give_up = Instant::now() + self.config.timeout;
        if !self.work(office, give_up, rest) {
            return None;
        }
        match self.waiting.take(None) {
            Next::Item(job) => Some(job),
            Next::Nothing | Next::Closed => None,
        }
    }
}

/// Notes the end of a piece of work, also when it panicked.
struct AtEnd<'a> {
    shared: &'a Shared,
    office: &'a Office,
    /// What the work had interrupted.
    before: Option<Instant>,
}

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        let mut tenure = lock(&self.shared.tenure.0);
        if self.office.is_left() {
            // Only once for each thread: what it had interrupted ends after it.
            if self.before.is_none() {
                tenure.abandoned = tenure.abandoned.saturating_sub(1);
            }
            return;
        }
        tenure.give_up = self.before;
        if thread::panicking() && self.before.is_none() {
            tenure.office.leave();
            tenure.vacant = true;
        }
    }
}

/// Which thread is in office, and how long its present work may take.
#[derive(Default)]
struct Tenure(Mutex<TenureState>);

struct TenureState {
    office: Office,
    /// No thread has the office: none was started yet, or it panicked.
    vacant: bool,
    /// When nobody waits for the present work any more.
    give_up: Option<Instant>,
    abandoned: usize,
}

impl Default for TenureState {
    fn default() -> Self {
        Self {
            office: Office::default(),
            vacant: true,
            give_up: None,
            abandoned: 0,
        }
    }
}

impl TenureState {
    fn is_stuck(&self) -> bool {
        let is_over = self.give_up.is_some_and(|over| over <= Instant::now());
        is_over && self.abandoned < ABANDONED_MAX
    }

    /// Leaves the thread to end when its command does.
    fn abandon(&mut self) {
        self.abandoned += 1;
        self.give_up = None;
        self.office.leave();
        self.vacant = true;
    }

    /// Starts a thread if none is in office.
    fn fill(&mut self, shared: &Arc<Shared>) {
        if !self.vacant {
            return;
        }
        self.office = Office::default();
        match spawn(shared, self.office.clone()) {
            Ok(()) => self.vacant = false,
            Err(error) => tracing::error!(%error, "cannot start the thread for the TPM"),
        }
    }
}

/// One thread's right to talk with the TPM. A thread that was replaced while a command hung in the
/// TPM sends no further one: without a resource manager it would disturb its successor.
#[derive(Clone, Default)]
pub(crate) struct Office(Arc<AtomicBool>);

impl Office {
    pub(crate) fn is_left(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn leave(&self) {
        self.0.store(true, Ordering::Release);
    }
}

fn spawn(shared: &Arc<Shared>, office: Office) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new().name("tpm".to_owned());
    thread
        .spawn(move || {
            let mut engine = Engine::new(Arc::clone(&shared), office.clone());
            while let Some(job) = shared.next_job(&office, || engine.rest()) {
                if !shared.work(&office, job.give_up, || (job.run)(&mut engine)) {
                    return;
                }
            }
        })
        .map(drop)
}

/// Takes a lock; a thread that panicked while holding it left nothing half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long session and key stay in the TPM for the next call. To start a session costs the TPM a
/// key agreement (66 to 250 ms on the chips that gateways have), and calls come in bursts: a
/// handshake, then the headers of three lanes. Longer would keep slots from others where there is
/// no resource manager.
const BURST_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Threads that may hang in the TPM at once. Each costs a stack and an open file; a TPM that hangs
/// four times in a row is not helped by a fifth connection.
const ABANDONED_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tpm;

    #[tokio::test]
    async fn a_panic_costs_its_own_call_and_no_other() {
        let owner = Owner::start(HsmConfig {
            tpm: Tpm::Device("/dev/no-such-tpm".into()),
            keys: "/no-such-folder".into(),
            timeout: LIMIT,
        });
        // More often than threads may hang.
        for _ in 0..=ABANDONED_MAX {
            let broken = owner.run(Rank::Rest, LIMIT, |_| -> Result<(), _> { panic!("a bug") });
            assert!(matches!(broken.await, Err(HsmError::Stopped)));

            // One that comes before the panic has ended waits for its limit, and then for a thread.
            let mut works = false;
            for _ in 0..3 {
                works = works || owner.run(Rank::Rest, LIMIT, |_| Ok(())).await.is_ok();
            }
            assert!(works);
        }
        assert_eq!(lock(&owner.shared.tenure.0).abandoned, 0);
    }

    const LIMIT: Duration = Duration::from_secs(1);
}
