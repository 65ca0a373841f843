//! Whether a gateway that was let in may stay (protocol.md 2.5): the registry is read again and
//! again, since the operator changes it in another process.

use std::time::Duration;

use channel::{Admission, PublicKey, Purpose};
use tokio::{
    task::block_in_place,
    time::{Instant, interval_at},
};

use super::decide;
use crate::registry::{GatewayState, Registry};

/// The session ends, and this is what the gateway is told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gateway may not stay: {0}")]
pub(super) struct Dismissed(pub(super) Admission);

/// Waits until the gateway with this channel key may no longer deliver.
pub(super) async fn until_dismissed(registry: &Registry, key: &PublicKey) -> Dismissed {
    watch(PERIOD, || {
        let found = block_in_place(|| registry.by_channel_key(key))?;
        Ok(found.map(|gateway| gateway.state))
    })
    .await
}

/// The same with any registry. Reads once a `period`, and gives up after [`BLIND_TIME_MAX`] of
/// failures.
async fn watch(
    period: Duration,
    read: impl Fn() -> anyhow::Result<Option<GatewayState>>,
) -> Dismissed {
    let mut known_at = Instant::now();
    let mut turns = interval_at(known_at + period, period);
    loop {
        turns.tick().await;
        match read().map(|state| decide(state, Purpose::Deliver)) {
            Ok(Admission::Ok) => known_at = Instant::now(),
            Ok(other) => return Dismissed(other),
            Err(error) if known_at.elapsed() < BLIND_TIME_MAX => {
                tracing::debug!("cannot read the registry: {error:#}; the session goes on for now");
            }
            Err(error) => {
                tracing::debug!("cannot read the registry: {error:#}; the session ends");
                return Dismissed(Admission::Busy);
            }
        }
    }
}

/// A third of what protocol.md 2.5 allows. 20,000 sessions are 2,000 reads a second of one row by its
/// key, some 10 us each.
const PERIOD: Duration = Duration::from_secs(10);

/// How long a session may go on while nobody knows whether it may (protocol.md 2.5).
const BLIND_TIME_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn who_is_revoked_suspended_retired_or_removed_in_mid_session_is_dismissed_at_the_next_look()
     {
        for (state, code) in [
            (Some(GatewayState::Revoked), Admission::Revoked),
            (Some(GatewayState::Suspended), Admission::Suspended),
            (Some(GatewayState::Retired), Admission::Retired),
            (None, Admission::UnknownGateway),
        ] {
            let began = Instant::now();
            let hour = Duration::from_secs(3600);
            let dismissal = watch(PERIOD, || {
                let changed = hour <= began.elapsed();
                Ok(if changed {
                    state
                } else {
                    Some(GatewayState::Enrolled)
                })
            });
            assert_eq!(dismissal.await, Dismissed(code));
            let late = began.elapsed() - hour;
            assert!(late <= Duration::from_secs(10), "{late:?} after {state:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_cannot_be_read_for_half_a_minute_ends_the_session() {
        let began = Instant::now();
        let dismissal = watch(PERIOD, || bail!("the disk is away"));
        assert_eq!(dismissal.await, Dismissed(Admission::Busy));
        assert_eq!(began.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_cannot_be_read_for_a_moment_ends_no_session() {
        let began = Instant::now();
        let reads = Cell::new(0);
        let dismissal = watch(PERIOD, || {
            reads.set(reads.get() + 1);
            match reads.get() % 3 {
                0 => Ok(Some(GatewayState::Enrolled)),
                _ if 100 < reads.get() => Ok(Some(GatewayState::Revoked)),
                _ => bail!("the disk is away"),
            }
        });
        assert_eq!(dismissal.await, Dismissed(Admission::Revoked));
        assert_eq!(began.elapsed(), Duration::from_secs(1010));
    }
}
