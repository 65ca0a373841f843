//! How many connections each address has that have not earned their place yet.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use wire::relay::RelayCode;

use super::Relay;

/// Where a connection comes from, as far as one party can be told from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4(Ipv4Addr),
    /// The first 64 bits: the rest is the host's own choice (RFC 4291, 2.5.1).
    V6([u16; 4]),
}

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// Pending connections: in all, and by source.
#[derive(Default)]
pub(super) struct Sources {
    pending: usize,
    by_source: HashMap<Source, usize>,
}

/// A pending connection. Dropped when it is registered, spliced, or gone.
pub(super) struct Pending {
    relay: Arc<Relay>,
    source: Source,
}

impl Pending {
    /// Counts a new connection, if there is room for it.
    pub(super) fn enter(relay: &Arc<Relay>, source: Source) -> Result<Self, RelayCode> {
        let limits = &relay.config.limits;
        let mut sources = relay.sources();
        if sources.pending >= limits.pending {
            return Err(RelayCode::Busy);
        }
        let count = sources.by_source.entry(source).or_default();
        if *count >= limits.pending_per_address {
            return Err(RelayCode::Limit);
        }
        *count += 1;
        sources.pending += 1;
        Ok(Self {
            relay: Arc::clone(relay),
            source,
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut sources = self.relay.sources();
        sources.pending = sources.pending.saturating_sub(1);
        if let Some(count) = sources.by_source.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sources.by_source.remove(&self.source);
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
