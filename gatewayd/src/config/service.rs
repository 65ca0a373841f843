//! `[[service]]`: who receives readings.

use channel::{Fingerprint, KeyKind};
use link::Address;
use secret::Secret;

use super::table::{At, LATER, Table};
use super::words::quoted;
use super::{Patterns, ServiceConfig};

/// A service as its file describes it.
pub(super) struct Service<'f> {
    pub(super) item: String,
    pub(super) name: Option<At<'f, &'f str>>,
    pub(super) key: Option<At<'f, Fingerprint>>,
    /// The patterns that name one sensor and no other.
    pub(super) wanted: Vec<At<'f, String>>,
    pub(super) config: ServiceConfig,
}

impl<'f> Service<'f> {
    /// Reads its table.
    pub(super) fn read(mut table: Table<'f>) -> Self {
        let name = table.item_name();
        let key = table.parsed("key", parse_key, KEY);
        let addresses = read_addresses(&mut table, key.map(|key| key.it));
        let (sensors, wanted) = read_sensors(&mut table);
        let relay_token = read_token(&mut table);
        table.refuse(&["share"], LATER);
        let item = table.item();
        table.finish();
        let config = ServiceConfig {
            name: name.map(|name| name.it.to_owned()).unwrap_or_default(),
            addresses,
            key: key.map(|key| key.it),
            sensors,
            relay_token,
        };
        Self {
            item,
            name,
            key,
            wanted,
            config,
        }
    }
}

/// The service of a gateway whose files name none: it takes everything, and its ticket says where
/// it is.
pub(super) fn usual() -> ServiceConfig {
    ServiceConfig {
        name: "cloud".to_owned(),
        addresses: Vec::new(),
        key: None,
        sensors: Patterns::default(),
        relay_token: None,
    }
}

fn parse_key(text: &str) -> Option<Fingerprint> {
    let key: Fingerprint = text.parse().ok()?;
    (key.kind() == KeyKind::ServiceIdentity).then_some(key)
}

fn read_addresses(table: &mut Table<'_>, key: Option<Fingerprint>) -> Vec<Address> {
    let Some(found) = table.find("addresses") else {
        return Vec::new();
    };
    let parse = |text: &str| text.parse::<Address>().ok();
    let Some(addresses) = table.parsed_list("addresses", parse, ADDRESS) else {
        return Vec::new();
    };
    // Those that are none are told already, and count.
    let number = found.it.as_array().map_or(0, |list| list.len());
    if !(1..=ADDRESSES_MAX).contains(&number) {
        let why = format!("has {number} entries; write 1 to {ADDRESSES_MAX}, or leave it out");
        table.wrong(found.place, "addresses", why);
    }
    for address in &addresses {
        if let (
            Address::Relay {
                service: Some(service),
                ..
            },
            Some(key),
        ) = (&address.it, key)
            && *service != key
        {
            let found = quoted(&address.it.to_string());
            let why = format!("{found} leads to another service than key; write one of the two");
            table.wrong(address.place, "addresses", why);
        }
    }
    addresses.into_iter().map(|address| address.it).collect()
}

/// A secret is a reference, never a value; what was found instead is not told, as any screen may be
/// sent to support.
fn read_token(table: &mut Table<'_>) -> Option<Secret> {
    let found = table.find("relay_token")?;
    let text = found.it.as_str();
    let token = text.and_then(|text| Secret::parse("gatewayd", text).ok());
    if token.is_none() {
        let why = r#"is inline; use "credential:NAME" or "file:/PATH""#;
        table.wrong(found.place, "relay_token", why);
    }
    token
}

fn read_sensors<'f>(table: &mut Table<'f>) -> (Patterns, Vec<At<'f, String>>) {
    let mut patterns = Patterns::default();
    let Some(found) = table.find("sensors") else {
        return (patterns, Vec::new());
    };
    let parse = |text: &str| Patterns::default().add(text).then(|| text.to_owned());
    let texts = table
        .parsed_list("sensors", parse, PATTERN)
        .unwrap_or_default();
    if found.it.as_array().is_some_and(|list| list.is_empty()) {
        let why = "is empty, so nothing would leave; leave it out for all sensors";
        table.wrong(found.place, "sensors", why);
    }
    let mut wanted = Vec::new();
    for text in texts {
        patterns.add(&text.it);
        if !text.it.contains('*') {
            let it = text.it.trim_start_matches('!').to_owned();
            wanted.push(At { it, ..text });
        }
    }
    (patterns, wanted)
}

const KEY: (&str, &str) = (
    "the fingerprint of a service",
    r#"the "sv-..." that `gateway-cloud init` printed"#,
);

const ADDRESS: (&str, &str) = ("an address", r#""tcp://HOST:PORT" or "relay://HOST:PORT""#);

const PATTERN: (&str, &str) = (
    "a pattern",
    r#"a sensor's name, with * for any letters and a leading ! to exclude"#,
);

/// Each is tried in turn; with more, a service that is down is noticed late.
const ADDRESSES_MAX: usize = 8;
