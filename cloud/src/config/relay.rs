//! `[relay]`: where it listens, and whom it serves.

use std::{collections::HashSet, net::SocketAddr};

use anyhow::{Context, bail, ensure};
use channel::{Fingerprint, KeyKind};
use link::relay::Token;
use secret::Secret;
use serde::Deserialize;

use super::{Mistake, named_secret, socket_address};
use crate::relay::Admit;

/// Settings of the relay.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Gateways connected at a time.
    pub max_clients: usize,
    /// The pace of each direction of a splice.
    pub bytes_per_second: u64,
    names: Vec<String>,
    admit: AdmitWord,
    services: Vec<Fingerprint>,
    tokens: Vec<Secret>,
}

/// Whom a relay serves: services that may register, and gateways.
pub type Admission = (Option<HashSet<[u8; 32]>>, Admit);

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum AdmitWord {
    Open,
    Token,
    #[default]
    List,
}

/// The table, as a person wrote it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRelay {
    listen: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    admit: AdmitWord,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    tokens: Vec<String>,
    max_clients: Option<usize>,
    bytes_per_second: Option<String>,
}

impl RawRelay {
    pub(super) fn check(self) -> anyhow::Result<RelaySettings> {
        let max_clients = self.max_clients.unwrap_or(MAX_CLIENTS);
        ensure!(1 <= max_clients, "relay.max_clients: 0 lets nobody in");
        if self.admit == AdmitWord::Open {
            ensure!(
                self.services.is_empty(),
                "relay.services: relay.admit = \"open\" serves any service; take \"list\", or remove the list"
            );
        }
        if self.admit != AdmitWord::Token {
            ensure!(
                self.tokens.is_empty(),
                "relay.tokens: are looked at only if relay.admit = \"token\""
            );
        }
        Ok(RelaySettings {
            listen: socket_address(
                "relay.listen",
                self.listen.as_deref().unwrap_or(RELAY_LISTEN),
            )?,
            names: self.names,
            max_clients,
            bytes_per_second: match &self.bytes_per_second {
                Some(text) => pace(text)?,
                None => BYTES_PER_SECOND,
            },
            admit: self.admit,
            services: self
                .services
                .iter()
                .map(service)
                .collect::<Result<_, _>>()?,
            tokens: self
                .tokens
                .iter()
                .map(|text| named_secret("relay.tokens", text))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl RelaySettings {
    /// The `host:port` names by which services dial it, which listens at `bound`.
    ///
    /// # Errors
    ///
    /// [`Mistake`] if none is configured and `bound` is no address that anybody dials.
    pub fn names(&self, bound: SocketAddr) -> anyhow::Result<Vec<String>> {
        if !self.names.is_empty() {
            return Ok(self.names.clone());
        }
        if bound.ip().is_unspecified() {
            let what = "relay.names is empty, so no service could register: list the HOST:PORT by which \
                        services dial this relay, as in \"relay-a.example:4430\"";
            return Err(anyhow::Error::msg(what).context(Mistake));
        }
        Ok(vec![bound.to_string()])
    }

    /// Whom it serves, with the tokens read from where they are.
    ///
    /// # Errors
    ///
    /// [`Mistake`] if nobody could be served as it is configured, or a token cannot be read.
    pub fn admission(&self) -> anyhow::Result<Admission> {
        self.check_admission().context(Mistake)
    }

    fn check_admission(&self) -> anyhow::Result<Admission> {
        let listed = self.services.iter().map(|service| *service.bytes());
        let listed: HashSet<_> = listed.collect();
        match self.admit {
            AdmitWord::Open => Ok((None, Admit::Open)),
            AdmitWord::List => {
                ensure!(
                    !listed.is_empty(),
                    "relay.services is empty, so nobody could use this relay: list the fingerprints of services \
                     (`gateway-cloud init` prints them), or set relay.admit = \"open\" to serve everybody"
                );
                Ok((Some(listed), Admit::Open))
            }
            AdmitWord::Token => {
                ensure!(
                    !self.tokens.is_empty(),
                    "relay.tokens is empty, so no gateway could use this relay: make one with \
                     `head -c 40 /dev/urandom | base32 -w0` and name it, as \"credential:NAME\" or \"file:/PATH\""
                );
                let tokens = self.tokens.iter().map(token);
                let tokens = tokens.collect::<anyhow::Result<Vec<_>>>()?;
                let ids: HashSet<_> = tokens.iter().map(|token| token.id).collect();
                ensure!(
                    ids.len() == tokens.len(),
                    "relay.tokens: two begin with the same 8 bytes; each needs bytes of its own"
                );
                let listed = (!listed.is_empty()).then_some(listed);
                Ok((listed, Admit::Tokens(tokens)))
            }
        }
    }
}

fn service(text: &String) -> anyhow::Result<Fingerprint> {
    let parsed: Fingerprint = text
        .parse()
        .with_context(|| format!("relay.services: {text:?}"))?;
    ensure!(
        parsed.kind() == KeyKind::ServiceIdentity,
        "relay.services: {text:?} is no service's fingerprint; `gateway-cloud init` prints it, sv-..."
    );
    Ok(parsed)
}

/// A token's file: 40 random bytes in base32, of which the first 8 are its name.
fn token(secret: &Secret) -> anyhow::Result<Token> {
    let text = secret.read().context("relay.tokens")?;
    Token::parse(&text).with_context(|| {
        format!(
            "relay.tokens: {secret} is not 40 bytes in base32 (64 letters); make it with \
             `head -c 40 /dev/urandom | base32 -w0`"
        )
    })
}

fn pace(text: &str) -> anyhow::Result<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => bail!("relay.bytes_per_second: {text:?} is no size, such as \"16MiB\""),
    };
    let number: u64 = digits.parse().with_context(|| {
        format!("relay.bytes_per_second: {text:?} is no size, such as \"16MiB\"")
    })?;
    let total = number.saturating_mul(unit);
    ensure!(
        (64 << 10..=1 << 40).contains(&total),
        "relay.bytes_per_second: {text:?} is not 64KiB to 1024GiB"
    );
    Ok(total)
}

const RELAY_LISTEN: &str = "[::]:4430";

const MAX_CLIENTS: usize = 10_000;

/// A gateway that catches up after an outage is meant to be fast; eight of them fill a gigabit.
const BYTES_PER_SECOND: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_serves_listed_services_unless_told_otherwise() {
        let (services, admit) = admission(&format!("services = [{SERVICE:?}]")).unwrap();
        let service: Fingerprint = SERVICE.parse().unwrap();
        assert_eq!(services, Some(HashSet::from([*service.bytes()])));
        assert!(matches!(admit, Admit::Open));

        let (services, admit) = admission("admit = \"open\"").unwrap();
        assert_eq!(services, None);
        assert!(matches!(admit, Admit::Open));
    }

    #[test]
    fn a_token_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        // RFC 4648, 6: forty zero bits are eight letters A; 'AAAAAAAB' is 1 in the last byte.
        std::fs::write(&path, format!("{}AAAAAAAB\n", "A".repeat(56))).unwrap();
        let text = format!("admit = \"token\"\ntokens = [\"file:{}\"]", path.display());
        let (services, admit) = admission(&text).unwrap();
        assert_eq!(services, None);
        let Admit::Tokens(tokens) = admit else {
            panic!("not tokens");
        };
        let [token] = tokens.as_slice() else {
            panic!("{} tokens", tokens.len());
        };
        let mut secret = [0; 32];
        secret[31] = 1;
        assert_eq!((token.id, *token.secret), ([0; 8], secret));
    }

    #[test]
    fn a_relay_that_nobody_could_use_does_not_start_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let short = folder.path().join("short");
        std::fs::write(&short, "AAAAAAAA").unwrap();
        let good = folder.path().join("good");
        std::fs::write(&good, "A".repeat(64)).unwrap();
        for (text, words) in [
            (String::new(), "relay.services is empty"),
            ("admit = \"token\"".to_owned(), "relay.tokens is empty"),
            (
                "admit = \"token\"\ntokens = [\"file:/nowhere/at-all\"]".to_owned(),
                "cannot read /nowhere/at-all",
            ),
            (
                format!("admit = \"token\"\ntokens = [\"file:{}\"]", short.display()),
                "is not 40 bytes in base32",
            ),
            (
                format!(
                    "admit = \"token\"\ntokens = [\"file:{0}\", \"file:{0}\"]",
                    good.display()
                ),
                "two begin with the same 8 bytes",
            ),
        ] {
            let Err(error) = admission(&text) else {
                panic!("accepted: {text}");
            };
            assert!(error.is::<Mistake>(), "{text}");
            let error = format!("{error:#}");
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn mistakes_say_where_and_what() {
        let inline = "A".repeat(64);
        for (text, words) in [
            ("admit = \"some\"".to_owned(), "unknown variant `some`"),
            (
                "services = [\"gi-1\"]".to_owned(),
                "relay.services: \"gi-1\"",
            ),
            (
                format!("admit = \"open\"\nservices = [{SERVICE:?}]"),
                "relay.services: relay.admit = \"open\" serves any service",
            ),
            (
                "tokens = [\"credential:a\"]".to_owned(),
                "only if relay.admit = \"token\"",
            ),
            (
                format!("admit = \"token\"\ntokens = [{inline:?}]"),
                "relay.tokens: an entry is inline",
            ),
            (
                "admit = \"token\"\ntokens = [\"credential:../a\"]".to_owned(),
                "is no credential's name",
            ),
            (
                "bytes_per_second = \"1MB\"".to_owned(),
                "relay.bytes_per_second: \"1MB\" is no size",
            ),
            (
                "bytes_per_second = \"1KiB\"".to_owned(),
                "is not 64KiB to 1024GiB",
            ),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains(&inline), "a secret is shown: {error}");
        }
    }

    fn admission(text: &str) -> anyhow::Result<Admission> {
        parse(text).unwrap().admission()
    }

    fn parse(text: &str) -> anyhow::Result<RelaySettings> {
        toml::from_str::<RawRelay>(text)?.check()
    }

    /// H of nothing in particular.
    const SERVICE: &str = "sv-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
}
