//! `[[sensor]]`: what makes readings.

use std::collections::BTreeMap;
use std::time::Duration;

use drivers::ble::BleFormat;
use wire::Class;

use super::SensorConfig;
use super::ble::{self, Broadcaster};
use super::modbus::{self, Device};
use super::table::{At, LATER, Table};
use super::value::Span;

/// A sensor as its file describes it.
pub(super) struct Sensor<'f> {
    pub(super) item: String,
    pub(super) name: Option<At<'f, &'f str>>,
    pub(super) source: Option<At<'f, &'f str>>,
    pub(super) config: SensorConfig,
    pub(super) driver: Option<Driver<'f>>,
}

/// What its format adds.
pub(super) enum Driver<'f> {
    /// It is polled on a serial bus.
    Modbus(Device<'f>),
    /// It broadcasts.
    Ble(Broadcaster<'f>),
}

impl<'f> Sensor<'f> {
    /// Reads its table.
    pub(super) fn read(mut table: Table<'f>) -> Self {
        let item = table.item();
        let name = table.item_name();
        if !table.has("source") {
            table.missing("source", r#"the name of a bus, or "ble""#);
        }
        let source = table.text("source");
        if !table.has("format") {
            table.missing("format", r#""modbus", "bthome" or "ruuvi""#);
        }
        let format = table
            .word("format", &FORMATS, &FORMATS_LATER)
            .map(|format| format.it);
        let mut config = read_common(&mut table, format);
        config.name = name.map(|name| name.it.to_owned()).unwrap_or_default();
        config.source = source
            .map(|source| source.it.to_owned())
            .unwrap_or_default();
        refuse_key(&mut table);
        table.refuse(&OF_LATER_FORMATS, LATER);
        let driver = match format {
            Some(Format::Modbus) => {
                let device = modbus::read(&mut table, &mut config);
                table.refuse(&["match", "services"], LATER);
                Some(Driver::Modbus(device))
            }
            Some(Format::Ble(format)) => {
                let broadcaster = ble::read(&mut table, format, &config);
                table.refuse(&OF_MODBUS, "is for format \"modbus\"; leave it out");
                Some(Driver::Ble(broadcaster))
            }
            None => None,
        };
        // Without a format, nobody knows which keys are right.
        if driver.is_some() {
            table.finish();
        }
        Self {
            item,
            name,
            source,
            config,
            driver,
        }
    }
}

/// Reads what every sensor has; its name and source are the caller's.
fn read_common(table: &mut Table<'_>, format: Option<Format>) -> SensorConfig {
    let class = table.word("class", &CLASSES, &[]);
    let enabled = table.boolean("enabled");
    let interval = table.duration("interval", &INTERVAL);
    let interval = interval.unwrap_or(match format {
        Some(Format::Ble(_)) => Duration::ZERO,
        Some(Format::Modbus) | None => POLL_INTERVAL_USUAL,
    });
    let silent_after = table.duration("silent_after", &SILENT_AFTER);
    SensorConfig {
        name: String::new(),
        class: class.map_or(Class::Normal, |class| class.it),
        source: String::new(),
        enabled: enabled.unwrap_or(true),
        interval,
        silent_after: silent_after.unwrap_or(SILENT_AFTER_USUAL_MIN.max(interval * 3)),
        channel_classes: BTreeMap::new(),
    }
}

/// Refuses the key of a sensor that encrypts. A secret is a reference, never a value; what was
/// found instead is not told, as any screen may be sent to support.
fn refuse_key(table: &mut Table<'_>) {
    let Some(key) = table.find("key") else {
        return;
    };
    let is_reference = |key: &str| key.starts_with("credential:") || key.starts_with("file:/");
    let why = match key.it.as_str() {
        Some(key) if is_reference(key) => LATER,
        Some(_) | None => r#"is inline; use "credential:NAME" or "file:/PATH""#,
    };
    table.wrong(key.place, "key", why);
}

/// Formats of this version.
#[derive(Clone, Copy)]
enum Format {
    Modbus,
    Ble(BleFormat),
}

const FORMATS: [(&str, Format); 3] = [
    ("modbus", Format::Modbus),
    ("bthome", Format::Ble(BleFormat::Bthome)),
    ("ruuvi", Format::Ble(BleFormat::Ruuvi)),
];

/// Formats of later versions.
const FORMATS_LATER: [&str; 4] = ["line", "nmea", "gatt", "byte-map"];

/// Keys of formats of later versions.
const OF_LATER_FORMATS: [&str; 5] = ["framing", "max_length", "models", "pattern", "sentences"];

/// Keys of sensors that are polled.
const OF_MODBUS: [&str; 7] = [
    "address_style",
    "busy_retries",
    "max_insert",
    "optimization",
    "slave_id",
    "timeout",
    "workarounds",
];

/// All classes with the words used in configuration.
pub(super) const CLASSES: [(&str, Class); 3] = [
    ("bulk", Class::Bulk),
    ("normal", Class::Normal),
    ("critical", Class::Critical),
];

/// Often enough for climate, and a bus of 30 devices keeps up.
const POLL_INTERVAL_USUAL: Duration = Duration::from_secs(10);

/// Faster, one device would fill a bus; zero: as fast as it goes.
const INTERVAL: Span = Span {
    bounds: Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60),
    or_zero: true,
};

/// A month of silence is an answer, too.
const SILENT_AFTER: Span = Span {
    bounds: Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 60 * 60),
    or_zero: false,
};

/// Radio sensors miss minutes now and then.
const SILENT_AFTER_USUAL_MIN: Duration = Duration::from_secs(10 * 60);
