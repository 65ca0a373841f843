//! Keeps one direction of a splice to its bytes per second.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How far one direction is ahead of its pace.
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When everything so far would have passed at exactly the pace.
    due: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            due: Instant::now(),
        }
    }

    /// Notes that bytes have passed, and says whether to [`wait`](Self::wait) before the next.
    pub(super) fn note(&mut self, bytes: usize, now: Instant) -> bool {
        let nanos = u64::try_from(bytes)
            .unwrap_or(u64::MAX)
            .saturating_mul(NANOS_PER_SECOND)
            / self.bytes_per_second;
        self.due = self.due.max(now) + Duration::from_nanos(nanos);
        now + BURST < self.due
    }

    /// Waits as long as what has passed is ahead of the pace by more than a second.
    pub(super) async fn wait(&self) {
        if let Some(ahead) = self.due.checked_sub(BURST) {
            sleep_until(ahead).await;
        }
    }
}

/// What may pass at once after a pause, in time: a window of the session at the default pace.
const BURST: Duration = Duration::from_secs(1);

const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_of_a_second_the_pace_is_kept() {
        let began = Instant::now();
        let mut pace = Pace::new(1000);
        assert!(!pace.note(1000, Instant::now()));
        pace.wait().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(pace.note(3000, Instant::now()));
        pace.wait().await;
        assert_eq!(began.elapsed(), Duration::from_secs(3));
    }
}
