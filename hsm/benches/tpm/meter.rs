//! Time and CPU of calls.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// What some calls took.
pub(crate) struct Figures {
    times: Vec<Duration>,
    cpu: Duration,
}

impl Figures {
    pub(crate) const fn new() -> Self {
        Self {
            times: Vec::new(),
            cpu: Duration::ZERO,
        }
    }

    /// Measures calls in a row.
    pub(crate) async fn calls(&mut self, count: u32, call: impl AsyncFnMut()) {
        self.calls_apart(count, Duration::ZERO, call).await;
    }

    /// Measures calls with a pause after each. What happens in the pause counts as CPU, not as time.
    pub(crate) async fn calls_apart(
        &mut self,
        count: u32,
        pause: Duration,
        mut call: impl AsyncFnMut(),
    ) {
        let before = cpu();
        for _ in 0..count {
            let started = Instant::now();
            call().await;
            self.times.push(started.elapsed());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        self.cpu += cpu() - before;
    }

    pub(crate) fn median_ms(&self) -> f64 {
        self.percentile_ms(50)
    }

    pub(crate) fn percentile_ms(&self, percent: usize) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3
    }

    /// Of one call, on average.
    pub(crate) fn cpu_ms(&self) -> f64 {
        let calls = u32::try_from(self.times.len()).unwrap();
        (self.cpu / calls).as_secs_f64() * 1e3
    }
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap();
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}
