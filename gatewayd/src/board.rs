//! The board on which tasks write what happened, for `gatewayctl status`, `tap` and the metrics to
//! read.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drivers::SensorError;
use tokio::sync::broadcast;
use wire::{Measurement, Reading, Time};

use crate::config::SensorConfig;

/// What every sensor last said, and a live stream of what was taken.
pub struct Board {
    sensors: Mutex<Vec<SensorNote>>,
    taken: broadcast::Sender<Reading>,
}

/// One sensor as the daemon sees it.
#[derive(Clone, Debug)]
pub struct SensorNote {
    /// The configured name.
    pub name: String,
    /// How it is.
    pub state: SensorState,
    /// What is wrong, in one word of the metrics; `None` while nothing is.
    pub error: Option<&'static str>,
    /// What is wrong, in words for people.
    pub problem: Option<String>,
    /// The newest measurement of each channel, with its time.
    pub last: BTreeMap<String, (Measurement, Time)>,
    /// Boot time in milliseconds of the newest measurement.
    pub heard_ms: Option<u64>,
    silent_after: Duration,
    /// Boot time in milliseconds of the first look, from which a sensor that never spoke is silent.
    watched_ms: Option<u64>,
    outcomes: VecDeque<bool>,
    undecoded: u32,
}

/// How a sensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SensorState {
    /// Nothing was heard yet, and it is not late.
    Waiting,
    /// It speaks.
    Ok,
    /// It speaks, but at least 5 of the last 100 attempts failed.
    Flaky,
    /// Nothing was heard for `silent_after`.
    Silent,
    /// Bytes arrive, but no reading.
    Garbled,
    /// Its port or adapter is not there.
    Absent,
    /// Its port is held by someone else, or permission or a key is missing.
    Denied,
    /// Switched off in the configuration.
    Off,
}

impl SensorState {
    /// Every state, for metrics.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Ok,
        Self::Flaky,
        Self::Silent,
        Self::Garbled,
        Self::Absent,
        Self::Denied,
        Self::Off,
    ];

    /// The word that status, metrics and journal use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ok => "ok",
            Self::Flaky => "flaky",
            Self::Silent => "silent",
            Self::Garbled => "garbled",
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::Off => "off",
        }
    }
}

impl Board {
    /// A board with one note for each configured sensor.
    #[must_use]
    pub fn new(sensors: &[SensorConfig]) -> Self {
        Self {
            sensors: Mutex::new(sensors.iter().map(SensorNote::new).collect()),
            taken: broadcast::Sender::new(TAP_READINGS_MAX),
        }
    }

    /// All notes as of `now_ms` (boot time), in the order of the configuration.
    #[must_use]
    pub fn sensors(&self, now_ms: u64) -> Vec<SensorNote> {
        self.tick(now_ms);
        self.lock().clone()
    }

    /// Notices at `now_ms` (boot time) who has been silent for too long.
    pub fn tick(&self, now_ms: u64) {
        for sensor in self.lock().iter_mut() {
            sensor.tick(now_ms);
        }
    }

    /// A stream of readings as they are taken; a slow reader is told how many it missed.
    #[must_use]
    pub fn tap(&self) -> broadcast::Receiver<Reading> {
        self.taken.subscribe()
    }

    /// Notes measurements of the sensor with this number.
    pub fn note_measured(&self, number: usize, measurements: &[Measurement], time: Time) {
        if let Some(sensor) = self.lock().get_mut(number) {
            sensor.measured(measurements, time);
        }
    }

    /// Notes a failure of the sensor with this number.
    pub fn note_failed(&self, number: usize, error: &SensorError) {
        if let Some(sensor) = self.lock().get_mut(number) {
            sensor.failed(error);
        }
    }

    /// Shows a reading to whoever taps.
    pub fn note_taken(&self, reading: &Reading) {
        // Nobody listening is fine.
        let _ = self.taken.send(reading.clone());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SensorNote>> {
        // A note half written by a panicking task is still the best there is; the panic itself
        // ends the daemon.
        self.sensors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SensorNote {
    fn new(config: &SensorConfig) -> Self {
        Self {
            name: config.name.clone(),
            state: if config.enabled {
                SensorState::Waiting
            } else {
                SensorState::Off
            },
            error: None,
            problem: None,
            last: BTreeMap::new(),
            heard_ms: None,
            silent_after: config.silent_after,
            watched_ms: None,
            outcomes: VecDeque::with_capacity(OUTCOMES_MAX),
            undecoded: 0,
        }
    }

    fn measured(&mut self, measurements: &[Measurement], time: Time) {
        for measurement in measurements {
            let channel = measurement.channel.clone();
            if self.last.contains_key(&channel) || self.last.len() < CHANNELS_MAX {
                self.last.insert(channel, (measurement.clone(), time));
            }
        }
        self.heard_ms = Some(time.boottime_ms);
        self.undecoded = 0;
        self.error = None;
        self.problem = None;
        self.outcome(true);
        let state = if self.failures() * 20 >= OUTCOMES_MAX {
            SensorState::Flaky
        } else {
            SensorState::Ok
        };
        self.change(state);
    }

    fn failed(&mut self, error: &SensorError) {
        self.error = Some(error.word());
        self.problem = Some(error.to_string());
        self.outcome(false);
        let state = match error.word() {
            "absent" => SensorState::Absent,
            "held" | "permission" | "wrong_key" | "plaintext" => SensorState::Denied,
            "crc" | "format" => {
                self.undecoded += 1;
                if self.undecoded < UNDECODED_MAX {
                    return;
                }
                SensorState::Garbled
            }
            // A timeout or an exception is not a state: only silence is.
            _ => return,
        };
        self.change(state);
    }

    /// Turns a sensor that was not heard for too long silent.
    fn tick(&mut self, now_ms: u64) {
        let speaks = matches!(
            self.state,
            SensorState::Waiting | SensorState::Ok | SensorState::Flaky
        );
        let watched_ms = *self.watched_ms.get_or_insert(now_ms);
        let heard_ms = self.heard_ms.unwrap_or(watched_ms);
        let silence = Duration::from_millis(now_ms.saturating_sub(heard_ms));
        if speaks && self.silent_after < silence {
            self.change(SensorState::Silent);
        }
    }

    fn outcome(&mut self, good: bool) {
        if self.outcomes.len() == OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(good);
    }

    fn failures(&self) -> usize {
        self.outcomes.iter().filter(|good| !**good).count()
    }

    /// One line in the log for a change of state, none for a failure.
    fn change(&mut self, state: SensorState) {
        if self.state == state || self.state == SensorState::Off {
            return;
        }
        tracing::info!(
            sensor = self.name,
            from = self.state.word(),
            state = state.word(),
            error = self.error,
            "sensor changed"
        );
        self.state = state;
    }
}

/// Attempts by which a sensor is judged flaky.
const OUTCOMES_MAX: usize = 100;

/// Payloads in a row that do not decode until a sensor counts as garbled: one or two happen on any
/// radio or long wire.
const UNDECODED_MAX: u32 = 3;

/// Channels kept for display; the configuration allows 256 a sensor.
const CHANNELS_MAX: usize = 256;

/// Readings that a slow `tap` may lag behind before it is told that it missed some.
const TAP_READINGS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use wire::{ClockState, Quality, Value};

    use super::*;

    #[test]
    fn a_reading_makes_any_sensor_ok() {
        let board = board();
        board.note_failed(0, &SensorError::Timeout);
        board.note_measured(0, &[temperature()], at(5));
        let note = board.sensors(5).remove(0);
        assert_eq!(note.state, SensorState::Ok);
        assert_eq!(note.error, None);
        assert!(note.last.contains_key("temperature"));
    }

    #[test]
    fn five_failures_in_a_hundred_make_it_flaky_and_they_are_forgotten() {
        let board = board();
        for _ in 0..5 {
            board.note_failed(0, &SensorError::Timeout);
        }
        board.note_measured(0, &[temperature()], at(5));
        assert_eq!(board.sensors(5)[0].state, SensorState::Flaky);
        for _ in 0..OUTCOMES_MAX {
            board.note_measured(0, &[temperature()], at(6));
        }
        assert_eq!(board.sensors(6)[0].state, SensorState::Ok);
    }

    #[test]
    fn silence_counts_from_the_last_reading_or_the_first_look() {
        let board = board();
        assert_eq!(board.sensors(1_000)[0].state, SensorState::Waiting);
        assert_eq!(board.sensors(61_000)[0].state, SensorState::Waiting);
        assert_eq!(board.sensors(61_001)[0].state, SensorState::Silent);
    }

    #[test]
    fn a_sensor_that_is_off_stays_off() {
        let mut config = config();
        config.enabled = false;
        let board = Board::new(&[config]);
        board.note_measured(0, &[temperature()], at(5));
        assert_eq!(board.sensors(1_000_000)[0].state, SensorState::Off);
    }

    fn board() -> Board {
        Board::new(&[config()])
    }

    fn config() -> SensorConfig {
        SensorConfig {
            name: "climate".into(),
            class: wire::Class::Normal,
            source: "rs485".into(),
            enabled: true,
            interval: Duration::from_secs(1),
            silent_after: Duration::from_secs(60),
            channel_classes: BTreeMap::new(),
        }
    }

    fn temperature() -> Measurement {
        Measurement {
            channel: "temperature".into(),
            value: Value::Integer(21),
            unit: None,
            quality: Quality::Ok,
        }
    }

    fn at(boottime_ms: u64) -> Time {
        Time {
            wall_ms: 0,
            boottime_ms,
            clock: ClockState::Unsynchronised,
        }
    }
}
