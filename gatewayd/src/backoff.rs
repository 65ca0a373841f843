//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from a minimum to a maximum, with full jitter, so that a fleet that lost its service at
/// the same moment does not come back at the same moment.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Starts at `min`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            ceiling: min,
        }
    }

    /// The next pause: at least half of `min`, at most the present ceiling, which then doubles.
    pub fn pause(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(self.max);
        let share = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        (ceiling.mul_f64(share)).max(self.min / 2)
    }

    /// After a success the next failure waits little again.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_between_half_the_minimum_and_a_ceiling_that_doubles() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(300));
        let mut backoff = Backoff::new(min, max);
        for attempt in 0..20 {
            let ceiling = (min * 2_u32.pow(attempt.min(9))).min(max);
            let wait = backoff.pause();
            assert!(min / 2 <= wait && wait <= ceiling, "{attempt}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= min);
    }
}
