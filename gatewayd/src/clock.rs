//! Time as a gateway knows it: boot id, time since boot, wall time and how far to trust it.

use std::{path::Path, time::SystemTime};

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use wire::{ClockState, Time};

/// The machine's clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    boot_id: [u8; 16],
}

impl Clock {
    /// Learns which boot this is.
    ///
    /// # Errors
    ///
    /// If the kernel does not say; the daemon cannot run without, since a time since boot means
    /// nothing without the boot.
    pub fn new() -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(hex.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .with_context(|| format!("{BOOT_ID} is no UUID"))?;
        Ok(Self { boot_id: bytes })
    }

    /// The kernel's id of this boot.
    #[must_use]
    pub fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    /// Both clocks, read together.
    #[must_use]
    pub fn now(&self) -> Time {
        Time {
            wall_ms: wall_ms(),
            boottime_ms: boottime_ms(),
            clock: if Path::new(SYNCHRONISED).exists() {
                ClockState::Synchronised
            } else {
                ClockState::Unsynchronised
            },
        }
    }
}

/// Milliseconds since 1970 by the wall clock, which may be wrong.
fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// Milliseconds since boot, suspended time included; never jumps.
fn boottime_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let milliseconds = u64::try_from(time.tv_nsec() / 1_000_000).unwrap_or(0);
        seconds * 1000 + milliseconds
    })
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// systemd-timesyncd and its look-alikes make this file when the clock was set from the network
/// (systemd-timesyncd.service(8)).
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_boot_is_the_kernels() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let ours = Clock::new().unwrap().now().boottime_ms;
        let difference = (ours as f64) / 1000.0 - seconds;
        assert!((0.0..60.0).contains(&difference), "{difference}");
    }

    #[test]
    fn the_boot_id_stays() {
        assert_eq!(
            Clock::new().unwrap().boot_id(),
            Clock::new().unwrap().boot_id()
        );
    }
}
