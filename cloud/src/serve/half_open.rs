//! Sessions whose handshake is not done: who opens them costs nothing to be told, so there are bounds
//! on all, and on those of one origin.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use link::Address;

use crate::source::Source;

/// Where a half-open session comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// From an address, to our own listener.
    Direct(Source),
    /// Through the registration at a relay, which alone sees the addresses.
    Relay(Address),
}

impl Origin {
    /// How many of this origin may be half-open (protocol.md 2.4).
    fn max(&self) -> usize {
        match self {
            Self::Direct(_) => PER_ADDRESS_MAX,
            Self::Relay(_) => PER_RELAY_MAX,
        }
    }
}

/// All half-open sessions, by origin. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct HalfOpen(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    all: usize,
    by_origin: HashMap<Origin, usize>,
}

/// One half-open session, until it is dropped.
pub(super) struct Handshaking {
    sessions: HalfOpen,
    origin: Origin,
}

impl HalfOpen {
    /// Counts a new session in; `None` if there is no room for it.
    pub(super) fn enter(&self, origin: Origin) -> Option<Handshaking> {
        let mut counts = self.counts();
        let of_origin = counts.by_origin.get(&origin).copied().unwrap_or_default();
        if ALL_MAX <= counts.all || origin.max() <= of_origin {
            return None;
        }
        counts.all += 1;
        counts.by_origin.insert(origin.clone(), of_origin + 1);
        Some(Handshaking {
            sessions: self.clone(),
            origin,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        let mut counts = self.sessions.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(of_origin) = counts.by_origin.get_mut(&self.origin) {
            *of_origin = of_origin.saturating_sub(1);
            if *of_origin == 0 {
                counts.by_origin.remove(&self.origin);
            }
        }
    }
}

// protocol.md 2.4. A handshake takes a gateway with a slow TPM a second or two and may take 15 s: 4096
// are 270 gateways a second at the worst, and some 40 MB of buffers.
const ALL_MAX: usize = 4096;
const PER_ADDRESS_MAX: usize = 32;
const PER_RELAY_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_origin_has_its_bound_and_who_leaves_makes_room() {
        let sessions = HalfOpen::default();
        for (origin, max) in [
            (direct(1), 32),
            (direct(2), 32),
            (relay("a.example"), 512),
            (relay("b.example"), 512),
        ] {
            let mut held: Vec<_> = (0..max)
                .map(|_| sessions.enter(origin.clone()).unwrap())
                .collect();
            assert!(sessions.enter(origin.clone()).is_none(), "{origin:?}");
            held.pop();
            drop(sessions.enter(origin.clone()).unwrap());
            assert!(sessions.enter(direct(9)).is_some(), "others are let in");
        }
        let counts = sessions.counts();
        assert_eq!((counts.all, counts.by_origin.len()), (0, 0));
    }

    #[test]
    fn ten_thousand_from_everywhere_are_bounded_together() {
        let sessions = HalfOpen::default();
        let held: Vec<_> = (0..10_000)
            .filter_map(|number| sessions.enter(direct(number)))
            .collect();
        assert_eq!(held.len(), 4096);
        drop(held);
        assert!(sessions.enter(direct(1)).is_some());
    }

    fn direct(number: u32) -> Origin {
        Origin::Direct(Source::of(std::net::Ipv4Addr::from(number).into()))
    }

    fn relay(host: &str) -> Origin {
        Origin::Relay(format!("relay://{host}:4430").parse().unwrap())
    }
}
