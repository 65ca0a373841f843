//! What the control socket says, as `gatewayctl --json` prints it.
//!
//! Each object names its schema; fields are added freely, and never renamed, retyped or removed
//! without a new number. Unknown is `null`; numbers whose name ends in a unit are in that unit.

mod check;
mod export;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wire::{Measurement, Reading, Value};
use zeroize::Zeroizing;

pub use check::{Check, CheckReport, Verdict};
pub use export::{
    EXPORT_BYTES_HEADER, EXPORT_BYTES_MAX, EXPORT_UNSIGNED_HEADER, ExportRequest, ExportedAnswer,
    ExportedRequest,
};

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// `status/1`.
    pub schema: String,
    /// The gateway's name in the configuration.
    pub name: String,
    /// Its fingerprint; `null` before `gatewayctl init`.
    pub gateway: Option<String>,
    /// Of the daemon.
    pub version: String,
    /// Since the daemon started.
    pub up_seconds: u64,
    /// Wall clock of the gateway.
    pub time: String,
    /// The TPM.
    pub tpm: TpmStatus,
    /// How far the wall clock is to be trusted: `synchronised` or `unsynchronised`.
    pub clock: String,
    /// The spool.
    pub spool: SpoolStatus,
    /// In the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// In the order of the configuration.
    pub sensors: Vec<SensorStatus>,
}

/// The TPM as the daemon finds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TpmStatus {
    /// `ok busy locked_out absent denied replaced`.
    pub state: String,
    /// Failed authorisations counted by the TPM.
    pub lockout_count: Option<u32>,
    /// Of which so many lock it.
    pub lockout_max: Option<u32>,
    /// Who made it.
    pub vendor: Option<String>,
    /// What is wrong, in words.
    pub problem: Option<String>,
    /// What to do about it.
    pub r#do: Option<String>,
}

/// The spool as a whole. The three counts are kept on disk: they outlive the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// `disk` or `memory`.
    pub state: String,
    /// The whole folder, write-ahead log included.
    pub size_bytes: u64,
    /// The configured bound.
    pub max_bytes: u64,
    /// Batches that no service has acknowledged.
    pub batches: u64,
    /// Readings in them.
    pub held_readings: u64,
    /// Readings stored so far, counted once for each service.
    pub stored_readings: u64,
    /// Of these, acknowledged.
    pub acked_readings: u64,
    /// Lost and in the ledger.
    pub lost_readings: u64,
}

/// One `[[service]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its fingerprint; `null` until a ticket or the configuration names it.
    pub key: Option<String>,
    /// Whether it has enrolled this gateway.
    pub enrolled: bool,
    /// `connecting connected draining waiting refused`.
    pub uplink: String,
    /// Host of the address in use or tried last.
    pub via: Option<String>,
    /// Since the last ack.
    pub last_ack_seconds: Option<u64>,
    /// Batches that wait.
    pub backlog_batches: u64,
    /// Where it is reached, best first; what happened at each since the daemon started.
    pub addresses: Vec<AddressStatus>,
    /// What is wrong, in words.
    pub problem: Option<String>,
    /// What to do about it.
    pub r#do: Option<String>,
}

/// One address of a service: a relay, or the service itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddressStatus {
    /// As configured, or as the ticket has it.
    pub address: String,
    /// Whether it is the one in use or tried last.
    pub in_use: bool,
    /// Sessions opened there.
    pub sessions: u64,
    /// Of the newest session, from dialling to admission.
    pub handshake_seconds: Option<f64>,
    /// How often it failed, by `connect no_relay refused rejected truncated silent`; the last three
    /// are what the relay, or the way through it, did after it had said `ok`.
    pub failures: BTreeMap<String, u64>,
    /// Of those refused: how often for which reason.
    pub refusals: BTreeMap<String, u64>,
    /// The newest failure, in words.
    pub last_failure: Option<String>,
    /// Since then.
    pub last_failure_seconds: Option<u64>,
}

/// One `[[sensor]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SensorStatus {
    /// Its name.
    pub name: String,
    /// `waiting ok flaky silent garbled absent denied off`.
    pub state: String,
    /// `timeout crc exception format wrong_key replay plaintext held permission absent`.
    pub error: Option<String>,
    /// Since the last reading.
    pub age_seconds: Option<u64>,
    /// The newest of each channel.
    pub last: Vec<ChannelStatus>,
    /// What is wrong, in words.
    pub problem: Option<String>,
}

/// The newest reading of one channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// The channel's name.
    pub channel: String,
    /// Number, boolean, text or `null`.
    pub value: serde_json::Value,
    /// As in IANA's SenML registry.
    pub unit: Option<String>,
    /// `ok stale out_of_range invalid`.
    pub quality: String,
}

/// One line of `GET /v1/readings`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TapReading {
    /// `tap/1`.
    pub schema: String,
    /// The sensor's name.
    pub sensor: String,
    /// The newest reading.
    #[serde(flatten)]
    pub channel: ChannelStatus,
    /// RFC 3339, UTC.
    pub time: String,
    /// `synchronised unsynchronised corrected`.
    pub clock: String,
    /// The sensor's count of readings in this run.
    pub sequence: u64,
}

/// A line of `GET /v1/readings` to a reader that was too slow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// How many readings it missed.
    pub skipped: u64,
}

/// Body of `POST /v1/init`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// Replace an identity that is there.
    #[serde(default)]
    pub force_new: bool,
}

/// Answer to `POST /v1/init`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InitAnswer {
    /// `init/1`.
    pub schema: String,
    /// The gateway's fingerprint.
    pub gateway: String,
    /// Who made the TPM.
    pub vendor: String,
}

/// Body of `POST /v1/enroll`. It holds a secret, so it is not shown in a log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The ticket's text.
    pub ticket: Zeroizing<String>,
    /// Which `[[service]]` it is for, where that is not clear.
    #[serde(default)]
    pub service: Option<String>,
}

/// Answer to `POST /v1/enroll`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrollAnswer {
    /// `enroll/1`.
    pub schema: String,
    /// What the service calls this gateway.
    pub name: String,
    /// The service.
    pub service: String,
    /// The host it was reached at.
    pub via: String,
    /// Batches that were recorded before and are on their way.
    pub backlog_batches: u64,
}

/// Body of `POST /v1/csr`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsrRequest {
    /// The common name to ask for; `None`: the gateway's name in the configuration.
    #[serde(default)]
    pub subject: Option<String>,
}

/// Answer to `POST /v1/csr`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CsrAnswer {
    /// `csr/1`.
    pub schema: String,
    /// The request (PKCS#10, PEM).
    pub request: String,
    /// The common name in it.
    pub subject: String,
    /// The gateway's fingerprint, which is in it as `serialNumber`.
    pub gateway: String,
}

/// An error on the control socket (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// The same as `what`: RFC 9457's name for it.
    pub title: String,
    /// What was not done.
    pub what: String,
    /// Where the fault lies, if that is not in `why`.
    pub r#where: Option<String>,
    /// Why.
    pub why: String,
    /// What to do.
    pub r#do: String,
}

impl ChannelStatus {
    /// A measurement as JSON has it.
    #[must_use]
    pub fn of(measurement: &Measurement) -> Self {
        Self {
            channel: measurement.channel.clone(),
            value: json(&measurement.value),
            unit: measurement.unit.map(|unit| unit.as_str().to_owned()),
            quality: measurement.quality.to_string(),
        }
    }

    /// The value and its unit as people read them.
    #[must_use]
    pub fn words(&self) -> String {
        let value = match &self.value {
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            other @ (serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_)) => other.to_string(),
        };
        match &self.unit {
            Some(unit) => format!("{value} {unit}"),
            None => value,
        }
    }
}

impl TapReading {
    /// A reading as `tap` shows it.
    #[must_use]
    pub fn of(reading: &Reading) -> Self {
        Self {
            schema: "tap/1".to_owned(),
            sensor: reading.sensor.clone(),
            channel: ChannelStatus::of(&reading.measurement),
            time: time(reading.time.wall_ms),
            clock: clock_word(reading.time.clock).to_owned(),
            sequence: reading.sequence,
        }
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn time(wall_ms: i64) -> String {
    match Timestamp::from_millisecond(wall_ms) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "out of range".to_owned(),
    }
}

/// The clock's state in one word.
#[must_use]
pub fn clock_word(state: wire::ClockState) -> &'static str {
    match state {
        wire::ClockState::Synchronised => "synchronised",
        wire::ClockState::Unsynchronised => "unsynchronised",
        wire::ClockState::Corrected => "corrected",
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(bit) => (*bit).into(),
        Value::Integer(number) => (*number).into(),
        // The nearest double prints as the decimal it came from, up to 15 digits.
        Value::Decimal(number) => number.to_f64().into(),
        Value::Float(number) => (*number).into(),
        Value::Text(text) => text.clone().into(),
        Value::Bytes(bytes) => data_encoding::HEXLOWER.encode(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use wire::{ClockState, Decimal, Quality, Time, Unit};

    use super::*;

    #[test]
    fn a_reading_is_the_line_that_the_manual_shows() {
        let reading = Reading {
            sensor: "climate".into(),
            sensor_number: 0,
            sequence: 884_213,
            time: Time {
                wall_ms: 1_795_442_549_104,
                boottime_ms: 5,
                clock: ClockState::Synchronised,
            },
            measurement: Measurement {
                channel: "temperature".into(),
                value: Value::Decimal(Decimal::new(214, -1)),
                unit: Unit::parse("Cel"),
                quality: Quality::Ok,
            },
        };
        assert_eq!(
            serde_json::to_string(&TapReading::of(&reading)).unwrap(),
            concat!(
                r#"{"schema":"tap/1","sensor":"climate","channel":"temperature","value":21.4,"#,
                r#""unit":"Cel","quality":"ok","time":"2026-11-23T14:02:29.104Z","#,
                r#""clock":"synchronised","sequence":884213}"#
            )
        );
    }

    #[test]
    fn values_are_read_with_their_unit() {
        let channel = ChannelStatus {
            channel: "co2".into(),
            value: 612.into(),
            unit: Some("ppm".into()),
            quality: "ok".into(),
        };
        assert_eq!(channel.words(), "612 ppm");
    }
}
