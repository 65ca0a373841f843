//! Pseudo-terminals in place of serial ports.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use drivers::modbus::{ByteOrder, ChannelConfig, DataType, DeviceConfig, Register};
use drivers::serial::{BusConfig, Parity};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use wire::Decimal;

/// One end to open by path, the other held by the test; unplugged when dropped.
pub(crate) struct Pty {
    /// What the device on the port reads and writes.
    pub(crate) device: File,
    /// The port.
    pub(crate) path: PathBuf,
    /// Keeps the device's side readable while nobody has the port open.
    _port: OwnedFd,
}

impl Pty {
    pub(crate) fn open() -> Self {
        let ends = openpty(None, None).unwrap();
        let mut settings = tcgetattr(&ends.slave).unwrap();
        cfmakeraw(&mut settings);
        tcsetattr(&ends.slave, SetArg::TCSANOW, &settings).unwrap();
        Self {
            path: ttyname(&ends.slave).unwrap(),
            device: ends.master.into(),
            _port: ends.slave,
        }
    }
}

pub(crate) fn bus(port: impl Into<PathBuf>) -> BusConfig {
    BusConfig {
        name: "bus".to_owned(),
        port: port.into(),
        baud_rate: 9600,
        data_bits: 8,
        parity: Parity::None,
        stop_bits: 1,
        timeout: Duration::from_secs(2),
        pause_between_requests: Duration::ZERO,
    }
}

pub(crate) fn device(slave_id: u8, channels: Vec<ChannelConfig>) -> DeviceConfig {
    DeviceConfig {
        sensor: format!("sensor-{slave_id}"),
        slave_id,
        interval: Duration::from_millis(100),
        timeout: None,
        byte_order: ByteOrder::Cdab,
        channels,
    }
}

pub(crate) fn channel(name: &str, register: Register, address: u16) -> ChannelConfig {
    ChannelConfig {
        name: name.to_owned(),
        register,
        address,
        data_type: DataType::Uint16,
        length: 1,
        scale: Decimal::new(1, 0),
        offset: Decimal::new(0, 0),
        unit: None,
        range: None,
        invalid: vec![],
    }
}
