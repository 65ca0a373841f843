//! Where a service is reached: `tcp://host:port` or `relay://host:port/<service fingerprint>`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use channel::{Fingerprint, FingerprintFormatError, KeyKind};

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// The service itself listens there.
    Tcp {
        /// Name or IP address, without the brackets of an IPv6 address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A relay listens there, with which the service has registered.
    Relay {
        /// Name or IP address, without the brackets of an IPv6 address.
        host: String,
        /// TCP port.
        port: u16,
        /// The service asked for; without it, the one that is pinned.
        service: Option<Fingerprint>,
    },
}

impl Address {
    /// `host:port` as dialled: what a service signs when it registers with a relay
    /// (protocol.md 6). IPv6 addresses are in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        let (host, port) = (self.host(), self.port());
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    /// Name or IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } | Self::Relay { host, .. } => host,
        }
    }

    /// TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Tcp { port, .. } | Self::Relay { port, .. } => *port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.authority();
        match self {
            Self::Tcp { .. } => write!(f, "{TCP}{authority}"),
            Self::Relay { service: None, .. } => write!(f, "{RELAY}{authority}"),
            Self::Relay {
                service: Some(service),
                ..
            } => write!(f, "{RELAY}{authority}/{service}"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(authority) = text.strip_prefix(TCP) {
            let (host, port) = parse_authority(authority)?;
            return Ok(Self::Tcp { host, port });
        }
        let Some(rest) = text.strip_prefix(RELAY) else {
            return Err(AddressError::Scheme);
        };
        let (authority, service) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(parse_service(path)?)),
            None => (rest, None),
        };
        let (host, port) = parse_authority(authority)?;
        Ok(Self::Relay {
            host,
            port,
            service,
        })
    }
}

/// Why a text is not an [`Address`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It begins with neither scheme.
    #[error("an address begins with \"tcp://\" or \"relay://\"")]
    Scheme,

    /// The host is missing, or neither a name nor an IP address.
    #[error("the host is no name and no IP address; an IPv6 address stands in brackets")]
    Host,

    /// The port is missing, or not 1 to 65535.
    #[error("the port is missing, or not 1 to 65535")]
    Port,

    /// What follows the relay's port is not a fingerprint.
    #[error("what follows the relay's port is not a service's fingerprint")]
    Service(#[source] FingerprintFormatError),

    /// What follows the relay's port is the fingerprint of something else.
    #[error("what follows the relay's port is not the fingerprint of a service: it begins \"sv-\"")]
    NotAService,
}

fn parse_service(path: &str) -> Result<Fingerprint, AddressError> {
    let service: Fingerprint = path.parse().map_err(AddressError::Service)?;
    if service.kind() == KeyKind::ServiceIdentity {
        Ok(service)
    } else {
        Err(AddressError::NotAService)
    }
}

fn parse_authority(authority: &str) -> Result<(String, u16), AddressError> {
    let (host, port) = authority.rsplit_once(':').ok_or(AddressError::Port)?;
    let host = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner,
        None if is_host_name(host) => host,
        Some(_) | None => return Err(AddressError::Host),
    };
    // `u16::from_str` takes "+80" and "080", which no one means.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.starts_with('0') {
        return Err(AddressError::Port);
    }
    let port = port.parse().map_err(|_| AddressError::Port)?;
    Ok((host.to_owned(), port))
}

/// Letters, digits, hyphens, dots and underscores: DNS names as people use them, and IPv4.
fn is_host_name(host: &str) -> bool {
    (1..=HOST_BYTES_MAX).contains(&host.len())
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

const TCP: &str = "tcp://";
const RELAY: &str = "relay://";

/// RFC 1035, 2.3.4: a name has at most 255 octets on the wire, which is 253 characters.
const HOST_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVICE: &str = "sv-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn parse(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    #[test]
    fn a_service_is_reached_directly() {
        assert_eq!(
            parse("tcp://intake.example:4431").unwrap(),
            Address::Tcp {
                host: "intake.example".to_owned(),
                port: 4431
            }
        );
    }

    #[test]
    fn a_service_is_reached_through_a_relay() {
        let address = parse("relay://relay-a.example:4430").unwrap();
        assert_eq!(address.authority(), "relay-a.example:4430");
        assert!(matches!(address, Address::Relay { service: None, .. }));

        let address = parse(&format!("relay://relay-a.example:4430/{SERVICE}")).unwrap();
        let Address::Relay {
            service: Some(service),
            ..
        } = address
        else {
            panic!("the service was lost");
        };
        assert_eq!(service.to_string(), SERVICE);
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let address = parse("tcp://[2001:db8::7]:4431").unwrap();
        assert_eq!(address.host(), "2001:db8::7");
        assert_eq!(address.authority(), "[2001:db8::7]:4431");
        assert_eq!(parse("tcp://2001:db8::7:4431"), Err(AddressError::Host));
        assert_eq!(parse("tcp://[farm]:4431"), Err(AddressError::Host));
    }

    #[test]
    fn whatever_else_is_refused_with_its_part() {
        for (text, error) in [
            ("", AddressError::Scheme),
            ("farm:4431", AddressError::Scheme),
            ("TCP://farm:4431", AddressError::Scheme),
            ("https://farm:4431", AddressError::Scheme),
            ("tcp://farm", AddressError::Port),
            ("tcp://farm:", AddressError::Port),
            ("tcp://farm:0", AddressError::Port),
            ("tcp://farm:+80", AddressError::Port),
            ("tcp://farm:080", AddressError::Port),
            ("tcp://farm:65536", AddressError::Port),
            ("tcp://farm:4431/", AddressError::Port),
            ("tcp://:4431", AddressError::Host),
            ("tcp://user@farm:4431", AddressError::Host),
            ("tcp://fa rm:4431", AddressError::Host),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn only_a_service_follows_a_relay() {
        let gateway = SERVICE.replace("sv-", "gi-");
        assert_eq!(
            parse(&format!("relay://farm:4430/{gateway}")),
            Err(AddressError::NotAService)
        );
        assert!(matches!(
            parse("relay://farm:4430/"),
            Err(AddressError::Service(_))
        ));
        assert!(matches!(
            parse(&format!("relay://farm:4430/{SERVICE}/")),
            Err(AddressError::Service(_))
        ));
    }

    proptest! {
        /// What is accepted is printed as it was written.
        #[test]
        fn an_address_is_printed_as_it_was_read(
            host in "[a-z0-9._-]{1,40}|\\[::[0-9a-f]{1,4}\\]",
            port in 1_u16..,
            service in any::<Option<[u8; 32]>>(),
        ) {
            let service = service.map(|bytes| Fingerprint::new(KeyKind::ServiceIdentity, bytes));
            let path = service.map(|service| format!("/{service}")).unwrap_or_default();
            for text in [format!("tcp://{host}:{port}"), format!("relay://{host}:{port}{path}")] {
                prop_assert_eq!(parse(&text).unwrap().to_string(), text);
            }
        }

        /// No text crashes the parser.
        #[test]
        fn any_text_is_read_or_refused(text in "(tcp://|relay://)?.{0,60}") {
            let _ = parse(&text);
        }
    }
}
