//! `gateway-cloud ls`: every gateway in a table, or in JSON.

use std::io::{self, Write};

use channel::{Fingerprint, KeyKind};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::registry::{GatewayRecord, now_ms};

/// One gateway as programs read it.
#[derive(Serialize)]
struct Row<'a> {
    schema: &'static str,
    name: &'a str,
    gateway: String,
    state: &'static str,
    via: Option<&'a str>,
    last_ack_seconds: Option<i64>,
    labels: &'a [String],
}

/// Prints one JSON object a line.
///
/// # Errors
///
/// If `out` fails.
pub fn json(out: &mut impl Write, gateways: &[GatewayRecord]) -> io::Result<()> {
    for gateway in gateways {
        let row = Row {
            schema: "gateway/1",
            name: &gateway.name,
            gateway: fingerprint(gateway).to_string(),
            state: gateway.state.word(),
            via: gateway.via.as_deref(),
            last_ack_seconds: age_seconds(gateway),
            labels: &gateway.labels,
        };
        let line = serde_json::to_string(&row).map_err(io::Error::other)?;
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Prints a table.
///
/// # Errors
///
/// If `out` fails.
pub fn table(out: &mut impl Write, gateways: &[GatewayRecord]) -> io::Result<()> {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["NAME", "GATEWAY", "STATE", "VIA", "LAST ACK", "LABELS"]);
    for gateway in gateways {
        table.add_row([
            gateway.name.clone(),
            fingerprint(gateway).short(),
            gateway.state.word().to_owned(),
            gateway.via.clone().unwrap_or_else(|| "-".into()),
            age_seconds(gateway).map_or("-".into(), |age| format!("{age} s")),
            gateway.labels.join(" "),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    writeln!(out, "{table}")
}

fn fingerprint(gateway: &GatewayRecord) -> Fingerprint {
    Fingerprint::new(KeyKind::GatewayIdentity, gateway.fingerprint)
}

fn age_seconds(gateway: &GatewayRecord) -> Option<i64> {
    gateway.ack_ms.map(|at| now_ms().saturating_sub(at) / 1000)
}

#[cfg(test)]
mod tests {
    use channel::{SigningKey, SoftwareSigningKey};
    use rand_core::UnwrapErr;

    use super::*;
    use crate::registry::GatewayState;

    #[test]
    fn programs_read_one_object_a_line() {
        let mut out = Vec::new();
        json(&mut out, &gateways()).unwrap();
        let lines: Vec<serde_json::Value> = out
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        let age = lines[0]["last_ack_seconds"].as_i64().unwrap();
        assert!((5..60).contains(&age), "{age}");
        let expected = serde_json::json!({
            "schema": "gateway/1",
            "name": "greenhouse-7",
            "gateway": fingerprint(&gateways()[0]).to_string(),
            "state": "enrolled",
            "via": "relay.example",
            "last_ack_seconds": age,
            "labels": ["row=7", "site=venlo"],
        });
        assert_eq!(lines[0], expected);
        assert!(lines[1]["last_ack_seconds"].is_null());
        assert!(lines[1]["via"].is_null());
    }

    #[test]
    fn people_read_a_table_with_a_heading() {
        let mut out = Vec::new();
        table(&mut out, &gateways()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            ["NAME", "GATEWAY", "STATE", "VIA", "LAST", "ACK", "LABELS"]
        );
        assert_eq!(lines[1][0], "greenhouse-7");
        assert_eq!(lines[1][1], fingerprint(&gateways()[0]).short());
        assert_eq!(lines[1][2..4], ["enrolled", "relay.example"]);
        assert_eq!(lines[1][5..], ["s", "row=7", "site=venlo"]);
        assert_eq!(lines[2][2..], ["revoked", "-", "-"]);
    }

    fn gateways() -> [GatewayRecord; 2] {
        let mut rng = UnwrapErr(getrandom::SysRng);
        let identity = SigningKey::public(&SoftwareSigningKey::generate(&mut rng));
        let first = GatewayRecord {
            fingerprint: [7; 32],
            name: "greenhouse-7".into(),
            state: GatewayState::Enrolled,
            identity,
            labels: vec!["row=7".into(), "site=venlo".into()],
            via: Some("relay.example".into()),
            ack_ms: Some(now_ms() - 5000),
        };
        let second = GatewayRecord {
            name: "stolen".into(),
            state: GatewayState::Revoked,
            labels: Vec::new(),
            via: None,
            ack_ms: None,
            ..first.clone()
        };
        [first, second]
    }
}
