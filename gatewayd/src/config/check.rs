//! What only all files together can tell: what is there twice, and what is not there at all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::draft::Draft;
use super::mistakes::{Notebook, Place};
use super::sensor::{Driver, Sensor};
use super::source::BLE;
use super::table::At;
use super::words::{instead, quoted};

/// Notes what may be there once and is there again: names, ports, keys, addresses.
pub(super) fn repeats(draft: &Draft<'_>, notebook: &Notebook) {
    let (services, buses, sensors) = (&draft.services, &draft.buses, &draft.sensors);

    let names = services.iter().map(|it| Claim::to_name(&it.item, it.name));
    unique(notebook, names, |name| format!("name {}", quoted(name)));
    let names = buses.iter().map(|it| Claim::to_name(&it.item, it.name));
    unique(notebook, names, |name| format!("name {}", quoted(name)));
    let names = sensors.iter().map(|it| Claim::to_name(&it.item, it.name));
    unique(notebook, names, |name| format!("name {}", quoted(name)));

    // Two services of one key would share their lanes in the spool.
    let keys = services
        .iter()
        .map(|it| Claim::new(&it.item, it.name, it.key));
    unique(notebook, keys, |_| "key".to_owned());
    let ports = buses
        .iter()
        .map(|it| Claim::new(&it.item, it.name, it.port.clone()));
    unique(notebook, ports, |port| {
        format!("port {}", quoted(&port.to_string_lossy()))
    });
    let slave_ids = sensors
        .iter()
        .map(|it| Claim::new(&it.item, it.name, slave_id(it)));
    unique(notebook, slave_ids, |(bus, id)| {
        format!("slave_id {id} on {}", quoted(bus))
    });
    let addresses = sensors
        .iter()
        .map(|it| Claim::new(&it.item, it.name, address(it)));
    unique(notebook, addresses, |_| "address".to_owned());
}

/// Notes what is named and not there.
pub(super) fn references(draft: &Draft<'_>, notebook: &Notebook) {
    for sensor in &draft.sensors {
        if let Some(source) = sensor.source {
            check_source(draft, notebook, sensor, source);
        }
    }
    let known = draft
        .sensors
        .iter()
        .filter_map(|sensor| Some(sensor.name?.it));
    for service in &draft.services {
        for wanted in &service.wanted {
            if known.clone().all(|name| name != wanted.it) {
                let (found, instead) = (quoted(&wanted.it), instead(&wanted.it, known.clone()));
                let why = format!("sensors: {found} is no sensor{instead}");
                notebook.note(wanted.place, format!("{}: {why}", service.item));
            }
        }
    }
}

fn check_source(draft: &Draft<'_>, notebook: &Notebook, sensor: &Sensor<'_>, source: At<'_, &str>) {
    let bus = draft.buses.iter().find(|bus| bus.config.name == source.it);
    let found = quoted(source.it);
    let why = match (&sensor.driver, bus) {
        (_, None) if source.it != BLE => {
            let buses = draft.buses.iter().filter_map(|bus| Some(bus.name?.it));
            let known = buses.chain([BLE]);
            format!("source {found} is no bus{}", instead(source.it, known))
        }
        (Some(Driver::Modbus(_)), None) => {
            format!("source {found} does not speak \"modbus\"; write the name of a bus")
        }
        (Some(Driver::Ble(_)), Some(_)) => {
            format!("source {found} is a bus, its format is broadcast; write {BLE:?}")
        }
        // A frame is made of bytes with 8 bits (MODBUS over Serial Line V1.02, 2.5.1).
        (Some(Driver::Modbus(_)), Some(bus)) if bus.config.data_bits != 8 => {
            format!("source {found} has not 8 data_bits, which \"modbus\" needs; change the bus")
        }
        (_, _) => return,
    };
    notebook.note(source.place, format!("{}: {why}", sensor.item));
}

/// Somebody's claim to something that only one may have.
struct Claim<'a, 'f, K> {
    /// Who claims it, as mistakes begin.
    item: &'a str,
    /// Who has it, in the mistake of the next who claims it.
    by: String,
    /// What is claimed, if anything.
    what: Option<At<'f, K>>,
}

impl<'a, 'f, K> Claim<'a, 'f, K> {
    fn new(item: &'a str, name: Option<At<'f, &'f str>>, what: Option<At<'f, K>>) -> Self {
        let by = name.map_or_else(|| "another".to_owned(), |name| quoted(name.it));
        Self { item, by, what }
    }
}

impl<'a, 'f> Claim<'a, 'f, &'f str> {
    fn to_name(item: &'a str, name: Option<At<'f, &'f str>>) -> Self {
        Self::new(item, None, name)
    }
}

fn slave_id<'f>(sensor: &Sensor<'f>) -> Option<At<'f, (&'f str, u8)>> {
    let Some(Driver::Modbus(device)) = &sensor.driver else {
        return None;
    };
    let At { it, place } = device.slave_id?;
    let bus = sensor.source?.it;
    Some(At {
        it: (bus, it),
        place,
    })
}

fn address<'f>(sensor: &Sensor<'f>) -> Option<At<'f, [u8; 6]>> {
    match &sensor.driver {
        Some(Driver::Ble(broadcaster)) => broadcaster.address,
        Some(Driver::Modbus(_)) | None => None,
    }
}

/// Notes each claim to what an earlier one has.
fn unique<'a, 'f: 'a, K: Ord>(
    notebook: &Notebook,
    claims: impl Iterator<Item = Claim<'a, 'f, K>>,
    show: impl Fn(&K) -> String,
) {
    let mut taken: BTreeMap<K, (String, Place<'f>)> = BTreeMap::new();
    for claim in claims {
        let Some(At { it, place }) = claim.what else {
            continue;
        };
        match taken.entry(it) {
            Entry::Vacant(free) => {
                free.insert((claim.by, place));
            }
            Entry::Occupied(first) => {
                let (by, other) = first.get();
                let (what, other) = (show(first.key()), other.seen_from(place));
                let text = format!("{}: {what} is taken by {by} ({other})", claim.item);
                notebook.note(place, text);
            }
        }
    }
}
