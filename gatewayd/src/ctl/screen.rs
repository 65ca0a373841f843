//! What a person reads.

use std::io::{self, Write};

use comfy_table::{Table, presets};

use crate::{
    report::{AddressStatus, SensorStatus, ServiceStatus, Skipped, Status, TapReading},
    uplink::cause::Cause,
};

/// One screen: the gateway, then a table of services, then one of sensors.
pub(super) fn status(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let gateway = status
        .gateway
        .as_deref()
        .map_or("no identity".into(), short);
    let head = format!(
        "{}  {gateway}  gatewayd {}  up {}",
        status.name,
        status.version,
        duration(status.up_seconds)
    );
    writeln!(out, "{head:<68}  {}", moment(&status.time))?;
    let lockout = match (status.tpm.lockout_count, status.tpm.lockout_max) {
        (Some(count), Some(max)) => format!(", lockout {count}/{max}"),
        _ => String::new(),
    };
    let tpm = format!("tpm    {}{lockout}", status.tpm.state);
    writeln!(out, "{tpm:<40}clock  {}", status.clock)?;
    problem(
        out,
        status.tpm.problem.as_deref(),
        status.tpm.r#do.as_deref(),
    )?;
    let spool = &status.spool;
    writeln!(
        out,
        "spool  {}, {}, lost {}",
        spool.state,
        share(spool.size_bytes, spool.max_bytes),
        digits(spool.lost_readings)
    )?;

    let mut services = table(["SERVICE", "UPLINK", "VIA", "LAST ACK", "BACKLOG", ""]);
    for service in &status.services {
        services.add_row(service_row(service));
    }
    print(out, &services)?;
    addresses(out, &status.services)?;
    let mut sensors = table(["SENSOR", "STATE", "LAST VALUES", "AGE", "PROBLEM"]);
    for sensor in &status.sensors {
        sensors.add_row(sensor_row(sensor));
    }
    print(out, &sensors)
}

/// One live reading, as the daemon's line has it.
pub(super) fn tap(out: &mut impl Write, line: &str) -> io::Result<()> {
    if let Ok(skipped) = serde_json::from_str::<Skipped>(line) {
        return writeln!(out, "({} readings were too fast to show)", skipped.skipped);
    }
    let reading: TapReading = serde_json::from_str(line).map_err(io::Error::other)?;
    let name = format!("{}.{}", reading.sensor, reading.channel.channel);
    // 2026-11-23T14:02:29.104Z: the time of day to the millisecond.
    let time = reading.time.get(11..23).unwrap_or(&reading.time);
    writeln!(
        out,
        "{time}  {name:<24}  {:<16}  {}",
        reading.channel.words(),
        reading.channel.quality
    )
}

/// A fingerprint's first 16 characters in groups of four.
pub(super) fn short(fingerprint: &str) -> String {
    match fingerprint.parse::<channel::Fingerprint>() {
        Ok(fingerprint) => fingerprint.short(),
        Err(_) => fingerprint.to_owned(),
    }
}

fn problem(out: &mut impl Write, problem: Option<&str>, advice: Option<&str>) -> io::Result<()> {
    if let Some(problem) = problem {
        writeln!(out, "       {problem}")?;
    }
    if let (Some(_), Some(advice)) = (problem, advice) {
        writeln!(out, "       do: {advice}")?;
    }
    Ok(())
}

fn service_row(service: &ServiceStatus) -> [String; 6] {
    let problem = match (&service.problem, &service.r#do) {
        (Some(problem), Some(advice)) => format!("{problem}; do: {advice}"),
        (Some(problem), None) => problem.clone(),
        (None, _) if !service.enrolled => "not enrolled; do: gatewayctl enroll -".to_owned(),
        (None, _) => String::new(),
    };
    [
        service.name.clone(),
        service.uplink.clone(),
        service.via.clone().unwrap_or_else(|| "-".into()),
        service.last_ack_seconds.map_or("-".into(), duration),
        match service.backlog_batches {
            0 => "0".to_owned(),
            batches => format!("{} batches", digits(batches)),
        },
        problem,
    ]
}

/// The addresses that failed within the last hour, so that it is seen which relay is at fault. All of
/// them are in the JSON.
fn addresses(out: &mut impl Write, services: &[ServiceStatus]) -> io::Result<()> {
    let mut failing = table(["ADDRESS", "SERVICE", "FAILED", "LAST", "PROBLEM"]);
    for service in services {
        for address in &service.addresses {
            if let Some(seconds) = address.last_failure_seconds
                && seconds < SHOWN_SECONDS
            {
                failing.add_row(address_row(service, address, seconds));
            }
        }
    }
    if failing.is_empty() {
        return Ok(());
    }
    print(out, &failing)
}

fn address_row(service: &ServiceStatus, address: &AddressStatus, seconds: u64) -> [String; 5] {
    let failures = Cause::WORDS.iter().filter_map(|&word| {
        let count = address.failures.get(word).filter(|count| **count != 0)?;
        Some(format!("{} {word}", digits(*count)))
    });
    // What follows the relay's port is the service, which has its own column.
    let (scheme, rest) = address.address.split_once("://").unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    [
        format!("{scheme}://{authority}"),
        service.name.clone(),
        failures.collect::<Vec<_>>().join(", "),
        format!("{} ago", duration(seconds)),
        address.last_failure.clone().unwrap_or_default(),
    ]
}

fn sensor_row(sensor: &SensorStatus) -> [String; 5] {
    let values = sensor.last.iter().map(|channel| channel.words());
    [
        sensor.name.clone(),
        sensor.state.clone(),
        values.take(VALUES_SHOWN).collect::<Vec<_>>().join("  "),
        sensor.age_seconds.map_or("-".into(), duration),
        sensor.problem.clone().unwrap_or_default(),
    ]
}

/// Without the blanks that fill up the last column.
fn print(out: &mut impl Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// `2026-11-23T14:02:31.000Z` as date and time of day.
fn moment(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(date), Some(time)) => format!("{date} {time}"),
        _ => time.to_owned(),
    }
}

fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(heads);
    // Columns are two spaces apart and the first begins at the margin.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The two greatest units: `12 d 4 h`, `2 h 10 m`, `45 s`.
fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} m"),
        _ => format!("{days} d {hours} h"),
    }
}

/// `1.3 of 256 MiB`.
fn share(bytes: u64, bytes_max: u64) -> String {
    let (part, whole) = (size(bytes), size(bytes_max));
    let number = match (part.split_once(' '), whole.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => number,
        (_, _) => &part,
    };
    format!("{number} of {whole}")
}

pub(super) fn size(bytes: u64) -> String {
    let (tenths, unit) = match bytes {
        0..1_048_576 => (bytes * 10 / 1024, "KiB"),
        1_048_576..1_073_741_824 => (bytes * 10 / 1_048_576, "MiB"),
        _ => (bytes / 1_048_576 * 10 / 1024, "GiB"),
    };
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}

/// A number with its digits in groups of three.
fn digits(number: u64) -> String {
    let plain = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in plain.chars().enumerate() {
        if index != 0 && (plain.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// An address that failed longer ago is no news.
const SHOWN_SECONDS: u64 = 3600;

/// As many values of a sensor as fit a line.
const VALUES_SHOWN: usize = 4;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use channel::{Fingerprint, KeyKind};

    use super::*;
    use crate::report::{ChannelStatus, SpoolStatus, TpmStatus};

    #[test]
    fn durations_show_their_two_greatest_units() {
        assert_eq!(duration(45), "45 s");
        assert_eq!(duration(31 * 60 + 5), "31 min");
        assert_eq!(duration(2 * 3600 + 600), "2 h 10 m");
        assert_eq!(duration(12 * 86_400 + 4 * 3600), "12 d 4 h");
    }

    #[test]
    fn numbers_are_grouped_and_sizes_rounded_down() {
        assert_eq!(digits(4320), "4,320");
        assert_eq!(digits(884_213), "884,213");
        assert_eq!(digits(12), "12");
        assert_eq!(size(52 * 1024), "52 KiB");
        assert_eq!(size(256 * 1024 * 1024), "256 MiB");
        assert_eq!(size(1_363_149), "1.3 MiB");
        assert_eq!(size(12_079_595_520), "11.2 GiB");
    }

    #[test]
    fn the_status_screen_is_the_one_of_the_manual() {
        let mut out = Vec::new();
        status(&mut out, &example()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), SCREEN);
    }

    /// As it is before `gatewayctl init`, without a TPM.
    #[test]
    fn a_gateway_without_tpm_says_what_to_do() {
        let mut status = example();
        status.gateway = None;
        status.tpm = TpmStatus {
            state: "absent".into(),
            lockout_count: None,
            lockout_max: None,
            vendor: None,
            problem: Some("/dev/tpmrm0 does not exist".into()),
            r#do: Some("add the overlay and reboot".into()),
        };
        let mut out = Vec::new();
        super::status(&mut out, &status).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("greenhouse-7  no identity  gatewayd 0.3.0"),
            "{text}"
        );
        let problem = "tpm    absent                           clock  synchronised\n       \
                       /dev/tpmrm0 does not exist\n       do: add the overlay and reboot\n";
        assert!(text.contains(problem), "{text}");
    }

    #[test]
    fn a_relay_that_misbehaves_is_seen() {
        let mut status = example();
        let address = |seconds| AddressStatus {
            address: "relay://relay-b.example:4430".into(),
            in_use: false,
            sessions: 3,
            handshake_seconds: Some(0.048),
            failures: [
                ("connect".into(), 0),
                ("rejected".into(), 1204),
                ("truncated".into(), 1),
            ]
            .into(),
            refusals: BTreeMap::new(),
            last_failure: Some("the session failed: peer's bytes were rejected".into()),
            last_failure_seconds: seconds,
        };
        status.services[0].addresses = vec![address(Some(12)), address(Some(3600)), address(None)];
        let mut out = Vec::new();
        super::status(&mut out, &status).unwrap();
        let text = String::from_utf8(out).unwrap();
        let table = "\
ADDRESS                       SERVICE  FAILED                       LAST      PROBLEM
relay://relay-b.example:4430  farm     1,204 rejected, 1 truncated  12 s ago  the session failed: peer's bytes were rejected
SENSOR";
        assert!(text.contains(table), "{text}");
    }

    const SCREEN: &str = "\
greenhouse-7  uws2-ljnf-uws2-ljnf  gatewayd 0.3.0  up 12 d 4 h        2026-11-23 14:02:31
tpm    ok, lockout 0/32                 clock  synchronised
spool  disk, 1.3 of 256 MiB, lost 4,320
SERVICE      UPLINK     VIA              LAST ACK  BACKLOG
farm         connected  relay-a.example  1 s       0
water-board  waiting    intake.example   2 h 10 m  1,016 batches  the handshake took longer than 30s; do: wait
SENSOR   STATE   LAST VALUES         AGE     PROBLEM
climate  ok      21.4 Cel  63.1 %RH  2 s
meter    silent  41280 Wh            31 min  timeout
";

    fn service(name: &str, uplink: &str, via: &str, ack_seconds: u64) -> ServiceStatus {
        ServiceStatus {
            name: name.into(),
            key: None,
            enrolled: true,
            uplink: uplink.into(),
            via: Some(via.into()),
            last_ack_seconds: Some(ack_seconds),
            backlog_batches: 0,
            addresses: Vec::new(),
            problem: None,
            r#do: None,
        }
    }

    fn sensor(name: &str, state: &str, age_seconds: u64) -> SensorStatus {
        SensorStatus {
            name: name.into(),
            state: state.into(),
            error: None,
            age_seconds: Some(age_seconds),
            last: Vec::new(),
            problem: None,
        }
    }

    fn channel(channel: &str, value: impl Into<serde_json::Value>, unit: &str) -> ChannelStatus {
        ChannelStatus {
            channel: channel.into(),
            value: value.into(),
            unit: Some(unit.into()),
            quality: "ok".into(),
        }
    }

    fn example() -> Status {
        let mut water_board = service("water-board", "waiting", "intake.example", 7800);
        water_board.backlog_batches = 1016;
        water_board.problem = Some("the handshake took longer than 30s".into());
        water_board.r#do = Some("wait".into());
        let mut climate = sensor("climate", "ok", 2);
        climate.last = vec![
            channel("temperature", 21.4, "Cel"),
            channel("humidity", 63.1, "%RH"),
        ];
        let mut meter = sensor("meter", "silent", 31 * 60);
        meter.last = vec![channel("energy", 41280, "Wh")];
        meter.problem = Some("timeout".into());
        Status {
            schema: "status/1".into(),
            name: "greenhouse-7".into(),
            gateway: Some(Fingerprint::new(KeyKind::GatewayIdentity, [0xA5; 32]).to_string()),
            version: "0.3.0".into(),
            up_seconds: 12 * 86_400 + 4 * 3600,
            time: "2026-11-23T14:02:31.000Z".into(),
            tpm: TpmStatus {
                state: "ok".into(),
                lockout_count: Some(0),
                lockout_max: Some(32),
                vendor: Some("Infineon SLB9670".into()),
                problem: None,
                r#do: None,
            },
            clock: "synchronised".into(),
            spool: SpoolStatus {
                state: "disk".into(),
                size_bytes: 1_363_149,
                max_bytes: 256 * 1024 * 1024,
                batches: 1016,
                held_readings: 9000,
                stored_readings: 884_213,
                acked_readings: 870_893,
                lost_readings: 4320,
            },
            services: vec![
                service("farm", "connected", "relay-a.example", 1),
                water_board,
            ],
            sensors: vec![climate, meter],
        }
    }

    #[test]
    fn a_live_reading_is_one_line() {
        let line = r#"{"schema":"tap/1","sensor":"climate","channel":"temperature","value":21.4,"unit":"Cel","quality":"ok","time":"2026-11-23T14:02:29.104Z","clock":"synchronised","sequence":884213}"#;
        let mut out = Vec::new();
        tap(&mut out, line).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "14:02:29.104  climate.temperature       21.4 Cel          ok\n"
        );
    }
}
