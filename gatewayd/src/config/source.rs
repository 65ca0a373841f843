//! `[[bus]]` and `[ble]`: where sensors are attached.

use std::path::{Path, PathBuf};
use std::time::Duration;

use drivers::serial::{BusConfig, Parity};

use super::ble::parse_address;
use super::table::{At, LATER, Table};
use super::value::Span;

/// What `source` says for Bluetooth; no bus has this name.
pub(super) const BLE: &str = "ble";

/// A serial port as its file describes it.
pub(super) struct Bus<'f> {
    pub(super) item: String,
    pub(super) name: Option<At<'f, &'f str>>,
    pub(super) port: Option<At<'f, PathBuf>>,
    pub(super) config: BusConfig,
}

impl<'f> Bus<'f> {
    /// Reads its table.
    pub(super) fn read(mut table: Table<'f>) -> Self {
        let name = table.item_name();
        if let Some(name) = name.filter(|name| name.it == BLE) {
            table.wrong(
                name.place,
                "name",
                "\"ble\" means Bluetooth; choose another",
            );
        }
        if !table.has("port") {
            table.missing("port", PORT.1);
        }
        let parse = |text: &str| Path::new(text).has_root().then(|| PathBuf::from(text));
        let port = table.parsed("port", parse, PORT);
        let baud_rate = table.integer("baud_rate", BAUD_RATE_MIN..=BAUD_RATE_MAX);
        let data_bits = table.integer("data_bits", 5..=8);
        let parity = table.word("parity", &PARITIES, &[]);
        let stop_bits = table.integer("stop_bits", 1..=2);
        let timeout = table.duration("timeout", &TIMEOUT);
        let pause = table.table("workarounds").and_then(|mut workarounds| {
            let pause = workarounds.duration("pause_between_requests", &PAUSE);
            workarounds.refuse(&["pause_after_connect"], LATER);
            workarounds.finish();
            pause
        });
        table.refuse(&["rs485"], LATER);
        let item = table.item();
        table.finish();
        let config = BusConfig {
            name: name.map(|name| name.it.to_owned()).unwrap_or_default(),
            port: port
                .as_ref()
                .map(|port| port.it.clone())
                .unwrap_or_default(),
            baud_rate: baud_rate.map_or(9600, |it| it.it),
            data_bits: data_bits.map_or(8, |it| it.it),
            parity: parity.map_or(Parity::None, |it| it.it),
            stop_bits: stop_bits.map_or(1, |it| it.it),
            timeout: timeout.unwrap_or(Duration::from_secs(1)),
            pause_between_requests: pause.unwrap_or_default(),
        };
        Self {
            item,
            name,
            port,
            config,
        }
    }
}

/// Reads `[ble]`, and returns the adapter's name.
pub(super) fn adapter(mut ble: Table<'_>) -> Option<String> {
    let parse = |text: &str| {
        let number = text.strip_prefix("hci").unwrap_or_default();
        let is_device = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let fine = text == ANY_ADAPTER || is_device || parse_address(text).is_some();
        fine.then(|| text.to_owned())
    };
    let like = r#""auto", a name such as "hci1", or its address"#;
    let adapter = ble.parsed("adapter", parse, ("an adapter", like));
    ble.word("unknown", &[("ignore", ())], &["list", "collect"]);
    ble.refuse(&["max_connections"], LATER);
    ble.finish();
    adapter.map(|adapter| adapter.it)
}

/// The first one by name.
pub(super) const ANY_ADAPTER: &str = "auto";

/// Waiting time of a request: below, no device answers; above, one device stops all others.
pub(super) const TIMEOUT: Span = Span {
    bounds: Duration::from_millis(10)..=Duration::from_secs(60),
    or_zero: false,
};

/// As long as a request may take, and no longer.
const PAUSE: Span = Span {
    bounds: Duration::ZERO..=Duration::from_secs(60),
    or_zero: false,
};

const PARITIES: [(&str, Parity); 3] =
    [("N", Parity::None), ("E", Parity::Even), ("O", Parity::Odd)];

const PORT: (&str, &str) = (
    "the path of a port",
    r#"one such as "/dev/serial/by-id/..." or "/dev/ttyUSB0""#,
);

/// Slowest rate that serial adapters offer.
const BAUD_RATE_MIN: u32 = 300;

/// Fastest rate that Linux has a name for (`B4000000`, termios(3)).
const BAUD_RATE_MAX: u32 = 4_000_000;
