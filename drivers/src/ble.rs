//! Bluetooth Low Energy: sensors that broadcast what they measure.
//!
//! [`Scanner`] listens on one adapter and turns the advertisements of the configured sensors into
//! events. The formats are pure functions: [`bthome::decode`] and [`ruuvi::decode`].

pub mod bthome;
mod radio;
pub mod ruuvi;
mod scanner;
mod thinner;

pub use scanner::{Counters, Scanner};

use std::time::Duration;

/// What to listen to, and with which adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BleConfig {
    /// `auto` (the first by name), a name such as `hci1`, or an adapter's address.
    pub adapter: String,
    /// The sensors; whatever else is on the air is ignored.
    pub sensors: Vec<BleSensor>,
}

/// One broadcasting sensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BleSensor {
    /// Name of the sensor, as configured.
    pub sensor: String,
    /// Its Bluetooth address, in the order in which it is written.
    pub address: [u8; 6],
    /// How its payload is written.
    pub format: BleFormat,
    /// At most one measurement of a channel passes in each interval; zero passes all.
    pub interval: Duration,
}

/// Formats of broadcast payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BleFormat {
    /// BTHome v2, see [`bthome`].
    Bthome,
    /// RuuviTag format 5, see [`ruuvi`].
    Ruuvi,
}

/// Why a payload gave no measurements.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is longer or shorter than its format.
    #[error("the payload has {bytes} bytes, its format has {expected}")]
    Length {
        /// Length of the payload.
        bytes: usize,
        /// Length that the format has.
        expected: usize,
    },

    /// It is of a version of BTHome other than 2.
    #[error("the payload is BTHome version {0}, known is version 2")]
    Version(u8),

    /// It is of a Ruuvi format other than 5.
    #[error("the payload is Ruuvi format {0}, known is format 5")]
    Format(u8),

    /// It is encrypted.
    #[error("encrypted, needs a key")]
    Encrypted,

    /// It is in the right format, and nothing in it is known.
    #[error("the payload holds nothing known")]
    Nothing,
}
