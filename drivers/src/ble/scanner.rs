//! From payloads to events.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep};
use wire::Measurement;

use super::radio::{Heard, Radio};
use super::thinner::{Identity, Thinner};
use super::{BleConfig, BleFormat, BleSensor, DecodeError, bthome, ruuvi};
use crate::{Event, EventKind, Events, SensorError};

/// Listens on one Bluetooth adapter.
///
/// Survives the loss of the adapter, the daemon and the bus, and finds them again by itself. It
/// notices a silent loss after 90 s: it then restarts the scan, and 90 s later everything.
pub struct Scanner {
    config: Arc<BleConfig>,
    thinners: Vec<Thinner>,
    counters: Arc<Counters>,
}

impl Scanner {
    /// Makes a scanner, which does nothing until it [`run`](Self::run)s.
    #[must_use]
    pub fn new(config: BleConfig) -> Self {
        let sensors = config.sensors.iter();
        Self {
            thinners: sensors
                .map(|sensor| Thinner::new(sensor.interval))
                .collect(),
            config: Arc::new(config),
            counters: Arc::default(),
        }
    }

    /// Returns what becomes of the advertisements, now and in future.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Scans, and sends what the configured sensors say.
    ///
    /// While there is no adapter, daemon or bus, each sensor fails once with
    /// [`SensorError::Absent`] or [`SensorError::Denied`], and all are tried again every 5 s.
    ///
    /// Never waits for room in `events` with a measurement: the queues of btleplug have no bound,
    /// a late measurement would get a wrong time, and the sensor repeats itself. What finds no
    /// room is [counted](Counters::dropped).
    ///
    /// Never returns. Cancel-safe: dropping the future ends the scan.
    pub async fn run(mut self, events: Events) -> Infallible {
        let mut told = None;
        loop {
            match Radio::open(Arc::clone(&self.config), Arc::clone(&self.counters)).await {
                Ok(mut radio) => {
                    told = None;
                    while let Some(heard) = radio.next().await {
                        self.take(&heard, Instant::now(), &events);
                    }
                }
                Err(error) if told.as_ref() != Some(&error) => {
                    self.tell_all(&error, &events).await;
                    told = Some(error);
                }
                Err(_) => {}
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Waits for room: there is one such event for each sensor, and no payload that would wait.
    async fn tell_all(&self, error: &SensorError, events: &Events) {
        for sensor in &self.config.sensors {
            // A closed channel means that the caller is about to drop this future.
            let _ = events
                .send(event(sensor, EventKind::Failed(error.clone())))
                .await;
        }
    }

    /// Sends what is new in a payload.
    fn take(&mut self, heard: &Heard, now: Instant, events: &Events) {
        let sensor = self.config.sensors.get(heard.sensor);
        let (Some(sensor), Some(thinner)) = (sensor, self.thinners.get_mut(heard.sensor)) else {
            return;
        };
        // Room first: what was not sent must not count as passed.
        let room = match events.try_reserve() {
            Ok(room) => room,
            Err(TrySendError::Full(()) | TrySendError::Closed(())) => {
                count(&self.counters.dropped);
                return;
            }
        };

        let decoded = decode(sensor.format, &heard.payload);
        let number = decoded.as_ref().ok().and_then(|packet| packet.number);
        let identity = number.map_or_else(
            || Identity::Payload(heard.payload.clone()),
            Identity::Number,
        );
        let repeated = thinner.is_repeated(identity, now);
        let kind = match decoded {
            Ok(mut packet) => {
                count(if repeated {
                    &self.counters.duplicate
                } else {
                    &self.counters.decoded
                });
                packet
                    .measurements
                    .retain(|measurement| thinner.passes(measurement, repeated, now));
                if packet.measurements.is_empty() {
                    return;
                }
                EventKind::Measured(packet.measurements)
            }
            Err(error) => {
                count(if repeated {
                    &self.counters.duplicate
                } else {
                    &self.counters.refused
                });
                if !thinner.failure_passes(repeated, now) {
                    return;
                }
                EventKind::Failed(error.into())
            }
        };
        room.send(event(sensor, kind));
    }
}

/// What became of the advertisements heard since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) decoded: AtomicU64,
    pub(super) duplicate: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) unknown: AtomicU64,
}

impl Counters {
    /// Understood; includes those that the interval then thinned out.
    #[must_use]
    pub fn decoded(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }

    /// Repetitions of the packet before.
    #[must_use]
    pub fn duplicate(&self) -> u64 {
        self.duplicate.load(Ordering::Relaxed)
    }

    /// From a configured sensor, but not in its format.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// For which there was no room in a queue.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// From devices that are not configured.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }
}

/// What the formats have in common.
struct Packet {
    number: Option<u16>,
    measurements: Vec<Measurement>,
}

fn decode(format: BleFormat, payload: &[u8]) -> Result<Packet, DecodeError> {
    match format {
        BleFormat::Bthome => bthome::decode(payload).map(|packet| Packet {
            number: packet.packet_id.map(u16::from),
            measurements: packet.measurements,
        }),
        BleFormat::Ruuvi => ruuvi::decode(payload).map(|packet| Packet {
            number: packet.sequence,
            measurements: packet.measurements,
        }),
    }
}

fn event(sensor: &BleSensor, kind: EventKind) -> Event {
    Event {
        sensor: sensor.sensor.clone(),
        kind,
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Between two attempts to reach the adapter; what the advice of [`SensorError`] promises.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_repeated_packet_is_counted_and_not_sent() {
        let mut air = Air::new(8);

        air.say("400001 02ca09 03bf13");
        air.say("400001 02ca09 03bf13");
        air.say("400002 02cb09 03bf13");

        assert_eq!(
            air.heard(),
            [
                "temperature 25.06, humidity 50.55",
                "temperature 25.07, humidity 50.55"
            ]
        );
        assert_eq!((air.counters.decoded(), air.counters.duplicate()), (2, 1));
    }

    #[test]
    fn an_encrypted_payload_fails_the_sensor_once_for_each_packet() {
        let mut air = Air::new(8);

        air.say("41a47266c95f730011223378237214");
        air.say("41a47266c95f730011223378237214");

        assert_eq!(air.heard(), ["encrypted, needs a key"]);
        assert_eq!((air.counters.refused(), air.counters.duplicate()), (1, 1));
    }

    #[test]
    fn without_room_a_payload_is_dropped_and_its_repetition_passes() {
        let mut air = Air::new(1);

        air.say("400001 2d00");
        air.say("400002 2d01");
        assert_eq!(air.heard(), ["window false"]);
        air.say("400002 2d01");

        assert_eq!(air.heard(), ["window true"]);
        assert_eq!(air.counters.dropped(), 1);
    }

    #[test]
    fn a_payload_without_measurements_is_no_event() {
        let mut air = Air::new(8);

        air.say("400001");

        assert_eq!(air.heard(), [""; 0]);
        assert_eq!(air.counters.decoded(), 1);
    }

    /// One BTHome sensor, its scanner, and who receives the events.
    struct Air {
        scanner: Scanner,
        counters: Arc<Counters>,
        events: Events,
        received: mpsc::Receiver<Event>,
    }

    impl Air {
        fn new(room: usize) -> Self {
            let scanner = Scanner::new(BleConfig {
                adapter: "auto".to_owned(),
                sensors: vec![BleSensor {
                    sensor: "door".to_owned(),
                    address: [0; 6],
                    format: BleFormat::Bthome,
                    interval: Duration::ZERO,
                }],
            });
            let (events, received) = mpsc::channel(room);
            Self {
                counters: scanner.counters(),
                scanner,
                events,
                received,
            }
        }

        fn say(&mut self, payload: &str) {
            let payload = hex::decode(payload.replace(' ', "")).unwrap();
            let heard = Heard { sensor: 0, payload };
            self.scanner.take(&heard, Instant::now(), &self.events);
        }

        /// The events so far, in words.
        fn heard(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.received.try_recv().ok())
                .map(|event| match event.kind {
                    EventKind::Measured(measurements) => {
                        let words = measurements
                            .iter()
                            .map(|Measurement { channel, value, .. }| format!("{channel} {value}"));
                        words.collect::<Vec<_>>().join(", ")
                    }
                    EventKind::Failed(error) => error.to_string(),
                })
                .collect()
        }
    }
}
