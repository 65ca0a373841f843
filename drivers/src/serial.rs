//! Serial ports: opened exclusively, with the settings that were asked for or not at all.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};
use tokio_serial::{ErrorKind, SerialPort, SerialStream};

pub use tokio_serial::Parity;

use crate::{Attachment, Fault, Holder, SensorError};

/// One serial bus, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusConfig {
    /// Its name, for the journal.
    pub name: String,
    /// The port, best below `/dev/serial/by-id`: the symbolic link is followed at each opening,
    /// since a replugged adapter gets another number.
    pub port: PathBuf,
    /// Bits per second, 300 to 4 000 000.
    pub baud_rate: u32,
    /// Data bits of a character, 5 to 8.
    pub data_bits: u8,
    /// Parity bit of a character.
    pub parity: Parity,
    /// Stop bits of a character, 1 or 2.
    pub stop_bits: u8,
    /// How long a device may think before its answer starts, 10 ms to 1 min.
    pub timeout: Duration,
    /// Silence kept between an answer and the next request, beyond what the protocol asks for.
    pub pause_between_requests: Duration,
}

impl BusConfig {
    /// Returns how long `characters` take on the wire.
    #[must_use]
    pub fn time_of(&self, characters: u32) -> Duration {
        let parity_bits = match self.parity {
            Parity::None => 0,
            Parity::Odd | Parity::Even => 1,
        };
        let bits = 1 + u32::from(self.data_bits) + parity_bits + u32::from(self.stop_bits);
        Duration::from_secs(1) * bits * characters / self.baud_rate.max(1)
    }
}

/// Opens the port of `bus`, for this process alone.
///
/// # Errors
///
/// [`SensorError::Absent`], [`Denied`](SensorError::Denied), [`Held`](SensorError::Held) or
/// [`Unusable`](SensorError::Unusable); each may pass, so try again later.
pub fn open(bus: &BusConfig) -> Result<SerialStream, SensorError> {
    let port = Attachment::Port(bus.port.clone());
    let unusable = |fault| SensorError::Unusable(port.clone(), fault);

    let file = fs::metadata(&bus.port).map_err(|error| refusal(bus, error.kind()))?;
    if !file.file_type().is_char_device() {
        return Err(unusable(Fault::NotSerial));
    }
    let (data_bits, stop_bits) = character(bus).ok_or_else(|| unusable(Fault::Settings))?;
    let stream = tokio_serial::new(bus.port.to_string_lossy(), bus.baud_rate)
        .data_bits(data_bits)
        .parity(bus.parity)
        .stop_bits(stop_bits);
    let stream = SerialStream::open(&stream).map_err(|error| match error.kind {
        ErrorKind::NoDevice => SensorError::Held(port.clone(), holder(&bus.port, &file)),
        ErrorKind::Io(kind) => refusal(bus, kind),
        ErrorKind::InvalidInput => unusable(Fault::Settings),
        ErrorKind::Unknown => unusable(Fault::NotSerial),
    })?;

    // The kernel reports success if it could apply any of the settings, so look at them all.
    let applied = stream.baud_rate().is_ok_and(|it| it == bus.baud_rate)
        && stream.data_bits().is_ok_and(|it| it == data_bits)
        && stream.parity().is_ok_and(|it| it == bus.parity)
        && stream.stop_bits().is_ok_and(|it| it == stop_bits);
    if !applied && !is_pseudo_terminal(&bus.port) {
        return Err(unusable(Fault::Settings));
    }
    Ok(stream)
}

/// Translates the settings of a character; none if there is no such character.
fn character(bus: &BusConfig) -> Option<(tokio_serial::DataBits, tokio_serial::StopBits)> {
    let data_bits = tokio_serial::DataBits::try_from(bus.data_bits).ok()?;
    let stop_bits = tokio_serial::StopBits::try_from(bus.stop_bits).ok()?;
    Some((data_bits, stop_bits))
}

fn refusal(bus: &BusConfig, kind: io::ErrorKind) -> SensorError {
    let port = Attachment::Port(bus.port.clone());
    if kind == io::ErrorKind::NotFound {
        SensorError::Absent(port)
    } else if kind == io::ErrorKind::PermissionDenied {
        SensorError::Denied(port)
    } else {
        SensorError::Unusable(port, Fault::Io(kind))
    }
}

/// A pseudo-terminal has no wire, so parity and the like mean nothing to it.
fn is_pseudo_terminal(port: &Path) -> bool {
    fs::canonicalize(port).is_ok_and(|path| path.starts_with("/dev/pts"))
}

/// Finds the program that holds `port`.
///
/// Its lock is listed for everyone to see. A program that takes no lock is found only among the
/// processes whose files we may look at: our own user's, or all as root.
fn holder(port: &Path, file: &fs::Metadata) -> Option<Holder> {
    let pid = lock_holder(file).or_else(|| open_holder(port))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name = name.trim_end().to_owned();
    Some(Holder { name, pid })
}

/// Looks for `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> ...`, see `proc_locks(5)`.
fn lock_holder(file: &fs::Metadata) -> Option<u32> {
    let (major, minor) = (major(file.dev()), minor(file.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let kind = words.nth(1)?;
        let pid = words.nth(2)?;
        let held = words.next()?;
        (kind == "FLOCK" && held == wanted).then(|| pid.parse().ok())?
    })
}

/// Looks at the open files of every process.
fn open_holder(port: &Path) -> Option<u32> {
    let port = fs::canonicalize(port).ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
                let mut files = files.flatten();
                files.any(|file| fs::read_link(file.path()).is_ok_and(|target| target == port))
            })
        })
}
