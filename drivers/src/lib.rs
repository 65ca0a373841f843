//! Sensors: bytes from the air or a wire in, measurements out.
//!
//! A *source* (a serial bus, the Bluetooth adapter, a recording) is one future that the caller
//! runs. It sends an [`Event`] for each thing a sensor said or failed to say, and never ends
//! because of a sensor. Formats are pure decoders beside it, `&[u8]` in and measurements out.
//!
//! Nothing here knows the time of day: who receives the events stamps them.

pub mod ble;
mod error;
pub mod modbus;
pub mod replay;
pub mod serial;

pub use error::{Attachment, Fault, Holder, SensorError};

use wire::Measurement;

/// What one sensor just said, or why it said nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Name of the sensor, as configured.
    pub sensor: String,
    /// What happened.
    pub kind: EventKind,
}

/// The two things that happen to a sensor.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// It delivered; one measurement for each channel, at least one.
    Measured(Vec<Measurement>),
    /// It did not. The source goes on by itself; the same error may come again.
    Failed(SensorError),
}

/// Where sources send their events.
///
/// The caller chooses the bound. A serial bus waits for room, since the devices keep their values
/// until asked; radio does not wait, so what finds no room is counted and dropped.
pub type Events = tokio::sync::mpsc::Sender<Event>;
