//! Ports that are missing, held, unplugged, or no ports; on pseudo-terminals, in real time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod pty;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use drivers::modbus::{Bus, Register};
use drivers::{Attachment, Event, EventKind, Fault, SensorError, serial};
use nix::time::{ClockId, clock_gettime};
use pty::{Pty, bus, channel, device};
use tokio::sync::mpsc;
use wire::Value;

/// What a slave with id 1 answers to a request for input register 0 while it holds 7.
const SEVEN: [u8; 7] = [0x01, 0x04, 0x02, 0x00, 0x07, 0xF8, 0xF2];

#[tokio::test]
async fn an_unplugged_port_fails_once_costs_nothing_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let first = Pty::open();
    symlink(&first.path, &port).unwrap();
    let slave = answer_one(&first, SEVEN);
    let (sender, mut events) = mpsc::channel(10);
    let bus = Bus::new(bus(&port), vec![one_register()]);

    let story = async {
        assert_eq!(value(&events.recv().await.unwrap()), Some(7));
        slave.join().unwrap();
        drop(first);
        // A request may have been on its way.
        let absent = SensorError::Absent(Attachment::Port(port.clone()));
        assert_eq!(failure(&events.recv().await.unwrap()), Some(&absent));

        let before = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        std::fs::remove_file(&port).unwrap();
        let second = Pty::open();
        symlink(&second.path, &port).unwrap();
        let slave = answer_one(&second, SEVEN);
        let event = events.recv().await.unwrap();
        let after = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();

        assert_eq!(value(&event), Some(7));
        assert!(Duration::from(after) - Duration::from(before) < Duration::from_secs(1));
        slave.join().unwrap();
    };
    tokio::select! {
        () = bus.run(sender) => panic!("the bus ended"),
        () = story => {}
    }
}

#[tokio::test]
async fn a_late_answer_on_a_real_terminal_is_thrown_away() {
    let pty = Pty::open();
    let mut line = pty.device.try_clone().unwrap();
    let slave = thread::spawn(move || {
        let mut request = [0; 8];
        line.read_exact(&mut request).unwrap();
        thread::sleep(Duration::from_millis(400));
        line.write_all(&SEVEN).unwrap();
        // 8 in register 0, from now on.
        line.read_exact(&mut request).unwrap();
        line.write_all(&[0x01, 0x04, 0x02, 0x00, 0x08, 0xB8, 0xF6])
            .unwrap();
    });
    let mut device = one_register();
    device.timeout = Some(Duration::from_millis(200));
    let (sender, mut events) = mpsc::channel(10);
    let bus = Bus::new(bus(&pty.path), vec![device]);

    tokio::select! {
        () = bus.run(sender) => panic!("the bus ended"),
        () = async {
            let event = events.recv().await.unwrap();
            assert_eq!(failure(&event), Some(&SensorError::Timeout));
            assert_eq!(value(&events.recv().await.unwrap()), Some(8));
        } => {}
    }
    slave.join().unwrap();
}

#[tokio::test]
async fn a_port_that_is_open_already_names_its_holder() {
    let pty = Pty::open();
    let _first = serial::open(&bus(&pty.path)).unwrap();

    let error = serial::open(&bus(&pty.path)).unwrap_err();

    let SensorError::Held(attachment, Some(holder)) = error else {
        panic!("{error:?}");
    };
    assert_eq!(attachment, Attachment::Port(pty.path.clone()));
    assert_eq!(holder.pid, std::process::id());
    assert!(!holder.name.is_empty());
}

#[tokio::test]
async fn a_closed_port_can_be_opened_again() {
    let pty = Pty::open();
    drop(serial::open(&bus(&pty.path)).unwrap());
    serial::open(&bus(&pty.path)).unwrap();
}

#[tokio::test]
async fn what_is_no_port_is_told_apart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (path, word, text) in [
        (
            Path::new("/dev/no-such-port"),
            "absent",
            "/dev/no-such-port is not there",
        ),
        (
            Path::new("/dev/null"),
            "absent",
            "/dev/null is no serial port",
        ),
        (file.path(), "absent", "is no serial port"),
    ] {
        let error = serial::open(&bus(path)).unwrap_err();
        assert_eq!(error.word(), word);
        assert!(error.to_string().ends_with(text), "{error}");
        assert!(!error.advice().is_empty());
    }
}

#[tokio::test]
async fn a_character_that_does_not_exist_is_refused() {
    let pty = Pty::open();
    let mut config = bus(&pty.path);
    config.data_bits = 9;
    let unusable = SensorError::Unusable(Attachment::Port(pty.path.clone()), Fault::Settings);
    assert_eq!(serial::open(&config).unwrap_err(), unusable);
}

fn one_register() -> drivers::modbus::DeviceConfig {
    device(1, vec![channel("value", Register::Input, 0)])
}

/// Answers the first request, as a thread since the terminal's reads block.
fn answer_one(pty: &Pty, answer: [u8; 7]) -> thread::JoinHandle<()> {
    let mut line: File = pty.device.try_clone().unwrap();
    thread::spawn(move || {
        line.read_exact(&mut [0; 8]).unwrap();
        line.write_all(&answer).unwrap();
    })
}

fn value(event: &Event) -> Option<i64> {
    match &event.kind {
        EventKind::Measured(measurements) => {
            let Value::Integer(value) = measurements.first()?.value else {
                return None;
            };
            Some(value)
        }
        EventKind::Failed(_) => None,
    }
}

fn failure(event: &Event) -> Option<&SensorError> {
    match &event.kind {
        EventKind::Failed(error) => Some(error),
        EventKind::Measured(_) => None,
    }
}
