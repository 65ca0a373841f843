//! Takes what sensors say, gives each reading its time and number at once, and cuts batches.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use drivers::{Event, EventKind};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wire::{Class, Measurement, Reading, Time};

use crate::{
    board::Board,
    clock::Clock,
    config::{BatchConfig, SensorConfig},
    watchdog::{Progress, Task},
};

/// A reading and how much it matters.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// The reading, numbered.
    pub reading: Reading,
    /// Its class.
    pub class: Class,
}

/// What the collector needs of the rest of the daemon.
pub struct Collector {
    sensors: HashMap<String, Sensor>,
    batch: BatchConfig,
    clock: Clock,
    board: Arc<Board>,
    progress: Progress,
}

struct Sensor {
    number: u32,
    class: Class,
    channel_classes: BTreeMap<String, Class>,
    next_sequence: u64,
}

impl Collector {
    /// A collector for the sensors of the configuration; a sensor's number is its place there.
    #[must_use]
    pub fn new(
        sensors: &[SensorConfig],
        batch: BatchConfig,
        clock: Clock,
        board: Arc<Board>,
        progress: Progress,
    ) -> Self {
        let sensors = (0..)
            .zip(sensors)
            .map(|(number, config)| {
                let sensor = Sensor {
                    number,
                    class: config.class,
                    channel_classes: config.channel_classes.clone(),
                    next_sequence: 0,
                };
                (config.name.clone(), sensor)
            })
            .collect();
        Self {
            sensors,
            batch,
            clock,
            board,
            progress,
        }
    }

    /// Runs until `stop`, then hands over what is left and ends.
    ///
    /// Waits for `cuts` to have room: pressure goes back to the sensors, and memory stays flat.
    ///
    /// # Errors
    ///
    /// If whoever takes the cuts is gone.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        cuts: mpsc::Sender<Vec<Taken>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut taken = Vec::new();
        let mut ticks = tokio::time::interval(self.batch.interval.min(MARK_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first reading after a start is stored at once.
        let mut cut_at = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = events.recv() => match event {
                    Some(event) => self.take(event, &mut taken),
                    None => break,
                },
                _ = ticks.tick() => {
                    self.progress.mark(Task::Collect);
                    self.board.tick(self.clock.now().boottime_ms);
                }
            }
            let full = self.batch.readings_max <= taken.len();
            if full || (!taken.is_empty() && cut_at <= tokio::time::Instant::now()) {
                cuts.send(std::mem::take(&mut taken)).await?;
                cut_at = tokio::time::Instant::now() + self.batch.interval;
                self.progress.mark(Task::Collect);
            }
        }
        while let Ok(event) = events.try_recv() {
            self.take(event, &mut taken);
        }
        if !taken.is_empty() {
            cuts.send(taken).await?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event, taken: &mut Vec<Taken>) {
        let Some(sensor) = self.sensors.get_mut(&event.sensor) else {
            tracing::debug!(sensor = event.sensor, "not configured");
            return;
        };
        let place = usize::try_from(sensor.number).unwrap_or(usize::MAX);
        match event.kind {
            EventKind::Measured(measurements) => {
                let time = self.clock.now();
                self.board.note_measured(place, &measurements, time);
                for measurement in measurements {
                    let one = sensor.take(&event.sensor, measurement, time);
                    self.board.note_taken(&one.reading);
                    taken.push(one);
                }
            }
            EventKind::Failed(error) => self.board.note_failed(place, &error),
        }
    }
}

impl Sensor {
    fn take(&mut self, name: &str, measurement: Measurement, time: Time) -> Taken {
        let class = self.channel_classes.get(&measurement.channel);
        let class = class.copied().unwrap_or(self.class);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Taken {
            reading: Reading {
                sensor: name.to_owned(),
                sensor_number: self.number,
                sequence,
                time,
                measurement,
            },
            class,
        }
    }
}

/// How often an idle collector says that it is alive.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use wire::{Quality, Value};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readings_are_numbered_per_sensor_without_a_gap_and_cut_by_time() {
        let mut running = Running::start(1000);
        running.measure("b", 1).await;
        assert_eq!(running.cuts.recv().await.unwrap().len(), 1);
        let first = tokio::time::Instant::now();
        running.measure("a", 2).await;
        running.measure("b", 1).await;
        running.measure("a", 1).await;
        running.measure("nobody", 1).await;

        let cut = running.cuts.recv().await.unwrap();

        assert_eq!(first.elapsed().as_secs(), 1);

        let numbers: Vec<_> = cut
            .iter()
            .map(|taken| (taken.reading.sensor_number, taken.reading.sequence))
            .collect();
        assert_eq!(numbers, [(0, 0), (0, 1), (1, 1), (0, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_is_cut_at_once() {
        let mut running = Running::start(3);
        let before = tokio::time::Instant::now();
        running.measure("a", 3).await;
        assert_eq!(running.cuts.recv().await.unwrap().len(), 3);
        assert_eq!(before, tokio::time::Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_may_have_a_class_of_its_own() {
        let mut running = Running::start(1);
        running.measure("b", 1).await;
        assert_eq!(running.cuts.recv().await.unwrap()[0].class, Class::Critical);
        running.measure("a", 1).await;
        assert_eq!(running.cuts.recv().await.unwrap()[0].class, Class::Normal);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_hands_over_what_was_taken() {
        let mut running = Running::start(1000);
        running.measure("a", 1).await;
        running.stop.cancel();
        assert_eq!(running.cuts.recv().await.unwrap().len(), 1);
        assert_eq!(running.cuts.recv().await, None);
    }

    struct Running {
        events: mpsc::Sender<Event>,
        cuts: mpsc::Receiver<Vec<Taken>>,
        stop: CancellationToken,
    }

    impl Running {
        fn start(readings_max: usize) -> Self {
            let sensors = [config("a"), config("b")];
            let clock = Clock::new().unwrap();
            let collector = Collector::new(
                &sensors,
                BatchConfig {
                    interval: Duration::from_secs(1),
                    readings_max,
                },
                clock.clone(),
                Arc::new(Board::new(&sensors)),
                Progress::new(clock),
            );
            let (events, receiver) = mpsc::channel(16);
            let (sender, cuts) = mpsc::channel(1);
            let stop = CancellationToken::new();
            tokio::spawn(collector.run(receiver, sender, stop.clone()));
            Self { events, cuts, stop }
        }

        async fn measure(&self, sensor: &str, channels: usize) {
            let measurement = Measurement {
                channel: "x".into(),
                value: Value::Integer(1),
                unit: None,
                quality: Quality::Ok,
            };
            let event = Event {
                sensor: sensor.into(),
                kind: EventKind::Measured(vec![measurement; channels]),
            };
            self.events.send(event).await.unwrap();
        }
    }

    fn config(name: &str) -> SensorConfig {
        SensorConfig {
            name: name.into(),
            class: Class::Normal,
            source: "rs485".into(),
            enabled: true,
            interval: Duration::from_secs(1),
            silent_after: Duration::from_secs(60),
            channel_classes: match name {
                "b" => BTreeMap::from([("x".to_owned(), Class::Critical)]),
                _ => BTreeMap::new(),
            },
        }
    }
}
