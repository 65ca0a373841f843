use crate::closed::worded;
use crate::{Unit, Value};

worded! {
    /// How urgent readings are. Each class of a service is a lane of its own; see `protocol.md` 3.1.
    ///
    /// The smaller class is sent first and dropped last.
    Class "class" {
        /// Sent first, dropped last: alarms, and the ledger of losses.
        Critical = 0 => "critical",
        /// What is not configured otherwise.
        Normal = 1 => "normal",
        /// Sent last, dropped first.
        Bulk = 2 => "bulk",
    }
}

worded! {
    /// How far a measurement's value may be used.
    Quality "quality" {
        /// The sensor says so, and it is in range.
        Ok = 0 => "ok",
        /// The sensor repeats an old value, or says that it is old.
        Stale = 1 => "stale",
        /// Decoded well, but outside the range that is configured or that the sensor can measure.
        OutOfRange = 2 => "out_of_range",
        /// The sensor marks the value as no measurement; it is kept as evidence only.
        Invalid = 3 => "invalid",
    }
}

worded! {
    /// How far a wall time may be trusted.
    ClockState "clock state" {
        /// The clock was set by a time source when the time was taken.
        Synchronised = 0 => "synchronised",
        /// The clock had not been set yet: the wall time may be anything.
        Unsynchronised = 1 => "unsynchronised",
        /// Taken before the clock was set, and computed from `boottime_ms` once it was.
        Corrected = 2 => "corrected",
    }
}

/// The value of one channel, as a driver decoded it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Which of the sensor's quantities; a [name](is_name).
    pub channel: String,
    /// The value, in `unit`.
    pub value: Value,
    /// `None` for values that have no unit, or of which it is not known.
    pub unit: Option<Unit>,
    /// How far `value` may be used.
    pub quality: Quality,
}

/// When a measurement was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Milliseconds since 1970-01-01T00:00:00Z, without leap seconds.
    pub wall_ms: i64,
    /// Milliseconds of `CLOCK_BOOTTIME`: they rise steadily, and count suspended time.
    pub boottime_ms: u64,
    /// How far `wall_ms` may be trusted.
    pub clock: ClockState,
}

/// A measurement with its sensor, its time, and its place in the sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The sensor that measured; a [name](is_name).
    pub sensor: String,
    /// The number that stands for the sensor in tallies and ledger, the same for a whole run.
    pub sensor_number: u32,
    /// Counts the sensor's readings in this run, from 0 without gap; see `protocol.md` 3.2.
    pub sequence: u64,
    /// When it was measured.
    pub time: Time,
    /// What was measured.
    pub measurement: Measurement,
}

/// Whether `text` may name a sensor, a channel, a service or a bus: `[a-z0-9][a-z0-9_-]*`.
///
/// At most [`NAME_BYTES_MAX`] characters. Names hold no dot, so `sensor.channel` splits again.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX
        && text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
        })
}

/// Longest name: that of a DNS label (RFC 1035, 2.3.4), so names fit host names and topics.
pub const NAME_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WireError;

    #[test]
    fn names_are_what_the_configuration_says() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        for name in ["a", "0", "climate", "meter-2_b", &longest] {
            assert!(is_name(name), "{name}");
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for text in ["", "-a", "_a", "A", "a.b", "a b", "ä", "a/", &too_long] {
            assert!(!is_name(text), "{text}");
        }
    }

    #[test]
    fn words_and_codes_name_the_same_class() {
        for (code, word, class) in [
            (0_u8, "critical", Class::Critical),
            (1, "normal", Class::Normal),
            (2, "bulk", Class::Bulk),
        ] {
            assert_eq!(Class::try_from(code), Ok(class));
            assert_eq!(u8::from(class), code);
            assert_eq!(word.parse(), Ok(class));
            assert_eq!(class.to_string(), word);
        }
        assert_eq!(Class::ALL.len(), 3);
        assert_eq!(Class::try_from(3), Err(WireError::Value { field: "class" }));
        assert!("Critical".parse::<Class>().is_err());
    }

    #[test]
    fn qualities_are_spelled_as_documented() {
        let words: Vec<_> = Quality::ALL.iter().map(Quality::to_string).collect();
        assert_eq!(words, ["ok", "stale", "out_of_range", "invalid"]);
    }
}
