//! The Bluetooth scanner against a bus and a BlueZ of our own, with btleplug as it ships between
//! them.
//!
//! libdbus finds the bus in an environment variable, which a process must not change while it
//! runs. So each test starts a bus, and then itself once more with the variable set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use demo::bluez;
use drivers::ble::{BleConfig, BleFormat, BleSensor, Scanner};
use drivers::{Attachment, Event, EventKind, SensorError};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use zbus::fdo::{DBusProxy, NameOwnerChangedStream};

#[test]
fn both_sensors_are_heard_from_their_first_advertisement_on() {
    on_a_bus_of_our_own(
        "both_sensors_are_heard_from_their_first_advertisement_on",
        async {
            let _bluez = start_bluez(1000);
            let mut scan = Scan::start();

            let [door, bed] = scan.temperatures(2).await;
            assert_eq!(door, ["25.06", "25.07"]);
            assert_eq!(bed, ["24.3", "24.305"]);
        },
    );
}

#[test]
fn a_bluez_that_appears_later_is_found() {
    on_a_bus_of_our_own("a_bluez_that_appears_later_is_found", async {
        let mut scan = Scan::start();
        let absent = EventKind::Failed(SensorError::Absent(Attachment::BlueZ));
        for sensor in ["door", "bed-1"] {
            let event = scan.next().await;
            assert_eq!((event.sensor.as_str(), &event.kind), (sensor, &absent));
        }

        let _bluez = start_bluez(100);

        scan.temperatures(3).await;
    });
}

#[test]
fn an_attempt_in_vain_leaves_no_connection_behind() {
    on_a_bus_of_our_own("an_attempt_in_vain_leaves_no_connection_behind", async {
        let mut clients = watch_clients().await;
        let _scan = Scan::start();

        let attempt = next_client(&mut clients, Seen::Coming).await;
        assert_eq!(next_client(&mut clients, Seen::Leaving).await, attempt);
    });
}

#[test]
fn a_cancelled_scan_leaves_the_bus() {
    on_a_bus_of_our_own("a_cancelled_scan_leaves_the_bus", async {
        let _bluez = start_bluez(20);
        let mut clients = watch_clients().await;
        let mut scan = Scan::start();
        let scanner = next_client(&mut clients, Seen::Coming).await;
        scan.temperatures(5).await;

        drop(scan);

        assert_eq!(next_client(&mut clients, Seen::Leaving).await, scanner);
    });
}

/// Runs a test in a process whose system bus is a fresh one.
fn on_a_bus_of_our_own(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(ON_OUR_BUS).is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(test);
        return;
    }
    let bus = Bus::start();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ON_OUR_BUS, "1")
        .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        !said.contains("panicked"),
        "a task of btleplug panicked: {said}"
    );
}

/// A private message bus, gone on drop.
struct Bus {
    daemon: Child,
    address: String,
    /// Removed when `drop` has ended the daemon.
    _folder: tempfile::TempDir,
}

impl Bus {
    /// Starts one, and waits until it listens.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("bus.conf");
        let socket = folder.path().join("bus");
        std::fs::write(
            &configuration,
            BUS_CONFIGURATION.replace("SOCKET", socket.to_str().unwrap()),
        )
        .unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", configuration.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is not installed; see CONTRIBUTING.md, Tools");
        let address = first_line(&mut daemon);
        Self {
            daemon,
            address,
            _folder: folder,
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A stand-in as a process, gone on drop.
struct Bluez(Child);

fn start_bluez(interval_ms: u64) -> Bluez {
    let mut process = Command::new(env!("CARGO_BIN_EXE_bluez-stand-in"))
        .arg(format!("--interval-ms={interval_ms}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = first_line(&mut process);
    let bluez = Bluez(process);
    assert_eq!(said, "READY");
    bluez
}

impl Drop for Bluez {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn first_line(process: &mut Child) -> String {
    let mut line = String::new();
    let stdout = process.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A scanner at work; dropping it cancels the scan.
struct Scan {
    /// Ends its task when dropped.
    _running: JoinSet<Infallible>,
    events: mpsc::Receiver<Event>,
}

impl Scan {
    fn start() -> Self {
        let sensor = |sensor: &str, address, format| BleSensor {
            sensor: sensor.to_owned(),
            address,
            format,
            interval: Duration::ZERO,
        };
        let scanner = Scanner::new(BleConfig {
            adapter: "auto".to_owned(),
            sensors: vec![
                sensor("door", bluez::BTHOME_ADDRESS, BleFormat::Bthome),
                sensor("bed-1", bluez::RUUVI_ADDRESS, BleFormat::Ruuvi),
            ],
        });
        let (sender, events) = mpsc::channel(64);
        let mut running = JoinSet::new();
        running.spawn(scanner.run(sender));
        Self {
            _running: running,
            events,
        }
    }

    async fn next(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("the scanner sends no event").unwrap()
    }

    /// Waits for so many temperatures of each sensor, and returns the door's and the bed's.
    async fn temperatures(&mut self, number: usize) -> [Vec<String>; 2] {
        let mut door = Vec::new();
        let mut bed = Vec::new();
        while door.len() < number || bed.len() < number {
            let event = self.next().await;
            let EventKind::Measured(measurements) = event.kind else {
                panic!("{event:?}");
            };
            let temperature = measurements
                .iter()
                .find(|measurement| measurement.channel == "temperature");
            match event.sensor.as_str() {
                "door" => &mut door,
                _ => &mut bed,
            }
            .push(temperature.unwrap().value.to_string());
        }
        door.truncate(number);
        bed.truncate(number);
        [door, bed]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Coming,
    Leaving,
}

async fn watch_clients() -> NameOwnerChangedStream {
    let bus = zbus::Connection::system().await.unwrap();
    let bus = DBusProxy::new(&bus).await.unwrap();
    bus.receive_name_owner_changed().await.unwrap()
}

/// Waits until some client comes to the bus or leaves it, and returns its unique name.
async fn next_client(clients: &mut NameOwnerChangedStream, wanted: Seen) -> String {
    let client = async {
        loop {
            let change = clients.next().await.unwrap();
            let change = change.args().unwrap();
            let seen = match change.new_owner().as_ref() {
                Some(_) => Seen::Coming,
                None => Seen::Leaving,
            };
            if seen == wanted && change.name().starts_with(':') {
                return change.name().to_string();
            }
        }
    };
    tokio::time::timeout(PATIENCE, client)
        .await
        .expect("no client comes or leaves")
}

/// Longer than the scanner's pause between attempts, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the second start of a test from its first.
const ON_OUR_BUS: &str = "BLE_TEST_ON_OUR_BUS";

const BUS_CONFIGURATION: &str = r#"<!DOCTYPE busconfig PUBLIC
 "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;
