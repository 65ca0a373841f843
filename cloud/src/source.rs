//! Where a connection comes from.

use std::net::{IpAddr, Ipv4Addr};

/// Where a connection comes from, as far as one party can be told from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    V4(Ipv4Addr),
    /// The first 64 bits: the rest is the host's own choice (RFC 4291, 2.5.1).
    V6([u16; 4]),
}

impl Source {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_an_ipv6_network_are_one_source() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    #[test]
    fn an_ipv4_address_is_the_same_source_through_an_ipv6_listener() {
        let mapped = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(Source::of(mapped), Source::V4(Ipv4Addr::new(192, 0, 2, 7)));
    }
}
