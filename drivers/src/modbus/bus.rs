//! Whose turn it is on a bus, and what happens when a device or the port is sick.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::exchange::{AskError, Line};
use super::frame::Request;
use super::{DeviceConfig, plan};
use crate::serial::{self, BusConfig};
use crate::{Attachment, Event, EventKind, Events, SensorError};

/// A serial bus with its devices; this process is its only master.
#[derive(Debug)]
pub struct Bus {
    config: BusConfig,
    devices: Vec<DeviceConfig>,
}

impl Bus {
    /// Describes the bus; nothing is opened before [`run`](Self::run).
    #[must_use]
    pub fn new(config: BusConfig, devices: Vec<DeviceConfig>) -> Self {
        Self { config, devices }
    }

    /// Reads the devices, each at its interval, until nobody receives `events` any more.
    ///
    /// Waits while `events` is full; what was not read meanwhile is read later.
    ///
    /// * A device that fails costs its own turn. After three failures in a row it is tried less and
    ///   less often, down to once a minute.
    /// * A device that refuses one request is still asked the others.
    /// * A port that is missing, held or lost fails each sensor once, and is tried every 5 s.
    pub async fn run(self, events: Events) {
        tokio::select! {
            () = events.closed() => {}
            never = self.serve(&events) => match never {},
        }
    }

    async fn serve(&self, events: &Events) -> Infallible {
        let mut told = None;
        loop {
            let error = match serial::open(&self.config) {
                Ok(port) => {
                    tracing::info!(bus = self.config.name, "port opened");
                    told = None;
                    let Err(error) = self.poll(Line::new(port, &self.config), events).await;
                    tracing::warn!(bus = self.config.name, %error, "port lost");
                    SensorError::Absent(Attachment::Port(self.config.port.clone()))
                }
                Err(error) => error,
            };
            if told.as_ref() != Some(&error) {
                tracing::debug!(bus = self.config.name, %error, "port not open");
                for device in &self.devices {
                    tell(events, device, EventKind::Failed(error.clone())).await;
                }
                told = Some(error);
            }
            sleep(REOPEN_AFTER).await;
        }
    }

    /// Gives every device its turns, until the port fails.
    async fn poll<P: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut line: Line<P>,
        events: &Events,
    ) -> io::Result<Infallible> {
        let mut turns: Vec<Turn<'_>> = self.devices.iter().map(Turn::new).collect();
        loop {
            let Some(turn) = turns.iter_mut().min_by_key(|turn| turn.due) else {
                return pending().await;
            };
            line.listen(turn.due).await?;
            turn.take(&mut line, self.config.timeout, events).await?;
        }
    }
}

/// One device's place in the order of the bus.
struct Turn<'a> {
    device: &'a DeviceConfig,
    requests: Vec<Request>,
    due: Instant,
    /// Failures since the device last answered.
    failures: u32,
}

impl<'a> Turn<'a> {
    fn new(device: &'a DeviceConfig) -> Self {
        Self {
            device,
            requests: plan::requests(device),
            due: Instant::now(),
            failures: 0,
        }
    }

    /// Asks the device for everything, says what it said, and sets its next turn.
    async fn take<P: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        line: &mut Line<P>,
        bus_timeout: Duration,
        events: &Events,
    ) -> io::Result<()> {
        let timeout = self.device.timeout.unwrap_or(bus_timeout);
        let mut measurements = Vec::new();
        let mut failure = None;
        for request in &self.requests {
            match line.ask(request, timeout).await {
                Ok(registers) => measurements.extend(plan::read(self.device, request, &registers)),
                Err(AskError::Port(error)) => return Err(error),
                // It is alive and dislikes this request, not the others.
                Err(AskError::Device(error @ SensorError::Exception(_))) => failure = Some(error),
                Err(AskError::Device(error)) => {
                    failure = Some(error);
                    break;
                }
            }
        }

        self.failures = match &failure {
            None | Some(SensorError::Exception(_)) => 0,
            Some(_) => self.failures.saturating_add(1),
        };
        self.due = self.next(Instant::now(), timeout);
        if !measurements.is_empty() {
            tell(events, self.device, EventKind::Measured(measurements)).await;
        }
        if let Some(error) = failure {
            let (sensor, failures) = (&self.device.sensor, self.failures);
            tracing::debug!(sensor, failures, %error, "no reading");
            tell(events, self.device, EventKind::Failed(error)).await;
        }
        Ok(())
    }

    /// Returns when the device is asked again.
    fn next(&self, now: Instant, timeout: Duration) -> Instant {
        let interval = self.device.interval.max(INTERVAL_MIN);
        if self.failures == 0 {
            // Keeps the rhythm; a bus that cannot keep up skips turns instead of queueing them.
            return (self.due + interval).max(now);
        }
        let rest = (timeout * LATE_ANSWER_TIMEOUTS).max(LATE_ANSWER_MIN);
        let back_off = match self.failures.checked_sub(FAILURES_TOLERATED) {
            None => Duration::ZERO,
            Some(step) => {
                let doubled = BACK_OFF_MIN.saturating_mul(2_u32.saturating_pow(step));
                doubled.min(BACK_OFF_MAX)
            }
        };
        now + interval.max(rest).max(back_off)
    }
}

/// Waits for room; if nobody receives any more, [`Bus::run`] is about to end anyway.
async fn tell(events: &Events, device: &DeviceConfig, kind: EventKind) {
    let sensor = device.sensor.clone();
    let _ = events.send(Event { sensor, kind }).await;
}

/// How long a missing port is left alone: a replugged adapter is back within seconds, and looking
/// costs next to nothing.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

/// A shorter interval would let one device fill the bus.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A failed device is left alone for three of its timeouts, so that an answer up to four times
/// later than allowed meets a line that throws it away.
const LATE_ANSWER_TIMEOUTS: u32 = 3;

/// Below it, short timeouts would make the rest too short for devices that think for a second.
const LATE_ANSWER_MIN: Duration = Duration::from_secs(2);

/// Failures in a row until the back-off starts: noise rarely hits three times.
const FAILURES_TOLERATED: u32 = 3;

/// First back-off; doubles with each further failure.
const BACK_OFF_MIN: Duration = Duration::from_secs(5);

/// So that a repaired device is back within a minute.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;
    use std::{cmp, iter};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::mpsc;
    use tokio::time::sleep_until;
    use wire::Value;

    use super::*;
    use crate::modbus::fixture::{channel, device};
    use crate::modbus::{DataType, FrameError};
    use crate::serial::Parity;

    /// The scripted slaves answer every register with its address plus 1000 × their id.
    #[tokio::test(start_paused = true)]
    async fn devices_are_read_at_their_intervals() {
        let mut slow = device(2);
        slow.interval = Duration::from_secs(10);
        let run = Run::of([device(1), slow], |request| at_once(right(request)));

        let events = run.during(Duration::from_secs(60)).await.events;

        assert_eq!(values(&events, "sensor-1"), vec![1000; 60]);
        assert_eq!(values(&events, "sensor-2"), vec![2000; 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_never_taken_for_the_next() {
        for delay in (330..1500).step_by(70) {
            let run = Run::of([two_requests(1)], |request| {
                vec![(Duration::from_millis(delay), right(request))]
            });

            let events = run.during(Duration::from_secs(300)).await.events;

            assert!(events.len() > 3, "{delay} ms");
            for event in events {
                assert_eq!(
                    event.kind,
                    EventKind::Failed(SensorError::Timeout),
                    "{delay} ms"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_does_not_disturb_the_next_device() {
        let run = Run::of([device(1), device(2)], |request| {
            let delay = if request.slave_id == 1 { 325 } else { 20 };
            vec![(Duration::from_millis(delay), right(request))]
        });

        let events = run.during(Duration::from_secs(60)).await.events;

        assert!(values(&events, "sensor-2").len() > 55);
        assert_eq!(failures(&events, "sensor-2"), []);
        assert_eq!(values(&events, "sensor-1"), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_device_costs_its_own_turns_only() {
        let run = Run::of([device(1), device(2)], |request| match request.slave_id {
            1 => vec![],
            _ => at_once(right(request)),
        });

        let ran = run.during(Duration::from_secs(600)).await;

        assert!(values(&ran.events, "sensor-2").len() >= 595);
        let asked = ran
            .asked
            .iter()
            .filter(|(_, request)| request.slave_id == 1);
        let asked: Vec<Duration> = asked.map(|(at, _)| *at).collect();
        let pauses = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs());
        let pauses: Vec<u64> = pauses.collect();
        assert_eq!(pauses[..6], [2, 2, 5, 10, 20, 40]);
        assert!(pauses[6..].iter().all(|pause| (60..=62).contains(pause)));
        assert_eq!(failures(&ran.events, "sensor-1").len(), asked.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_comes_back_is_read_as_before() {
        let mut asked = 0;
        let run = Run::of([device(1)], |request| {
            asked += 1;
            if asked < 8 {
                vec![]
            } else {
                at_once(right(request))
            }
        });

        let events = run.during(Duration::from_secs(200)).await.events;

        assert_eq!(failures(&events, "sensor-1").len(), 7);
        assert!(values(&events, "sensor-1").len() > 50);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_answer_is_named_and_survived() {
        let mut noisy = right(&REQUEST);
        noisy[3] ^= 1;
        let mut cut = right(&REQUEST);
        cut.truncate(4);
        let wrong_device = FrameError::WrongDevice {
            answered: 9,
            asked: 1,
        };
        let wrong_function = FrameError::WrongFunction {
            answered: 3,
            asked: 4,
        };
        let wrong_length = FrameError::WrongLength {
            bytes: 9,
            expected: 7,
        };
        for (bytes, error) in [
            (noisy, SensorError::Crc),
            (vec![0x55; 40], FrameError::Short { bytes: 40 }.into()),
            (vec![0xFF; 40], SensorError::Crc),
            (cut, FrameError::Short { bytes: 4 }.into()),
            (REQUEST.encode().to_vec(), FrameError::Echo.into()),
            (
                right(&Request {
                    slave_id: 9,
                    ..REQUEST
                }),
                wrong_device.into(),
            ),
            (answer(&[1, 3, 2, 0, 0]), wrong_function.into()),
            (answer(&[1, 4, 4, 0, 0, 0, 0]), wrong_length.into()),
            (answer(&[1, 0x84, 6]), SensorError::Exception(6)),
        ] {
            let mut first = Some(bytes);
            let run = Run::of([device(1)], |request| {
                at_once(first.take().unwrap_or_else(|| right(request)))
            });

            let events = run.during(Duration::from_secs(10)).await.events;

            assert_eq!(failures(&events, "sensor-1"), [error]);
            assert!(values(&events, "sensor-1").len() >= 7);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_pieces_is_read() {
        let run = Run::of([device(1)], |request| {
            let pieces = right(request).into_iter().enumerate();
            let at = |place| Duration::from_millis(40 * u64::try_from(place).unwrap());
            pieces
                .map(|(place, byte)| (at(place), vec![byte]))
                .collect()
        });
        let events = run.during(Duration::from_secs(10)).await.events;
        assert_eq!(values(&events, "sensor-1"), vec![1000; 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_does_not_hide_the_others() {
        let run = Run::of([two_requests(1)], |request| match request.address {
            0 => at_once(answer(&[1, 0x84, 2])),
            _ => at_once(right(request)),
        });

        let events = run.during(Duration::from_secs(10)).await.events;

        assert_eq!(values(&events, "sensor-1"), vec![1010; 10]);
        let refused = vec![SensorError::Exception(2); 10];
        assert_eq!(failures(&events, "sensor-1"), refused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_never_silent_is_named() {
        let run = Run::of([device(1)], |_| {
            let bytes = iter::successors(Some(Duration::ZERO), |at| Some(*at + CHARACTER));
            bytes.take(20_000).map(|at| (at, vec![0x55])).collect()
        });

        let events = run.during(Duration::from_secs(15)).await.events;

        let babble = SensorError::from(FrameError::Babble);
        assert!(failures(&events, "sensor-1").contains(&babble));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_cannot_keep_up_shares_its_time_fairly() {
        let devices = [1, 2, 3].map(|slave_id| DeviceConfig {
            interval: Duration::from_millis(100),
            ..device(slave_id)
        });
        let run = Run::of(devices, |request| {
            vec![(Duration::from_millis(150), right(request))]
        });

        let events = run.during(Duration::from_secs(60)).await.events;

        for sensor in ["sensor-1", "sensor-2", "sensor-3"] {
            let read = values(&events, sensor).len();
            assert!((100..=134).contains(&read), "{sensor}: {read}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unplugged_port_is_noticed_between_turns() {
        let mut lazy = device(1);
        lazy.interval = Duration::from_secs(3600);
        let bus = Bus::new(config(), vec![lazy]);
        let (port, mut other) = tokio::io::duplex(256);
        let (events, mut received) = mpsc::channel(10);
        let start = Instant::now();

        let (error, ()) = tokio::join!(bus.poll(Line::new(port, &bus.config), &events), async {
            let mut request = [0; 8];
            other.read_exact(&mut request).await.unwrap();
            other.write_all(&right(&REQUEST)).await.unwrap();
            received.recv().await.unwrap();
            drop(other);
        });

        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_port_fails_each_sensor_once() {
        let bus = Bus::new(config(), vec![device(1), device(2)]);
        let (events, mut received) = mpsc::channel(10);

        let hour = Duration::from_secs(3600);
        let ended = tokio::time::timeout(hour, bus.run(events)).await;

        assert!(ended.is_err());
        let absent = SensorError::Absent(Attachment::Port(config().port));
        assert_eq!(absent.word(), "absent");
        for sensor in ["sensor-1", "sensor-2"] {
            let event = received.recv().await.unwrap();
            assert_eq!(event.sensor, sensor);
            assert_eq!(event.kind, EventKind::Failed(absent.clone()));
        }
        assert_eq!(received.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_ends_when_nobody_listens() {
        let bus = Bus::new(config(), vec![device(1)]);
        let (events, received) = mpsc::channel(1);
        drop(received);
        bus.run(events).await;
    }

    const REQUEST: Request = Request {
        slave_id: 1,
        register: crate::modbus::Register::Input,
        address: 0,
        count: 1,
    };

    /// A character of 10 bits at 9600 Bd.
    const CHARACTER: Duration = Duration::from_micros(1_042);

    fn config() -> BusConfig {
        BusConfig {
            name: "bus".to_owned(),
            port: "/dev/no-such-port".into(),
            baud_rate: 9600,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            timeout: Duration::from_secs(1),
            pause_between_requests: Duration::ZERO,
        }
    }

    fn two_requests(slave_id: u8) -> DeviceConfig {
        let channels = [0, 10].map(|address| channel("value", address, DataType::Uint16));
        DeviceConfig {
            channels: channels.to_vec(),
            ..device(slave_id)
        }
    }

    /// What goes over the wire after a request: bytes, and how long after it.
    type Script = Vec<(Duration, Vec<u8>)>;

    fn at_once(bytes: Vec<u8>) -> Script {
        vec![(Duration::ZERO, bytes)]
    }

    fn right(request: &Request) -> Vec<u8> {
        let id = u16::from(request.slave_id);
        let mut body = vec![
            request.slave_id,
            4,
            u8::try_from(request.count * 2).unwrap(),
        ];
        let registers = request.address..request.address + request.count;
        body.extend(registers.flat_map(|it| (it + 1000 * id).to_be_bytes()));
        answer(&body)
    }

    /// Adds the checksum.
    fn answer(body: &[u8]) -> Vec<u8> {
        crate::modbus::frame::framed(body)
    }

    fn values(events: &[Event], sensor: &str) -> Vec<i64> {
        let events = events.iter().filter(|event| event.sensor == sensor);
        let measured = events.filter_map(|event| match &event.kind {
            EventKind::Measured(measurements) => Some(measurements),
            EventKind::Failed(_) => None,
        });
        let values = measured.flatten().map(|it| {
            let Value::Integer(value) = it.value else {
                panic!("{it:?}");
            };
            value
        });
        values.collect()
    }

    fn failures(events: &[Event], sensor: &str) -> Vec<SensorError> {
        let events = events.iter().filter(|event| event.sensor == sensor);
        let failed = events.filter_map(|event| match &event.kind {
            EventKind::Failed(error) => Some(error.clone()),
            EventKind::Measured(_) => None,
        });
        failed.collect()
    }

    /// A bus whose slaves follow a script; all in virtual time.
    struct Run<S> {
        bus: Bus,
        script: S,
    }

    /// What happened in a [`Run`].
    struct Ran {
        events: Vec<Event>,
        /// Requests on the wire, with the time since the start.
        asked: Vec<(Duration, Request)>,
    }

    impl<S: FnMut(&Request) -> Script> Run<S> {
        fn of(devices: impl Into<Vec<DeviceConfig>>, script: S) -> Self {
            let bus = Bus::new(config(), devices.into());
            Self { bus, script }
        }

        async fn during(self, time: Duration) -> Ran {
            let (port, slaves) = tokio::io::duplex(1024);
            let (sender, mut receiver) = mpsc::channel(10_000);
            let (mut asked, start) = (Vec::new(), Instant::now());
            tokio::select! {
                lost = self.bus.poll(Line::new(port, &self.bus.config), &sender) => {
                    panic!("{lost:?}");
                }
                () = answer_all(slaves, self.script, |request| {
                    asked.push((start.elapsed(), request));
                }) => {}
                () = sleep(time - Duration::from_millis(1)) => {}
            }
            drop(sender);
            let events = iter::from_fn(|| receiver.try_recv().ok()).collect();
            Ran { events, asked }
        }
    }

    /// Plays all slaves, as deaf to each other as they are on a real bus.
    async fn answer_all(
        mut line: DuplexStream,
        mut script: impl FnMut(&Request) -> Script,
        mut asked: impl FnMut(Request),
    ) {
        let mut pending = BinaryHeap::new();
        loop {
            let next = pending.peek().map(|cmp::Reverse((at, _))| *at);
            let mut request = [0; 8];
            tokio::select! {
                read = line.read_exact(&mut request) => {
                    read.unwrap();
                    let request = Request::decode(&request).unwrap();
                    let now = Instant::now();
                    let answers = script(&request).into_iter();
                    pending.extend(answers.map(|(delay, bytes)| cmp::Reverse((now + delay, bytes))));
                    asked(request);
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let cmp::Reverse((_, bytes)) = pending.pop().unwrap();
                    line.write_all(&bytes).await.unwrap();
                }
            }
        }
    }
}
