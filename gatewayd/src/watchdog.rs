//! systemd's readiness and watchdog, tied to real progress.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// When the tasks that must not stand still last got on, in milliseconds of boot time.
///
/// A link that is down is no lack of progress: the uplink marks every attempt and every wait.
#[derive(Clone)]
pub struct Progress {
    clock: Clock,
    started_ms: u64,
    marks: Arc<[(Task, AtomicU64)]>,
}

/// A task that feeds the watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Takes what sensors say.
    Collect,
    /// Seals and stores.
    Seal,
    /// Delivers.
    Uplink,
}

impl Task {
    /// The word used in metrics and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Collect => "collect",
            Self::Seal => "seal",
            Self::Uplink => "uplink",
        }
    }
}

impl Progress {
    /// All tasks marked now.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let now = clock.now().boottime_ms;
        let marks =
            [Task::Collect, Task::Seal, Task::Uplink].map(|task| (task, AtomicU64::new(now)));
        Self {
            clock,
            started_ms: now,
            marks: marks.into(),
        }
    }

    /// When the daemon started, in milliseconds of boot time.
    #[must_use]
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// Says that the task got on.
    pub fn mark(&self, task: Task) {
        self.mark_at(task, self.clock.now().boottime_ms);
    }

    fn mark_at(&self, task: Task, now_ms: u64) {
        for (other, mark) in self.marks.iter() {
            if *other == task {
                mark.store(now_ms, Ordering::Relaxed);
            }
        }
    }

    /// Each task with the boot time in milliseconds at which it last got on.
    pub fn marks(&self) -> impl Iterator<Item = (Task, u64)> + '_ {
        self.marks
            .iter()
            .map(|(task, mark)| (*task, mark.load(Ordering::Relaxed)))
    }

    /// The first task that at `now_ms` has stood still longer than [`STANDSTILL_MAX`], if any has.
    fn wedged(&self, now_ms: u64) -> Option<Task> {
        let limit = u64::try_from(STANDSTILL_MAX.as_millis()).unwrap_or(u64::MAX);
        self.marks()
            .find(|(_, mark)| limit < now_ms.saturating_sub(*mark))
            .map(|(task, _)| task)
    }
}

/// Feeds systemd's watchdog for as long as every task gets on; without systemd it only waits.
///
/// # Errors
///
/// Never; it ends when `stop` is cancelled.
pub async fn run(progress: Progress, stop: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(FEED_INTERVAL);
    let mut told = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        match progress.wedged(progress.clock.now().boottime_ms) {
            None => {
                told = false;
                notify(systemd::daemon::STATE_WATCHDOG, "1");
            }
            Some(task) if !told => {
                told = true;
                tracing::error!(
                    task = task.word(),
                    "stands still; systemd will start us afresh"
                );
            }
            Some(_) => {}
        }
    }
}

/// Tells systemd that the daemon is up.
pub fn ready() {
    notify(systemd::daemon::STATE_READY, "1");
}

/// Tells systemd that the daemon is on its way down.
pub fn stopping() {
    notify(systemd::daemon::STATE_STOPPING, "1");
}

fn notify(key: &str, value: &str) {
    // Started by hand there is nobody to tell, and nothing to do about a full socket.
    if let Err(error) = systemd::daemon::notify([(key, value)].iter()) {
        tracing::debug!(%error, "systemd was not told {key}");
    }
}

/// A third of the unit's `WatchdogSec=30`.
const FEED_INTERVAL: Duration = Duration::from_secs(10);

/// The slowest honest step, a storing write on a worn SD card, takes seconds.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_stands_still_is_noticed_and_one_that_gets_on_again_is_not() {
        let progress = Progress::new(Clock::new().unwrap());
        let started = progress.started_ms();
        assert_eq!(progress.wedged(started + 30_000), None);
        assert_eq!(progress.wedged(started + 30_001), Some(Task::Collect));

        let later = started + 20_000;
        progress.mark_at(Task::Collect, later);
        progress.mark_at(Task::Uplink, later);

        assert_eq!(progress.wedged(started + 30_001), Some(Task::Seal));
        progress.mark_at(Task::Seal, later);
        assert_eq!(progress.wedged(later + 30_000), None);
    }

    #[test]
    fn a_mark_is_made_with_the_time_since_boot() {
        let progress = Progress::new(Clock::new().unwrap());
        progress.mark_at(Task::Uplink, 0);
        progress.mark(Task::Uplink);
        assert_eq!(progress.wedged(progress.started_ms()), None);
    }
}
