//! The tasks of `gateway-cloud`: the work, the signals that end it, and one for each session.

use std::future::pending;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Runs `work` until it ends; SIGTERM and Ctrl-C cancel the token it was given.
///
/// # Errors
///
/// Those of `work`, or if signals cannot be taken.
pub async fn run<F>(work: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = stop.clone();
    let signals = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        asked.cancel();
        pending::<()>().await;
    };
    tokio::select! {
        end = work(stop) => end,
        () = signals => Ok(()),
    }
}

/// Sessions, each a task of its own: one that waits for the disk, or panics, does so alone.
///
/// Dropping this ends them.
#[derive(Default)]
pub struct Sessions(JoinSet<()>);

impl Sessions {
    /// Starts a session.
    pub fn start(&mut self, session: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(session);
    }

    /// How many have not been reported by [`ended`](Self::ended).
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until a session has ended; `None` if there are none. Cancel-safe.
    pub async fn ended(&mut self) -> Option<()> {
        if let Err(error) = self.0.join_next().await? {
            tracing::error!("a session ended by a mistake of ours: {error}");
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_that_panics_ends_alone() {
        let mut sessions = Sessions::default();
        sessions.start(async { panic!("on purpose") });
        sessions.start(pending());
        assert_eq!(sessions.ended().await, Some(()));
        assert_eq!(sessions.len(), 1);
    }
}
