//! What stands between a sensor and its measurement.

use std::fmt;
use std::path::PathBuf;

use crate::ble::DecodeError;
use crate::modbus::{ExceptionWords, FrameError};

/// Why a sensor delivered nothing.
///
/// Each variant has a [`word`](Self::word) for metrics, journal and JSON, a sentence (`Display`)
/// and an [`advice`](Self::advice). Comparable, so that a caller reports changes only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SensorError {
    /// The device did not answer in time.
    #[error("no answer")]
    Timeout,

    /// An answer arrived with a wrong checksum: noise, a collision, or wrong line settings.
    #[error("the answer's checksum is wrong")]
    Crc,

    /// The device understood the request and refused it; holds the Modbus exception code.
    #[error("the device refuses: {}", ExceptionWords(*.0))]
    Exception(u8),

    /// A Modbus answer arrived, but not one to our question.
    #[error(transparent)]
    Format(#[from] FrameError),

    /// A Bluetooth payload arrived, but not one of the configured format.
    #[error(transparent)]
    Payload(#[from] DecodeError),

    /// The port or adapter is not there, or no longer.
    #[error("{0} is not there")]
    Absent(Attachment),

    /// The port is there, but not as a serial port with these settings.
    #[error("{0} {1}")]
    Unusable(Attachment, Fault),

    /// This process may not open it.
    #[error("no permission to open {0}")]
    Denied(Attachment),

    /// Another program has it open.
    #[error("{0} is held by {holder}", holder = Held(.1.as_ref()))]
    Held(Attachment, Option<Holder>),
}

impl SensorError {
    /// Returns the one word under which status, metrics and journal know this error.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Crc => "crc",
            Self::Exception(_) => "exception",
            Self::Payload(DecodeError::Encrypted) => "wrong_key",
            Self::Format(_) | Self::Payload(_) => "format",
            Self::Absent(_) | Self::Unusable(..) => "absent",
            Self::Denied(_) => "permission",
            Self::Held(..) => "held",
        }
    }

    /// Returns what a person at the gateway can do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Timeout => "check its power, wiring, slave_id and baud_rate",
            Self::Crc => "check parity, baud_rate, shielding and the bus termination",
            Self::Exception(_) => "compare register, address and type with the device's manual",
            Self::Format(error) => error.advice(),
            Self::Payload(DecodeError::Encrypted) => "switch the sensor's encryption off",
            Self::Payload(_) => "compare format and address with what gatewayctl scan ble shows",
            Self::Absent(Attachment::Port(_)) => {
                "plug it in, or choose a port from /dev/serial/by-id; tried again every 5 s"
            }
            Self::Absent(Attachment::Adapter(_)) => {
                "plug it in, or choose an adapter from bluetoothctl list"
            }
            Self::Absent(Attachment::BlueZ) => "systemctl status bluetooth",
            Self::Unusable(_, Fault::NotSerial) => "choose a port from /dev/serial/by-id",
            Self::Unusable(_, Fault::Settings) => "choose settings that its driver knows",
            Self::Unusable(_, Fault::Io(_)) => "look into dmesg; replug it",
            Self::Denied(Attachment::Port(_)) => "adduser gatewayd dialout; restart",
            Self::Denied(Attachment::Adapter(_) | Attachment::BlueZ) => {
                "allow gatewayd to use org.bluez in the D-Bus policy"
            }
            Self::Held(..) => "end it; tried again every 5 s",
        }
    }
}

/// What a source reaches its sensors through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// A serial port, as configured.
    Port(PathBuf),
    /// A Bluetooth adapter, as configured (`auto` if any would do).
    Adapter(String),
    /// The Bluetooth daemon.
    BlueZ,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(path) => write!(f, "{}", path.display()),
            Self::Adapter(name) if name == "auto" => f.write_str("a Bluetooth adapter"),
            Self::Adapter(name) => write!(f, "the Bluetooth adapter {name:?}"),
            Self::BlueZ => f.write_str("the Bluetooth daemon"),
        }
    }
}

/// What is wrong with a port that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file is something else.
    #[error("is no serial port")]
    NotSerial,
    /// The driver took the settings and keeps others.
    #[error("does not do the configured baud_rate, data_bits, parity or stop_bits")]
    Settings,
    /// The kernel reports a failure.
    #[error("fails: {0}")]
    Io(std::io::ErrorKind),
}

/// The program that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its command name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

struct Held<'a>(Option<&'a Holder>);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Holder { name, pid }) => write!(f, "{name} (pid {pid})"),
            None => f.write_str("another program"),
        }
    }
}
