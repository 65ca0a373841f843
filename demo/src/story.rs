//! What happens in the demo, in order.

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use demo::{
    accounts::{Accounts, stored_readings},
    process::{success, until},
    secrecy::{Found, Needles, files_below},
    site::{Site, number},
};
use serde_json::Value;

use crate::table;

/// Tells the story; `true` if everything held that it promises.
pub(crate) async fn tell(folder: &Path) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut site = set_up(folder).await?;

    say("readings arrive")?;
    let arrived = site.readings();
    until("the first readings", ARRIVAL_TIME_MAX, || async {
        Ok(Accounts::read(&Value::Null, &arrived)
            .is_ok_and(|books| EXPECTED_SENSORS <= books.sensors))
    })
    .await?;
    table::watch(&arrived, WATCH_TIME).await?;

    if std::env::var_os("DEMO_FOREVER").is_some() {
        look_around(&site).await?;
    }

    say("the service stops for 5 s, and starts again")?;
    if let Some(service) = site.service.take() {
        service.stop().await?;
    }
    table::watch(&arrived, OUTAGE).await?;
    // While it holds a backlog.
    site.keep_spool("spool-in-outage")?;
    site.start_service().await?;
    table::watch(&arrived, WATCH_TIME).await?;

    say("gatewayd is killed, and starts again")?;
    let before = identity(&site).await?;
    if let Some(gateway) = site.gateway.take() {
        gateway.kill().await?;
    }
    // As the thief of the board would find it, write-ahead log included.
    site.keep_spool("spool-at-kill")?;
    // A copy to open: whoever opens a spool tidies its log away.
    site.keep_spool("books-at-kill")?;
    let stored = stored_readings(&site.path("books-at-kill/spool.db"))?;
    let started = Instant::now();
    site.start_gateway().await?;
    let recording = recording_again(&site, stored, started).await?;
    let same_identity = identity(&site).await? == before;
    table::watch(&arrived, WATCH_TIME).await?;

    say("the sensors fall silent, and the gateway delivers what it has")?;
    for sensor in site.modbus.drain(..).chain(site.bluez.drain(..)).rev() {
        sensor.stop().await?;
    }
    site.delivered(DRAIN_TIME_MAX).await?;
    let status = site.status().await?;
    if let Some(gateway) = site.gateway.take() {
        gateway.stop().await?;
    }
    if let Some(service) = site.service.take() {
        service.stop().await?;
    }
    if let Some(relay) = site.relay.take() {
        relay.stop().await?;
    }
    let books = Accounts::read(&status, &arrived)?;
    let faults = Faults {
        same_identity,
        recording,
    };
    judge(&site, &books, &faults, began)
}

/// What the faults did.
struct Faults {
    same_identity: bool,
    /// From the start until the first new reading was on the disk.
    recording: Duration,
}

async fn set_up(folder: &Path) -> anyhow::Result<Site> {
    say("starting a TPM, a serial bus, a radio, a relay, a service and a gateway")?;
    let mut site = Site::prepare(folder).await?;
    site.start_modbus().await?;
    site.start_bluez().await?;
    site.start_relay().await?;
    site.start_service().await?;
    let sensors = site.modbus_sensors() + site.ble_sensors();
    site.write_gateway_config(&sensors)?;
    site.start_gateway().await?;

    say("$ gatewayctl init; gateway-cloud invite greenhouse-7 | gatewayctl enroll -")?;
    let identity = site.enrol("greenhouse-7").await?;
    say(&format!(
        "enrolled as greenhouse-7, identity {identity} in the TPM"
    ))?;
    Ok(site)
}

async fn identity(site: &Site) -> anyhow::Result<Value> {
    // The TPM may need a moment after a start.
    until("the identity", ARRIVAL_TIME_MAX, || async {
        Ok(site
            .status()
            .await?
            .pointer("/gateway")
            .is_some_and(Value::is_string))
    })
    .await?;
    Ok(site
        .status()
        .await?
        .pointer("/gateway")
        .cloned()
        .unwrap_or_default())
}

/// Waits until the restarted gateway has put a reading on its disk, beyond those `stored` before.
async fn recording_again(site: &Site, stored: u64, started: Instant) -> anyhow::Result<Duration> {
    until("a reading after the start", ARRIVAL_TIME_MAX, || async {
        Ok(stored < number(&site.status().await?, "/spool/stored_readings"))
    })
    .await?;
    Ok(started.elapsed())
}

/// Prints the summary and whether it holds.
fn judge(site: &Site, books: &Accounts, faults: &Faults, began: Instant) -> anyhow::Result<bool> {
    let needles = Needles::of_delivered(&site.readings())?;
    let relayed = needles.search(std::slice::from_ref(&site.wiretap.recording))?;
    let mut spool_files = files_below(&site.path("gateway/state/spool"))?;
    for kept in ["spool-in-outage", "spool-at-kill"] {
        spool_files.extend(files_below(&site.path(kept))?);
    }
    let spool = needles.search(&spool_files)?;
    let control = needles.control(&site.readings())?;
    let leaked = relayed.needles.len() + spool.needles.len();

    let mut out = io::stdout().lock();
    writeln!(out)?;
    writeln!(
        out,
        "readings  taken {}  delivered {}  in spool {}  in ledger {}  missing {}  twice {}",
        books.taken,
        books.delivered,
        books.in_spool,
        books.in_ledger,
        books.missing(),
        books.twice
    )?;
    writeln!(
        out,
        "secrecy   {leaked} of {} names and values in {} relay bytes and {} spool files; control {} of {}",
        needles.len(),
        relayed.bytes,
        spool_files.len(),
        control.needles.len(),
        needles.len()
    )?;
    for Found { needles, .. } in [&relayed, &spool] {
        for needle in needles {
            writeln!(out, "          found: {needle}")?;
        }
    }
    writeln!(
        out,
        "faults    service stopped {} s, gatewayd killed {} time; {} identity, recording after {:.1} s",
        OUTAGE.as_secs(),
        books.unclean_stops,
        if faults.same_identity {
            "same"
        } else {
            "ANOTHER"
        },
        faults.recording.as_secs_f64()
    )?;
    let held = books.hold()
        && books.runs == 2
        && books.unclean_stops == 1
        && EXPECTED_SENSORS <= books.sensors
        && leaked == 0
        && 0 < relayed.bytes
        && 0 < spool.bytes
        && control.needles.len() == needles.len()
        && faults.same_identity;
    let verdict = if held { "PASS" } else { "FAIL" };
    writeln!(out, "{verdict}      {} s", began.elapsed().as_secs())?;
    Ok(held)
}

/// Keeps everything running until Ctrl-C.
async fn look_around(site: &Site) -> anyhow::Result<()> {
    let shown = success(
        "gatewayctl status",
        &site.gatewayctl(&["status"], "").await?,
    )?;
    say(&shown)?;
    say(&format!(
        "running until Ctrl-C; look around:\n  gatewayctl --socket {} status --watch\n  sqlite3 {} 'SELECT * FROM readings ORDER BY time_ms DESC LIMIT 10'\n  logs: {}",
        site.socket().display(),
        site.readings().display(),
        site.path("*.log").display()
    ))?;
    std::future::pending().await
}

fn say(words: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "\n{words}")?;
    out.flush()
}

/// climate, irrigation, door-room, bed-1.
const EXPECTED_SENSORS: u64 = 4;

/// Long enough to see values change.
const WATCH_TIME: Duration = Duration::from_secs(8);

const OUTAGE: Duration = Duration::from_secs(5);

/// A sensor that speaks every second, a TPM in software and a relay on a busy machine.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(30);

const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);
