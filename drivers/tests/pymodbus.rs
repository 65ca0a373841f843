//! Our master against slaves that others wrote: pymodbus, at the far end of a cable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod pty;

use std::env;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use drivers::modbus::{Bus, DataType, DeviceConfig, Register};
use drivers::{Event, EventKind, SensorError};
use pty::{Pty, bus, channel, device};
use tokio::sync::mpsc;
use wire::{Decimal, Measurement, Quality, Value};

#[tokio::test]
async fn a_foreign_slave_is_read_as_its_manual_says() {
    let mut temperature = channel("temperature", Register::Input, 0);
    temperature.scale = Decimal::parse("0.1").unwrap();
    let mut humidity = channel("humidity", Register::Input, 1);
    humidity.scale = Decimal::parse("0.1").unwrap();
    let co2 = channel("co2", Register::Input, 2);
    let mut flow = channel("flow", Register::Holding, 10);
    flow.data_type = DataType::Float32;
    let mut setpoint = channel("setpoint", Register::Holding, 20);
    setpoint.scale = Decimal::parse("0.1").unwrap();
    let channels = vec![temperature, humidity, co2, flow, setpoint];

    let events = events_of(
        "3",
        vec![device(1, channels.clone()), device(2, channels)],
        6,
    )
    .await;

    for (sensor, coldest) in [("sensor-1", 20), ("sensor-2", 30)] {
        let measured = measured(&events, sensor);
        assert!(measured.len() >= 2, "{events:?}");
        for measurements in measured {
            let value = |name| {
                let found = measurements.iter().find(|it| it.channel == name);
                found.unwrap().value.clone()
            };
            let Value::Decimal(temperature) = value("temperature") else {
                panic!("{measurements:?}");
            };
            assert!(Decimal::new(coldest, 0) <= temperature);
            assert!(temperature < Decimal::new(coldest + 10, 0));
            assert_eq!(value("humidity"), decimal("63.1"));
            assert_eq!(value("co2"), Value::Integer(612));
            assert_eq!(value("flow"), Value::Float(1.25));
            assert_eq!(value("setpoint"), decimal("19"));
            assert!(measurements.iter().all(|it| it.quality == Quality::Ok));
        }
    }
}

#[tokio::test]
async fn the_longest_request_is_answered() {
    let channels = (3..128).map(|address| channel("value", Register::Input, address));

    let events = events_of("200", vec![device(1, channels.collect())], 1).await;

    let measured = measured(&events, "sensor-1");
    let values: Vec<_> = measured[0].iter().map(|it| it.value.clone()).collect();
    assert_eq!(values, (3..128).map(Value::Integer).collect::<Vec<_>>());
}

#[tokio::test]
async fn silence_and_refusals_are_told_apart() {
    let unknown = channel("unknown", Register::Input, 3);
    let value = channel("value", Register::Input, 2);

    let events = events_of(
        "3",
        vec![device(1, vec![unknown]), device(17, vec![value])],
        4,
    )
    .await;

    for (sensor, error) in [
        ("sensor-1", SensorError::Exception(2)),
        ("sensor-17", SensorError::Timeout),
    ] {
        let failed = EventKind::Failed(error);
        let mut of_sensor = events
            .iter()
            .filter(|event| event.sensor == sensor)
            .peekable();
        assert!(of_sensor.peek().is_some());
        assert!(of_sensor.all(|event| event.kind == failed), "{events:?}");
    }
}

fn decimal(text: &str) -> Value {
    Value::Decimal(Decimal::parse(text).unwrap())
}

/// Runs a bus of `devices` against pymodbus, until so many events came.
async fn events_of(registers: &str, devices: Vec<DeviceConfig>, count: usize) -> Vec<Event> {
    let cable = Cable::new();
    let _slaves = Slaves::start(&cable.ends[0].path, registers);
    let (sender, mut receiver) = mpsc::channel(1);
    let bus = Bus::new(bus(&cable.ends[1].path), devices);
    let mut events = Vec::new();
    tokio::select! {
        () = bus.run(sender) => panic!("the bus ended"),
        () = async {
            while events.len() < count {
                events.push(receiver.recv().await.unwrap());
            }
        } => {}
    }
    events
}

fn measured<'a>(events: &'a [Event], sensor: &str) -> Vec<&'a [Measurement]> {
    let events = events.iter().filter(|event| event.sensor == sensor);
    let measured = events.map(|event| match &event.kind {
        EventKind::Measured(measurements) => measurements.as_slice(),
        EventKind::Failed(error) => panic!("{error}"),
    });
    measured.collect()
}

/// Two ports joined by a cable.
struct Cable {
    ends: [Pty; 2],
}

impl Cable {
    fn new() -> Self {
        let ends = [Pty::open(), Pty::open()];
        for (from, to) in [(0, 1), (1, 0)] {
            let mut from = ends[from].device.try_clone().unwrap();
            let mut to = ends[to].device.try_clone().unwrap();
            // Ends with the test's process: the ports stay open as long as the cable copies.
            thread::spawn(move || io::copy(&mut from, &mut to));
        }
        Self { ends }
    }
}

/// Running slaves; gone on drop.
struct Slaves(Child);

impl Slaves {
    /// Starts them, and waits until they listen.
    fn start(port: &Path, registers: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = env::var_os("GATEWAYD_PYTHON")
            .map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
        assert!(python.exists(), "no {}: run make setup", python.display());
        let process = Command::new(python)
            .arg(root.join("demo/python/modbus_slave.py"))
            .arg(port)
            .arg(registers)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut slaves = Self(process);
        let mut line = String::new();
        let output = slaves.0.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "pymodbus did not start: run make setup");
        slaves
    }
}

impl Drop for Slaves {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
