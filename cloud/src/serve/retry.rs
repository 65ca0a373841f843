//! When to try again.

use std::time::Duration;

/// Pauses between attempts (protocol.md 6): up to 1 s, then up to 2 s, and so on to 5 min; each
/// anything up to that, so that those whom one relay has left do not come back together.
#[derive(Default)]
pub(super) struct Retry {
    failures: u32,
}

impl Retry {
    /// The pause before the next attempt, after one that held for `held`, or not at all. `random`
    /// is uniform.
    ///
    /// Only what held for a while counts as a success: a relay that takes a registration and ends
    /// it at once is not asked once a second for ever.
    pub(super) fn after(&mut self, held: Option<Duration>, random: u64) -> Duration {
        if held.is_some_and(|held| STEADY <= held) {
            self.failures = 0;
        }
        let doubled = FIRST.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX));
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(doubled.min(LONGEST).as_nanos()).unwrap_or(u64::MAX);
        // `random` as a fraction of the whole, 0 to 1.
        let part = (u128::from(nanos) * u128::from(random)) >> 64;
        Duration::from_nanos(u64::try_from(part).unwrap_or(nanos))
    }
}

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// 2^9 s is above the longest.
const DOUBLINGS_MAX: u32 = 9;

/// As long as the longest pause, of which the average is half: whoever comes back after that asks
/// no more often than somebody who fails.
const STEADY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_five_minutes() {
        let mut retry = Retry::default();
        let longest: Vec<_> = (0..12)
            .map(|_| retry.after(None, u64::MAX).as_secs_f64().round())
            .collect();
        let expected = [
            1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0,
        ];
        assert_eq!(longest, expected);
        assert_eq!(retry.after(None, 0), Duration::ZERO);
    }

    #[test]
    fn only_what_held_for_a_while_begins_anew() {
        let mut retry = Retry::default();
        let mut pause = |held| retry.after(held, u64::MAX).as_secs_f64().round();
        assert_eq!(pause(None), 1.0);
        assert_eq!(pause(Some(Duration::from_secs(59))), 2.0);
        assert_eq!(pause(Some(Duration::ZERO)), 4.0);
        assert_eq!(pause(Some(Duration::from_secs(60))), 1.0);
        assert_eq!(pause(None), 2.0);
    }

    #[test]
    fn a_thousand_whom_one_relay_has_left_come_back_spread_out() {
        for attempt in 1..=10 {
            let bound = f64::from(1 << (attempt - 1)).min(300.0);
            let mut tenths = [0; 10];
            for seed in 0..1000 {
                let mut random = SplitMix(seed);
                let mut retry = Retry::default();
                let pauses = (0..attempt).map(|_| retry.after(None, random.next()));
                let share = pauses.last().unwrap().as_secs_f64() / bound;
                let upper = (1..10_u32).filter(|tenth| f64::from(*tenth) / 10.0 <= share);
                tenths[upper.count()] += 1;
            }
            // A hundred each; the deviation is 9.5, and this is five of it.
            assert!(
                tenths.iter().all(|count| (52..=148).contains(count)),
                "attempt {attempt}: {tenths:?}"
            );
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    struct SplitMix(u64);

    impl SplitMix {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }
}
