//! What passes of all that a sensor repeats.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use wire::{Measurement, Value};

/// Remembers what one sensor said last, and lets through what is new.
///
/// A sensor sends each packet several times, since nobody acknowledges it. Of those:
/// - an *event* (text: a button was pressed) passes once for each packet;
/// - a *state* (true or false) passes when it changes, and else like a number;
/// - a *number* passes once in each interval, channel by channel, since some sensors spread their
///   channels over several packets. Without an interval it passes once for each packet, and again
///   every [`REPEATS_MAX`] while the packet stays the same, since the sensor is alive.
#[derive(Debug)]
pub(super) struct Thinner {
    interval: Duration,
    last: Option<(Identity, Instant)>,
    passed: BTreeMap<String, Passed>,
}

/// What tells one packet from the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// The sensor numbers its packets.
    Number(u16),
    /// It does not, so the whole payload stands for the packet.
    Payload(Vec<u8>),
}

/// The last time that a channel passed.
#[derive(Debug)]
struct Passed {
    at: Instant,
    /// From when on the next may; keeps the pace although advertisements come a little early.
    due: Instant,
    state: Option<bool>,
}

impl Thinner {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            last: None,
            passed: BTreeMap::new(),
        }
    }

    /// Notes that a packet was heard at `now`; returns whether it is the one heard just before.
    ///
    /// After a silence of [`REPEATS_MAX`] it counts as another one, whatever it says.
    pub(super) fn is_repeated(&mut self, identity: Identity, now: Instant) -> bool {
        let repeated = self.last.as_ref().is_some_and(|(last, heard)| {
            *last == identity && now.duration_since(*heard) < REPEATS_MAX
        });
        self.last = Some((identity, now));
        repeated
    }

    /// Returns whether this measurement passes, and if so, remembers it.
    pub(super) fn passes(
        &mut self,
        measurement: &Measurement,
        repeated: bool,
        now: Instant,
    ) -> bool {
        let state = match measurement.value {
            Value::Text(_) => return !repeated,
            Value::Bool(state) => Some(state),
            Value::Null
            | Value::Integer(_)
            | Value::Decimal(_)
            | Value::Float(_)
            | Value::Bytes(_) => None,
        };
        self.is_due(&measurement.channel, state, repeated, now)
    }

    /// Returns whether a packet that is no use may be reported; such packets are thinned like a
    /// number.
    pub(super) fn failure_passes(&mut self, repeated: bool, now: Instant) -> bool {
        self.is_due(FAILURE, None, repeated, now)
    }

    fn is_due(&mut self, channel: &str, state: Option<bool>, repeated: bool, now: Instant) -> bool {
        let Some(passed) = self.passed.get_mut(channel) else {
            let due = now + self.interval;
            let first = Passed {
                at: now,
                due,
                state,
            };
            self.passed.insert(channel.to_owned(), first);
            return true;
        };

        let rested = !repeated || passed.at + REPEATS_MAX <= now;
        let changed = state.is_some() && state != passed.state;
        let passes = changed || (rested && passed.due <= now);
        if passes {
            let on_time = now < passed.due + self.interval;
            let start = if on_time { passed.due.min(now) } else { now };
            *passed = Passed {
                at: now,
                due: start + self.interval,
                state,
            };
        }
        passes
    }
}

/// Stands for a channel among the channels; no channel has this name.
const FAILURE: &str = "";

/// How long a sensor repeats one packet without a pause: the reference implementation of BTHome
/// takes the same packet id for another packet after 4 s.
const REPEATS_MAX: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use wire::Quality;

    use super::*;

    #[test]
    fn without_an_interval_each_packet_passes_once() {
        let mut sensor = Sensor::new(Duration::ZERO);

        assert!(sensor.says(0, 1, Value::Integer(20)));
        assert!(!sensor.says(100, 1, Value::Integer(20)));
        assert!(sensor.says(200, 2, Value::Integer(20)));
    }

    #[test]
    fn a_packet_that_never_changes_passes_every_four_seconds() {
        let mut sensor = Sensor::new(Duration::ZERO);

        let passed: Vec<u64> = (0..10)
            .map(|second| second * 1000)
            .filter(|ms| sensor.says(*ms, 1, Value::Integer(20)))
            .collect();
        assert_eq!(passed, [0, 4000, 8000]);
    }

    #[test]
    fn an_interval_thins_numbers_and_keeps_its_pace() {
        let mut sensor = Sensor::new(Duration::from_secs(10));

        // Every 990 ms, so each tenth would come 100 ms early.
        let passed = (0..101)
            .filter(|number| sensor.says(u64::from(*number) * 990, *number, Value::Integer(20)))
            .count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn an_interval_lets_changes_of_state_pass_at_once() {
        let mut sensor = Sensor::new(Duration::from_secs(60));

        assert!(sensor.says(0, 1, Value::Bool(false)));
        assert!(!sensor.says(1000, 2, Value::Bool(false)));
        assert!(sensor.says(2000, 3, Value::Bool(true)));
        assert!(sensor.says(2500, 4, Value::Bool(false)));
    }

    #[test]
    fn an_event_passes_once_however_long_it_is_repeated() {
        let mut sensor = Sensor::new(Duration::from_secs(60));
        let press = || Value::Text("press".to_owned());

        assert!(sensor.says(0, 1, press()));
        assert!((1..10).all(|second| !sensor.says(second * 1000, 1, press())));
        assert!(sensor.says(9100, 2, press()));
    }

    #[test]
    fn the_same_packet_after_a_silence_is_another_one() {
        let mut sensor = Sensor::new(Duration::ZERO);

        assert!(sensor.says(0, 1, Value::Text("press".to_owned())));
        assert!(sensor.says(4000, 1, Value::Text("press".to_owned())));
    }

    #[test]
    fn channels_that_take_turns_are_thinned_apart() {
        let mut thinner = Thinner::new(Duration::from_secs(10));
        let start = Instant::now();

        for (seconds, channel, passes) in [
            (0, "temperature", true),
            (5, "voltage", true),
            (10, "temperature", true),
            (12, "voltage", false),
            (15, "voltage", true),
        ] {
            let now = start + Duration::from_secs(seconds);
            let measurement = measurement(channel, Value::Integer(1));
            assert_eq!(
                thinner.passes(&measurement, false, now),
                passes,
                "{seconds} s"
            );
        }
    }

    /// A sensor of one channel, and its thinner.
    struct Sensor {
        thinner: Thinner,
        start: Instant,
    }

    impl Sensor {
        fn new(interval: Duration) -> Self {
            Self {
                thinner: Thinner::new(interval),
                start: Instant::now(),
            }
        }

        /// Advertises `value` in packet `number`; returns whether it passes.
        fn says(&mut self, ms: u64, number: u16, value: Value) -> bool {
            let now = self.start + Duration::from_millis(ms);
            let repeated = self.thinner.is_repeated(Identity::Number(number), now);
            self.thinner
                .passes(&measurement("channel", value), repeated, now)
        }
    }

    fn measurement(channel: &str, value: Value) -> Measurement {
        Measurement {
            channel: channel.to_owned(),
            value,
            unit: None,
            quality: Quality::Ok,
        }
    }
}
