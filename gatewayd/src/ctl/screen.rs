//! What a person reads.

use std::io::{self, Write};

use comfy_table::{Table, presets};

use crate::report::{SensorStatus, ServiceStatus, Skipped, Status, TapReading};

/// One screen: the gateway, then a table of services, then one of sensors.
pub(super) fn status(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let gateway = status
        .gateway
        .as_deref()
        .map_or("no identity".into(), short);
    writeln!(
        out,
        "{}  {gateway}  gatewayd {}  up {}  {}",
        status.name,
        status.version,
        duration(status.up_seconds),
        status.time
    )?;
    let lockout = match (status.tpm.lockout_count, status.tpm.lockout_max) {
        (Some(count), Some(max)) => format!(", lockout {count}/{max}"),
        _ => String::new(),
    };
    writeln!(out, "tpm    {}{lockout}", status.tpm.state)?;
    problem(
        out,
        status.tpm.problem.as_deref(),
        status.tpm.r#do.as_deref(),
    )?;
    writeln!(out, "clock  {}", status.clock)?;
    let spool = &status.spool;
    writeln!(
        out,
        "spool  {}, {} of {}, lost {}",
        spool.state,
        size(spool.size_bytes),
        size(spool.max_bytes),
        digits(spool.lost_readings)
    )?;

    let mut services = table(["SERVICE", "UPLINK", "VIA", "LAST ACK", "BACKLOG", ""]);
    for service in &status.services {
        services.add_row(service_row(service));
    }
    writeln!(out, "{services}")?;
    let mut sensors = table(["SENSOR", "STATE", "LAST VALUES", "AGE", "PROBLEM"]);
    for sensor in &status.sensors {
        sensors.add_row(sensor_row(sensor));
    }
    writeln!(out, "{sensors}")
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

fn size(bytes: u64) -> String {
    let (whole, unit) = match bytes {
        0..1_048_576 => (bytes * 10 / 1024, "KiB"),
        1_048_576..1_073_741_824 => (bytes * 10 / 1_048_576, "MiB"),
        _ => (bytes / 1_073_741_824 * 10, "GiB"),
    };
    format!("{}.{} {unit}", whole / 10, whole % 10)
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

/// As many values of a sensor as fit a line.
const VALUES_SHOWN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(size(52 * 1024), "52.0 KiB");
        assert_eq!(size(256 * 1024 * 1024), "256.0 MiB");
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
