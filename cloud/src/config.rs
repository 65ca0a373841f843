//! `/etc/gateway-cloud/gateway-cloud.toml`: read once at start. An empty or missing file is valid.

mod relay;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use link::Address;
use secret::Secret;
use serde::Deserialize;

use self::relay::RawRelay;

pub use self::relay::{Admission, RelaySettings};

/// Settings that have been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where `serve` listens for gateways; `None`: only relays lead to it.
    pub listen: Option<SocketAddr>,
    /// Relays at which `serve` registers.
    pub relays: Vec<Address>,
    /// Addresses in tickets.
    pub advertise: Vec<String>,
    /// Sessions at once.
    pub sessions_max: usize,
    /// The file that readings go to; `None`: `readings.db` in the state folder.
    pub readings: Option<PathBuf>,
    /// Record keys that are not in the state folder.
    pub record_key: RecordKeySettings,
    /// How long a ticket is good for.
    pub ticket_ttl: Duration,
    /// The folder of vendors' certificates that a TPM's endorsement certificate must lead to; `None`:
    /// a ticket enrols any TPM.
    pub ek_roots: Option<PathBuf>,
    /// Where `GET /metrics` is answered; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// `gateway-cloud relay`.
    pub relay: RelaySettings,
}

/// The configuration is understood, and the work that was asked for cannot be done with it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the configuration is wrong")]
pub struct Mistake;

/// Where record keys come from.
#[derive(Clone, Debug)]
pub struct RecordKeySettings {
    /// Private halves besides those in the state folder; which is the newest, the statement says.
    pub elsewhere: Vec<Secret>,
    /// How long a key that was replaced stays in the statement.
    pub overlap: Duration,
}

impl Config {
    /// Reads and checks the file; a missing one means the defaults.
    ///
    /// # Errors
    ///
    /// If it cannot be read or says something that is not understood, with file and line.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
        };
        let raw: RawConfig = toml::from_str(&text).with_context(|| format!("in {shown}"))?;
        raw.check().with_context(|| format!("in {shown}"))
    }
}

/// The file, as a person wrote it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default = "default_listen")]
    listen: String,
    #[serde(default)]
    relays: Vec<String>,
    #[serde(default)]
    advertise: Vec<String>,
    #[serde(default = "default_max_sessions")]
    max_sessions: usize,
    #[serde(default)]
    record_key: RawRecordKey,
    #[serde(default)]
    sink: Vec<RawSink>,
    #[serde(default)]
    attestation: RawAttestation,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    relay: RawRelay,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSink {
    name: String,
    r#type: String,
    url: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecordKey {
    current: Option<String>,
    #[serde(default)]
    previous: Vec<String>,
    overlap: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAttestation {
    ticket_ttl: Option<String>,
    ek_roots: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<String>,
}

impl RawConfig {
    fn check(self) -> anyhow::Result<Config> {
        let relays = self.relays.iter().map(|relay| match relay.parse() {
            Ok(address @ Address::Relay { .. }) => Ok(address),
            Ok(Address::Tcp { .. }) => bail!("relays: {relay:?} does not begin with relay://"),
            Err(error) => {
                Err(anyhow::Error::new(error)).with_context(|| format!("relays: {relay:?}"))
            }
        });
        let relays = relays.collect::<anyhow::Result<Vec<_>>>()?;
        for url in &self.advertise {
            let parsed = url.parse::<Address>();
            parsed.with_context(|| format!("advertise: {url:?}"))?;
        }
        ensure!(
            (1..=1_000_000).contains(&self.max_sessions),
            "max_sessions: {} is not 1 to 1000000",
            self.max_sessions
        );
        let listen = match self.listen.as_str() {
            "none" => None,
            address => Some(socket_address("listen", address)?),
        };
        Ok(Config {
            advertise: if self.advertise.is_empty() {
                self.relays.clone()
            } else {
                self.advertise
            },
            listen,
            relays,
            sessions_max: self.max_sessions,
            readings: readings(&self.sink)?,
            record_key: self.record_key.check()?,
            ticket_ttl: match &self.attestation.ticket_ttl {
                Some(text) => duration("attestation.ticket_ttl", text)?,
                None => TICKET_TTL,
            },
            ek_roots: self.attestation.ek_roots,
            metrics: match &self.metrics.listen {
                Some(text) => Some(socket_address("metrics.listen", text)?),
                None => None,
            },
            relay: self.relay.check()?,
        })
    }
}

impl RawRecordKey {
    fn check(self) -> anyhow::Result<RecordKeySettings> {
        ensure!(
            self.previous.len() < RECORD_KEYS_MAX,
            "record_key.previous: more than {} keys",
            RECORD_KEYS_MAX - 1
        );
        let current = self.current.iter().map(|text| ("record_key.current", text));
        let previous = self
            .previous
            .iter()
            .map(|text| ("record_key.previous", text));
        let elsewhere = current
            .chain(previous)
            .map(|(key, text)| named_secret(key, text));
        Ok(RecordKeySettings {
            elsewhere: elsewhere.collect::<anyhow::Result<_>>()?,
            overlap: match &self.overlap {
                Some(text) => duration_within("record_key.overlap", text, (DAY, 3650 * DAY))?,
                None => OVERLAP,
            },
        })
    }
}

/// What a key names.
fn named_secret(key: &str, text: &str) -> anyhow::Result<Secret> {
    Secret::parse("gateway-cloud", text).with_context(|| key.to_owned())
}

fn readings(sinks: &[RawSink]) -> anyhow::Result<Option<PathBuf>> {
    match sinks {
        [] => Ok(None),
        [sink] => {
            ensure!(
                sink.r#type == "sqlite",
                "sink {:?}: type {:?} is not supported by this version; there is: sqlite",
                sink.name,
                sink.r#type
            );
            let path = sink.url.strip_prefix("sqlite:");
            let path = path.with_context(|| {
                format!(
                    "sink {:?}: url {:?} does not begin with sqlite:",
                    sink.name, sink.url
                )
            })?;
            Ok(Some(PathBuf::from(path)))
        }
        _ => bail!("{} sinks: this version has one", sinks.len()),
    }
}

fn socket_address(key: &str, text: &str) -> anyhow::Result<SocketAddr> {
    text.parse()
        .with_context(|| format!("{key}: {text:?} is not ADDRESS:PORT, such as \"[::]:4431\""))
}

/// A duration as on the command line: `90s`, `10min`, `2h`, `7d`.
///
/// # Errors
///
/// If it is none, or not 1 s to 7 d.
pub fn duration(key: &str, text: &str) -> anyhow::Result<Duration> {
    duration_within(key, text, (Duration::from_secs(1), 7 * DAY))
}

/// A duration between two others.
fn duration_within(
    key: &str,
    text: &str,
    (min, max): (Duration, Duration),
) -> anyhow::Result<Duration> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let seconds = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "y" => 365 * 86_400,
        _ => bail!("{key}: {text:?} is no duration, such as \"10min\""),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{key}: {text:?} is no duration, such as \"10min\""))?;
    let total = Duration::from_secs(number.saturating_mul(seconds));
    let bounds = if max == 7 * DAY {
        "1s to 7d"
    } else {
        "1d to 10y"
    };
    ensure!(
        (min..=max).contains(&total),
        "{key}: {text:?} is not {bounds}"
    );
    Ok(total)
}

fn default_listen() -> String {
    "[::]:4431".into()
}

fn default_max_sessions() -> usize {
    20_000
}

const DAY: Duration = Duration::from_secs(86_400);

/// As long as a record key is used, if it is changed as often as protocol.md 1 has it.
const OVERLAP: Duration = Duration::from_secs(90 * 86_400);

/// protocol.md 1: of a statement.
const RECORD_KEYS_MAX: usize = 8;

/// protocol.md 5.1.
const TICKET_TTL: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_valid() {
        let config = parse("").unwrap();
        assert_eq!(config.listen, Some("[::]:4431".parse().unwrap()));
        assert_eq!(config.ticket_ttl, Duration::from_secs(600));
        assert!(config.relays.is_empty());
        assert_eq!(config.ek_roots, None);
    }

    #[test]
    fn record_keys_may_lie_elsewhere() {
        let settings = parse("").unwrap().record_key;
        assert_eq!(settings.overlap, Duration::from_secs(90 * 86_400));
        assert_eq!(settings.elsewhere, []);

        let text = "[record_key]\ncurrent = \"credential:record-2026b\"\n\
                    previous = [\"file:/safe/record-2026a\"]\noverlap = \"1y\"";
        let settings = parse(text).unwrap().record_key;
        assert_eq!(settings.overlap, Duration::from_secs(365 * 86_400));
        assert_eq!(
            settings.elsewhere,
            [
                Secret::Credential {
                    program: "gateway-cloud",
                    name: "record-2026b".into()
                },
                Secret::File("/safe/record-2026a".into())
            ]
        );
    }

    #[test]
    fn a_secret_in_the_configuration_is_refused_and_not_shown() {
        let error = parse("[record_key]\ncurrent = \"hunter2\"").unwrap_err();
        assert!(!format!("{error:#}").contains("hunter2"));
    }

    #[test]
    fn the_folder_of_endorsement_roots_is_a_path() {
        let config = parse("[attestation]\nek_roots = \"/etc/gateway-cloud/ek-roots\"").unwrap();
        assert_eq!(
            config.ek_roots.as_deref(),
            Some(Path::new("/etc/gateway-cloud/ek-roots"))
        );
    }

    #[test]
    fn tickets_name_the_relays_unless_told_otherwise() {
        let config = parse("relays = [\"relay://a.example:4430\"]").unwrap();
        assert_eq!(config.advertise, ["relay://a.example:4430"]);
    }

    #[test]
    fn mistakes_say_where_and_what() {
        for (text, words) in [
            ("relays = [\"tcp://a:1\"]", "does not begin with relay://"),
            (
                "listen = \"nowhere\"",
                "listen: \"nowhere\" is not ADDRESS:PORT",
            ),
            ("max_sessions = 0", "is not 1 to 1000000"),
            ("lisen = \"[::]:1\"", "unknown field `lisen`"),
            ("[attestation]\nticket_ttl = \"8d\"", "is not 1s to 7d"),
            ("[attestation]\nticket_ttl = \"ten\"", "is no duration"),
            (
                "[[sink]]\nname = \"a\"\ntype = \"kafka\"\nurl = \"kafka://a\"",
                "there is: sqlite",
            ),
            ("[relay]\nadmit = \"some\"", "unknown variant `some`"),
            (
                "[metrics]\nlisten = \"9464\"",
                "metrics.listen: \"9464\" is not ADDRESS:PORT",
            ),
            ("[record_key]\noverlap = \"1h\"", "is not 1d to 10y"),
            (
                "[record_key]\ncurrent = \"hunter2\"",
                "use \"credential:NAME\"",
            ),
            (
                "[record_key]\nprevious = [\"file:a\"]",
                "is not \"file:/PATH\"",
            ),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    fn parse(text: &str) -> anyhow::Result<Config> {
        toml::from_str::<RawConfig>(text)?.check()
    }
}
