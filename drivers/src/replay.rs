//! Plays recorded bytes back, through the decoders that also hear the live sensors.
//!
//! A recording is text, one line for each time a sensor spoke:
//!
//! ```text
//! # milliseconds  sensor  bytes
//! 0     climate  01040000000271cb01040400d702770afa
//! 1200  bed-1    0512fc5394c37c0004fffc040cac364200cdcbb8334c884f
//! ```
//!
//! Milliseconds count from the start and never fall; the sensor is a name as in configuration; the
//! bytes are hexadecimal. Empty lines and lines that start with `#` are skipped. What the bytes are
//! is the decoder's business: for Modbus a request and its answer
//! ([`modbus::decode_exchange`](crate::modbus::decode_exchange)), for Bluetooth the payload of an
//! advertisement.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use wire::Measurement;

use crate::{Event, EventKind, Events, SensorError};

/// What a sensor said, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Time since the start of the recording, in whole milliseconds.
    pub at: Duration,
    /// Name of the sensor.
    pub sensor: String,
    /// The bytes, as the sensor's decoder takes them; at least one.
    pub bytes: Vec<u8>,
}

/// The line of a recording.
impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.at.as_millis(), self.sensor)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads a recording.
///
/// # Errors
///
/// The first mistake, with its line.
pub fn read(text: &str) -> Result<Vec<Recorded>, RecordingError> {
    let mut recording: Vec<Recorded> = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let recorded = read_line(text).map_err(|mistake| RecordingError { line, mistake })?;
        if recording.last().is_some_and(|last| recorded.at < last.at) {
            let mistake = Mistake::Backwards;
            return Err(RecordingError { line, mistake });
        }
        recording.push(recorded);
    }
    Ok(recording)
}

/// Sends the events of a recording, each at its time, and returns after the last.
///
/// `decode` is asked once for each line; if it finds no measurement, nothing is sent. Ends early if nobody receives `events` any more.
/// Cancel-safe: what was sent is sent, the rest is not.
pub async fn play(
    recording: &[Recorded],
    mut decode: impl FnMut(&Recorded) -> Result<Vec<Measurement>, SensorError>,
    events: &Events,
) {
    let start = Instant::now();
    for recorded in recording {
        sleep_until(start + recorded.at).await;
        let kind = match decode(recorded) {
            Ok(measurements) if measurements.is_empty() => continue,
            Ok(measurements) => EventKind::Measured(measurements),
            Err(error) => EventKind::Failed(error),
        };
        let sensor = recorded.sensor.clone();
        if events.send(Event { sensor, kind }).await.is_err() {
            return;
        }
    }
}

/// A mistake in a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {mistake}")]
pub struct RecordingError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub mistake: Mistake,
}

/// What is wrong with a line of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mistake {
    /// There are not three words.
    #[error("a line is: milliseconds, sensor, bytes")]
    Words,
    /// The first word is no time.
    #[error("milliseconds are a whole number, a week at most")]
    Time,
    /// The time is before that of the line above.
    #[error("the time is before that of the line above")]
    Backwards,
    /// The second word is no name.
    #[error("the sensor is no name")]
    Sensor,
    /// The third word is not hexadecimal.
    #[error("the bytes are not hexadecimal")]
    Bytes,
}

fn read_line(text: &str) -> Result<Recorded, Mistake> {
    let mut words = text.split_ascii_whitespace();
    let (Some(at), Some(sensor), Some(bytes), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Mistake::Words);
    };
    let at = at.parse().map(Duration::from_millis).ok();
    let at = at.filter(|at| *at <= TIME_MAX).ok_or(Mistake::Time)?;
    if !wire::is_name(sensor) {
        return Err(Mistake::Sensor);
    }
    let bytes = read_hex(bytes).ok_or(Mistake::Bytes)?;
    let sensor = sensor.to_owned();
    Ok(Recorded { at, sensor, bytes })
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    let digit = |character: u8| char::from(character).to_digit(16);
    let byte = |&[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>();
    bytes.filter(|_| odd.is_empty())
}

/// A recording is for tests and demonstrations; a longer time is a slip of the pen.
const TIME_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;
    use wire::{Quality, Value};

    use super::*;

    #[test]
    fn a_recording_is_read() {
        let recording = read("# a comment\n\n0 climate 0104\n 1200\tbed-1  FF \n").unwrap();
        let expected = [(0, "climate", vec![1, 4]), (1200, "bed-1", vec![0xFF])];
        assert_eq!(
            recording,
            expected.map(|(at, sensor, bytes)| recorded(at, sensor, bytes))
        );
    }

    /// The lines in this module's documentation.
    #[test]
    fn the_documented_recording_decodes() {
        let documentation = include_str!("replay.rs").lines();
        let text: Vec<&str> = documentation
            .filter_map(|line| line.strip_prefix("//! "))
            .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
            .collect();
        let recording = read(&text.join("\n")).unwrap();
        let [modbus, ruuvi] = &recording[..] else {
            panic!("{recording:?}");
        };
        let device = crate::modbus::fixture::device(1);
        let measured = crate::modbus::decode_exchange(&device, &modbus.bytes).unwrap();
        assert_eq!(measured[0].value, Value::Integer(215));
        assert!(crate::ble::ruuvi::decode(&ruuvi.bytes).is_ok());
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, line, mistake) in [
            ("0 climate", 1, Mistake::Words),
            ("0 climate 01 02", 1, Mistake::Words),
            ("\nsoon climate 01", 2, Mistake::Time),
            ("604800001 climate 01", 1, Mistake::Time),
            ("-1 climate 01", 1, Mistake::Time),
            ("5 climate 01\n4 climate 01", 2, Mistake::Backwards),
            ("0 Climate! 01", 1, Mistake::Sensor),
            ("0 climate 012", 1, Mistake::Bytes),
            ("0 climate 0g", 1, Mistake::Bytes),
            ("0 climate ä", 1, Mistake::Bytes),
        ] {
            assert_eq!(read(text), Err(RecordingError { line, mistake }), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_come_in_order_and_at_their_times() {
        let recording = read("0 a 01\n500 b 02\n500 a 03\n2000 a 04").unwrap();
        let (sender, mut events) = mpsc::channel(10);
        let start = Instant::now();
        let decode = |recorded: &Recorded| match recorded.bytes.as_slice() {
            [2] => Err(SensorError::Crc),
            [3] => Ok(vec![]),
            [byte, ..] => Ok(vec![measurement(*byte)]),
            [] => Ok(vec![]),
        };

        let mut heard = Vec::new();
        tokio::join!(
            async {
                play(&recording, decode, &sender).await;
                drop(sender);
            },
            async {
                while let Some(event) = events.recv().await {
                    heard.push((start.elapsed().as_millis(), event));
                }
            }
        );

        let said = |sensor: &str, kind| Event {
            sensor: sensor.to_owned(),
            kind,
        };
        let expected = [
            (0, said("a", EventKind::Measured(vec![measurement(1)]))),
            (500, said("b", EventKind::Failed(SensorError::Crc))),
            (2000, said("a", EventKind::Measured(vec![measurement(4)]))),
        ];
        assert_eq!(heard, expected);
    }

    proptest! {
        /// What is written is read back.
        #[test]
        fn lines_read_back(
            at in 0..=604_800_000_u64,
            sensor in "[a-z0-9][a-z0-9_-]{0,62}",
            bytes in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let recorded = recorded(at, &sensor, bytes);
            prop_assert_eq!(read(&recorded.to_string()), Ok(vec![recorded]));
        }

        /// No text makes the reader panic.
        #[test]
        fn any_text_is_read_or_refused(text in "([0-9]{0,6} [a-z]{0,3} [0-9a-gä]{0,6}\n|.{0,20})*") {
            let _ = read(&text);
        }
    }

    fn recorded(at: u64, sensor: &str, bytes: Vec<u8>) -> Recorded {
        Recorded {
            at: Duration::from_millis(at),
            sensor: sensor.to_owned(),
            bytes,
        }
    }

    fn measurement(value: u8) -> Measurement {
        Measurement {
            channel: "value".to_owned(),
            value: Value::Integer(value.into()),
            unit: None,
            quality: Quality::Ok,
        }
    }
}
