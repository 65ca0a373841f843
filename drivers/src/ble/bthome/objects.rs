//! The objects of BTHome v2: id, channel, length, factor and unit.

use wire::{Decimal, Unit, Value};

use Width::{S8, S16, S32, U8, U16, U24, U32};

/// One row of the document's tables.
#[derive(Debug)]
pub(super) struct Object {
    id: u8,
    pub(super) channel: &'static str,
    kind: Kind,
}

/// What an object contains.
pub(super) enum Content {
    PacketId(u8),
    /// `None` if there is nothing to report: the event 0, or text that is no text.
    Measured(Option<Value>),
    /// What the device is, and its firmware.
    DeviceInformation,
}

#[derive(Debug)]
enum Kind {
    PacketId,
    DeviceInformation(usize),
    Number(Number),
    State,
    Button,
    Dimmer,
    Command,
    Text,
    Raw,
}

/// The integer on the air, times `mantissa` × 10^`exponent`, in `unit`.
#[derive(Debug)]
struct Number {
    width: Width,
    mantissa: i64,
    exponent: i8,
    unit: Option<Unit>,
}

/// How an integer lies on the air, least significant byte first.
#[derive(Clone, Copy, Debug)]
enum Width {
    U8,
    U16,
    U24,
    U32,
    S8,
    S16,
    S32,
}

impl Object {
    /// Splits the first object off `payload`; returns it, its value's bytes and what follows.
    ///
    /// `None` if the payload ends here, within the object, or with an unknown id.
    pub(super) fn split_from(payload: &[u8]) -> Option<(&'static Self, &[u8], &[u8])> {
        let (&id, rest) = payload.split_first()?;
        let object = OBJECTS.iter().find(|object| object.id == id)?;
        let (bytes, rest) = match &object.kind {
            Kind::PacketId | Kind::State | Kind::Button => (1, rest),
            Kind::Dimmer => (2, rest),
            Kind::DeviceInformation(bytes) => (*bytes, rest),
            Kind::Number(number) => (number.width.bytes(), rest),
            Kind::Text | Kind::Raw => {
                let (&length, rest) = rest.split_first()?;
                (usize::from(length), rest)
            }
            Kind::Command => {
                let (&length, rest) = rest.split_first()?;
                (1 + usize::from(length & COMMAND_LENGTH), rest)
            }
        };
        let (value, rest) = rest.split_at_checked(bytes)?;
        Some((object, value, rest))
    }

    /// The unit of its values, if it has one in the SenML registry.
    pub(super) fn unit(&self) -> Option<Unit> {
        match &self.kind {
            Kind::Number(number) => number.unit,
            Kind::PacketId
            | Kind::DeviceInformation(_)
            | Kind::State
            | Kind::Button
            | Kind::Dimmer
            | Kind::Command
            | Kind::Text
            | Kind::Raw => None,
        }
    }

    /// Reads the bytes that [`split_from`](Self::split_from) returned with this object.
    pub(super) fn content(&self, bytes: &[u8]) -> Content {
        let first = bytes.first().copied().unwrap_or_default();
        let value = match &self.kind {
            Kind::PacketId => return Content::PacketId(first),
            Kind::DeviceInformation(_) => return Content::DeviceInformation,
            Kind::Number(number) => Some(number.value(bytes)),
            Kind::State => Some(Value::Bool(first != 0)),
            Kind::Button => word(BUTTON_EVENTS, first).map(|event| Value::Text(event.to_owned())),
            Kind::Dimmer => {
                let steps = bytes.get(1).copied().unwrap_or_default();
                word(DIMMER_EVENTS, first).map(|event| Value::Text(format!("{event} {steps}")))
            }
            Kind::Command => word(COMMANDS, first).map(|command| {
                let arguments = bytes.get(1..).unwrap_or_default();
                Value::Text(with_arguments(command, arguments))
            }),
            Kind::Text => std::str::from_utf8(bytes)
                .ok()
                .filter(|text| !text.is_empty())
                .map(|text| Value::Text(text.to_owned())),
            Kind::Raw => (!bytes.is_empty()).then(|| Value::Bytes(bytes.to_vec())),
        };
        Content::Measured(value)
    }
}

impl Number {
    fn value(&self, bytes: &[u8]) -> Value {
        // 32 bits on the air and at most 26 bits of mantissa: this fits.
        let mantissa = self.width.integer(bytes) * self.mantissa;
        match self.exponent {
            0 => Value::Integer(mantissa),
            exponent => Value::Decimal(Decimal::new(mantissa, exponent)),
        }
    }
}

impl Width {
    const fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 => 2,
            Self::U24 => 3,
            Self::U32 | Self::S32 => 4,
        }
    }

    /// The integer in as many `bytes` as [`bytes`](Self::bytes) says.
    fn integer(self, bytes: &[u8]) -> i64 {
        let magnitude = bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| (sum << 8) | i64::from(*byte));
        let sign_bit = match self {
            Self::U8 | Self::U16 | Self::U24 | Self::U32 => return magnitude,
            Self::S8 => 1_i64 << 7,
            Self::S16 => 1 << 15,
            Self::S32 => 1 << 31,
        };
        (magnitude ^ sign_bit) - sign_bit
    }
}

fn word(words: &[(u8, &'static str)], code: u8) -> Option<&'static str> {
    words
        .iter()
        .find(|(known, _)| *known == code)
        .map(|(_, word)| *word)
}

fn with_arguments(command: &str, arguments: &[u8]) -> String {
    let mut text = command.to_owned();
    if !arguments.is_empty() {
        text.push(' ');
    }
    for byte in arguments {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

const fn number(
    id: u8,
    channel: &'static str,
    width: Width,
    (mantissa, exponent): (i64, i8),
    unit: Option<Unit>,
) -> Object {
    let kind = Kind::Number(Number {
        width,
        mantissa,
        exponent,
        unit,
    });
    Object { id, channel, kind }
}

const fn state(id: u8, channel: &'static str) -> Object {
    let kind = Kind::State;
    Object { id, channel, kind }
}

const fn other(id: u8, channel: &'static str, kind: Kind) -> Object {
    Object { id, channel, kind }
}

/// The low bits of a command's length byte; the others are reserved.
const COMMAND_LENGTH: u8 = 0x1F;

/// The international pound is 0.45359237 kg, and the object counts hundredths of it.
const POUND: (i64, i8) = (45_359_237, -10);

const BUTTON_EVENTS: &[(u8, &str)] = &[
    (0x01, "press"),
    (0x02, "double_press"),
    (0x03, "triple_press"),
    (0x04, "long_press"),
    (0x05, "long_double_press"),
    (0x06, "long_triple_press"),
    (0x80, "hold_press"),
    (0x81, "hold_release"),
];

const DIMMER_EVENTS: &[(u8, &str)] = &[(0x01, "rotate_left"), (0x02, "rotate_right")];

const COMMANDS: &[(u8, &str)] = &[
    (0x00, "off"),
    (0x01, "on"),
    (0x02, "toggle"),
    (0x03, "step_up"),
    (0x04, "step_down"),
];

// Too long for a row of the table.
const DENSITY: Option<Unit> = Some(Unit::MicrogramPerCubicMeter);
const ACCELERATION: Option<Unit> = Some(Unit::MeterPerSquareSecond);
const CONDUCTIVITY: Option<Unit> = Some(Unit::SiemensPerMeter);

/// Factor and unit on the air are in the comment where they are not the ones returned.
const OBJECTS: &[Object] = &[
    other(0x00, "packet-id", Kind::PacketId),
    number(0x01, "battery", U8, (1, 0), Some(Unit::BatteryPercent)),
    number(0x02, "temperature", S16, (1, -2), Some(Unit::Celsius)),
    number(0x03, "humidity", U16, (1, -2), Some(Unit::RelativeHumidity)),
    number(0x04, "pressure", U24, (1, 0), Some(Unit::Pascal)), // 0.01 hPa
    number(0x05, "illuminance", U24, (1, -2), Some(Unit::Lux)),
    number(0x06, "mass", U16, (1, -2), Some(Unit::Kilogram)),
    number(0x07, "mass", U16, POUND, Some(Unit::Kilogram)), // 0.01 lb
    number(0x08, "dewpoint", S16, (1, -2), Some(Unit::Celsius)),
    number(0x09, "count", U8, (1, 0), Some(Unit::Count)),
    number(0x0A, "energy", U24, (1, 0), Some(Unit::WattHour)), // 0.001 kWh
    number(0x0B, "power", U24, (1, -2), Some(Unit::Watt)),
    number(0x0C, "voltage", U16, (1, -3), Some(Unit::Volt)),
    number(0x0D, "pm25", U16, (1, 0), DENSITY),
    number(0x0E, "pm10", U16, (1, 0), DENSITY),
    state(0x0F, "generic-boolean"),
    state(0x10, "power-on"),
    state(0x11, "opening"),
    number(0x12, "co2", U16, (1, 0), Some(Unit::PartsPerMillion)),
    number(0x13, "tvoc", U16, (1, 0), DENSITY),
    number(0x14, "moisture", U16, (1, -2), Some(Unit::Percent)),
    state(0x15, "battery-low"),
    state(0x16, "battery-charging"),
    state(0x17, "carbon-monoxide"),
    state(0x18, "cold"),
    state(0x19, "connectivity"),
    state(0x1A, "door"),
    state(0x1B, "garage-door"),
    state(0x1C, "gas-detected"),
    state(0x1D, "heat"),
    state(0x1E, "light"),
    state(0x1F, "lock"), // true: unlocked
    state(0x20, "moisture-detected"),
    state(0x21, "motion"),
    state(0x22, "moving"),
    state(0x23, "occupancy"),
    state(0x24, "plug"),
    state(0x25, "presence"),
    state(0x26, "problem"),
    state(0x27, "running"),
    state(0x28, "safety"), // true: safe
    state(0x29, "smoke"),
    state(0x2A, "sound"),
    state(0x2B, "tamper"),
    state(0x2C, "vibration"),
    state(0x2D, "window"),
    number(0x2E, "humidity", U8, (1, 0), Some(Unit::RelativeHumidity)),
    number(0x2F, "moisture", U8, (1, 0), Some(Unit::Percent)),
    other(0x3A, "button", Kind::Button),
    other(0x3B, "command", Kind::Command),
    other(0x3C, "dimmer", Kind::Dimmer),
    number(0x3D, "count", U16, (1, 0), Some(Unit::Count)),
    number(0x3E, "count", U32, (1, 0), Some(Unit::Count)),
    number(0x3F, "rotation", S16, (1, -1), Some(Unit::Degree)),
    number(0x40, "distance", U16, (1, -3), Some(Unit::Meter)), // 1 mm
    number(0x41, "distance", U16, (1, -1), Some(Unit::Meter)),
    number(0x42, "duration", U24, (1, -3), Some(Unit::Second)),
    number(0x43, "current", U16, (1, -3), Some(Unit::Ampere)),
    number(0x44, "speed", U16, (1, -2), Some(Unit::MeterPerSecond)),
    number(0x45, "temperature", S16, (1, -1), Some(Unit::Celsius)),
    number(0x46, "uv-index", U8, (1, -1), None),
    number(0x47, "volume", U16, (1, -4), Some(Unit::CubicMeter)), // 0.1 L
    number(0x48, "volume", U16, (1, -6), Some(Unit::CubicMeter)), // 1 mL
    number(0x49, "volume-flow-rate", U16, (1, -3), None),         // m³/h
    number(0x4A, "voltage", U16, (1, -1), Some(Unit::Volt)),
    number(0x4B, "gas", U24, (1, -3), Some(Unit::CubicMeter)),
    number(0x4C, "gas", U32, (1, -3), Some(Unit::CubicMeter)),
    number(0x4D, "energy", U32, (1, 0), Some(Unit::WattHour)), // 0.001 kWh
    number(0x4E, "volume", U32, (1, -6), Some(Unit::CubicMeter)), // 0.001 L
    number(0x4F, "water", U32, (1, -6), Some(Unit::CubicMeter)), // 0.001 L
    number(0x50, "timestamp", U32, (1, 0), Some(Unit::Second)), // since 1970-01-01 00:00 UTC
    number(0x51, "acceleration", U16, (1, -3), ACCELERATION),
    number(0x52, "gyroscope", U16, (1, -3), None), // °/s
    other(0x53, "text", Kind::Text),
    other(0x54, "raw", Kind::Raw),
    number(0x55, "volume-storage", U32, (1, -6), Some(Unit::CubicMeter)), // 0.001 L
    number(0x56, "conductivity", U16, (1, -4), CONDUCTIVITY),             // 1 µS/cm
    number(0x57, "temperature", S8, (1, 0), Some(Unit::Celsius)),
    number(0x58, "temperature", S8, (35, -2), Some(Unit::Celsius)),
    number(0x59, "count", S8, (1, 0), Some(Unit::Count)),
    number(0x5A, "count", S16, (1, 0), Some(Unit::Count)),
    number(0x5B, "count", S32, (1, 0), Some(Unit::Count)),
    number(0x5C, "power", S32, (1, -2), Some(Unit::Watt)),
    number(0x5D, "current", S16, (1, -3), Some(Unit::Ampere)),
    number(0x5E, "direction", U16, (1, -2), Some(Unit::Degree)),
    number(0x5F, "precipitation", U16, (1, -4), Some(Unit::Meter)), // 0.1 mm
    number(0x60, "channel", U8, (1, 0), None),
    number(0x61, "rotational-speed", U16, (1, 0), Some(Unit::PerMinute)),
    number(0x62, "speed", S32, (1, -6), Some(Unit::MeterPerSecond)),
    number(0x63, "acceleration", S32, (1, -6), ACCELERATION),
    number(0x64, "light-level", U8, (1, 0), None),
    number(0x65, "settings-revision", U8, (1, 0), None),
    other(0xF0, "device-type", Kind::DeviceInformation(2)),
    other(0xF1, "firmware", Kind::DeviceInformation(4)),
    other(0xF2, "firmware", Kind::DeviceInformation(3)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_ascend_and_channels_are_names() {
        assert!(OBJECTS.is_sorted_by(|one, next| one.id < next.id));
        assert!(OBJECTS.iter().all(|object| wire::is_name(object.channel)));
    }
}
