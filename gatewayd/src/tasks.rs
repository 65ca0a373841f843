//! The daemon's tasks: all of them or none.

use std::{io, thread, time::Duration};

use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// The daemon's tasks, by name.
///
/// Each runs until `stop` is cancelled. The first to end for any other reason takes the rest down,
/// and systemd starts the daemon afresh; no task is restarted in place, so none has to reason about
/// a neighbour that came back empty. Sensors and links are reopened inside their tasks.
pub struct Tasks {
    running: JoinSet<(String, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet; `stop` ends those that will be.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            running: JoinSet::new(),
            stop,
        }
    }

    /// Starts one task. The daemon has no other way to start one.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let name = name.into();
        self.running.spawn(async move { (name, task.await) });
    }

    /// Waits for the end, stops every task, and returns why it ended.
    ///
    /// # Errors
    ///
    /// The first task that failed, panicked or ended unasked; or that some did not stop within
    /// [`STOP_TIME_MAX`].
    pub async fn run(mut self) -> anyhow::Result<()> {
        let first = self.running.join_next().await;
        let asked = self.stop.is_cancelled();
        self.stop.cancel();

        let mut cause = first.map_or(Ok(()), |end| judge(end, asked));
        let drained = tokio::time::timeout(STOP_TIME_MAX, async {
            while let Some(end) = self.running.join_next().await {
                cause = std::mem::replace(&mut cause, Ok(())).and(judge(end, true));
            }
        });
        if drained.await.is_err() {
            cause = cause.and(Err(anyhow::anyhow!(
                "{} tasks did not stop within {STOP_TIME_MAX:?}",
                self.running.len()
            )));
        }
        cause
    }
}

/// Starts something that ends with the program and that nobody waits for: the other half of
/// `gatewayctl`'s connection.
pub fn detach(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Does something to its end even if the caller gives up waiting, as when a client hangs up in the
/// midst of a change.
///
/// # Errors
///
/// If it panics.
pub async fn finish<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    tokio::spawn(task).await
}

/// Does something that blocks on a thread of its own, which does not hold up the daemon's end as a
/// thread of the runtime's would. The work has a bound of its own, for nothing ends it.
///
/// # Errors
///
/// If the system has no thread left, or `work` panics.
pub async fn blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        // Whoever asked may have gone; then the answer has no use.
        .spawn(move || drop(answer.send(work())))?;
    answered.await.map_err(io::Error::other)
}

/// Turns the end of one task into the fate of the daemon.
fn judge(end: Result<(String, anyhow::Result<()>), JoinError>, asked: bool) -> anyhow::Result<()> {
    match end {
        Ok((name, Err(error))) => Err(error.context(format!("task {name} failed"))),
        Ok((name, Ok(()))) if !asked => Err(anyhow::anyhow!("task {name} ended unasked")),
        Ok((name, Ok(()))) => {
            tracing::debug!(name, "task stopped");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Below systemd's `TimeoutStopSec=10s`, so that the daemon reports before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn one_failure_stops_all_and_is_the_cause() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        let told = stop.clone();
        tasks.spawn("obedient", async move {
            told.cancelled().await;
            Ok(())
        });
        tasks.spawn("broken", async { Err(anyhow::anyhow!("the disk is gone")) });

        let cause = tasks.run().await.unwrap_err();

        assert_eq!(format!("{cause:#}"), "task broken failed: the disk is gone");
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn a_requested_stop_is_success() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        let told = stop.clone();
        tasks.spawn("obedient", async move {
            told.cancelled().await;
            Ok(())
        });
        stop.cancel();
        tasks.run().await.unwrap();
    }

    #[tokio::test]
    async fn ending_unasked_is_failure() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("hasty", async { Ok(()) });
        assert!(tasks.run().await.is_err());
    }

    #[tokio::test]
    async fn work_that_blocks_holds_up_nobody_and_its_panic_is_an_error() {
        let (go, wait) = std::sync::mpsc::channel::<u8>();
        let working = blocking("slow", move || wait.recv().unwrap());
        let meanwhile = async { go.send(7).unwrap() };
        let (done, ()) = tokio::join!(working, meanwhile);
        assert_eq!(done.unwrap(), 7);

        assert!(blocking("broken", || panic!("on purpose")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_stop_is_given_up() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn("deaf", pending());
        let told = stop.clone();
        tasks.spawn("obedient", async move {
            told.cancelled().await;
            Ok(())
        });
        stop.cancel();
        let error = tasks.run().await.unwrap_err();
        assert!(error.to_string().starts_with("1 tasks did not stop"));
    }
}
