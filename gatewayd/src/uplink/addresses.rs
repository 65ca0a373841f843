//! How the addresses of a service have done, and which is tried next.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use link::Address;

use super::cause::Cause;

/// The addresses of one service, with what happened at each.
///
/// Pure: told the time, in milliseconds since boot.
#[derive(Debug, Default)]
pub struct Addresses {
    /// In the order of the configuration, which is the operator's order of preference.
    known: Vec<Health>,
}

/// One address, and what happened there since the daemon started.
#[derive(Clone, Debug)]
pub struct Health {
    /// Where.
    pub address: Address,
    /// Sessions that were opened there.
    pub sessions: u64,
    /// From the first SYN to the service's admission, the own key's operation included, of the
    /// newest session.
    pub handshake: Option<Duration>,
    /// Failures by the word of their cause.
    pub failures: BTreeMap<&'static str, u64>,
    /// Of these, what the relay said, by its own words.
    pub refusals: BTreeMap<String, u64>,
    /// The newest failure, in words.
    pub last_failure: Option<String>,
    /// Boot time in milliseconds of the newest failures, newest last; [`RECENT_MAX`] at most.
    failed_ms: Vec<u64>,
}

impl Addresses {
    /// Takes the addresses of the configuration or a ticket; those that stay keep their history.
    pub fn set(&mut self, addresses: &[Address]) {
        let mut before = std::mem::take(&mut self.known);
        for address in addresses {
            let kept = before
                .iter()
                .position(|health| health.address == *address)
                .map(|at| before.swap_remove(at));
            // An address that is written twice is one address.
            if self.find(address).is_none() {
                self.known
                    .push(kept.unwrap_or_else(|| Health::new(address)));
            }
        }
    }

    /// The healthiest address that was not `tried` yet: the one with the fewest recent failures; of
    /// these, one that was not slow; of these, the first in the configuration.
    #[must_use]
    pub fn healthiest(&self, tried: &[Address], now_ms: u64) -> Option<Address> {
        self.known
            .iter()
            .filter(|health| !tried.contains(&health.address))
            .min_by_key(|health| (health.recent_failures(now_ms), health.slowness()))
            .map(|health| health.address.clone())
    }

    /// Writes down that a session was opened.
    pub fn note_open(&mut self, address: &Address, handshake: Duration) {
        if let Some(health) = self.find(address) {
            health.sessions += 1;
            health.handshake = Some(handshake);
        }
    }

    /// Writes down a failure that is charged to the address.
    pub fn note_failure(&mut self, address: &Address, cause: Cause, words: String, now_ms: u64) {
        let Some(health) = self.find(address) else {
            return;
        };
        *health.failures.entry(cause.word()).or_default() += 1;
        if let Cause::Refused(code) = cause {
            *health.refusals.entry(code.to_string()).or_default() += 1;
        }
        health.last_failure = Some(words);
        if health.failed_ms.len() == RECENT_MAX {
            health.failed_ms.remove(0);
        }
        health.failed_ms.push(now_ms);
    }

    /// All of them, in the order of the configuration.
    #[must_use]
    pub fn all(&self) -> Vec<Health> {
        self.known.clone()
    }

    fn find(&mut self, address: &Address) -> Option<&mut Health> {
        self.known
            .iter_mut()
            .find(|health| health.address == *address)
    }
}

impl Health {
    fn new(address: &Address) -> Self {
        Self {
            address: address.clone(),
            sessions: 0,
            handshake: None,
            failures: BTreeMap::new(),
            refusals: BTreeMap::new(),
            last_failure: None,
            failed_ms: Vec::new(),
        }
    }

    /// Boot time in milliseconds of the newest failure.
    #[must_use]
    pub fn last_failed_ms(&self) -> Option<u64> {
        self.failed_ms.last().copied()
    }

    fn recent_failures(&self, now_ms: u64) -> usize {
        let recent = |at: &&u64| now_ms.saturating_sub(**at) < RECENT_MS;
        self.failed_ms.iter().filter(recent).count()
    }

    /// Coarse, so that only a difference that people would notice outweighs the operator's order.
    /// What was never measured deserves a try.
    fn slowness(&self) -> Reverse<usize> {
        let handshake = self.handshake.unwrap_or_default();
        Reverse(SLOW.iter().filter(|&&limit| handshake < limit).count())
    }
}

/// A failure counts against an address for so long: twice the longest pause between attempts, so
/// that an address that fails at every attempt never looks healthy.
const RECENT_MS: u64 = 10 * 60 * 1000;

/// More failures in ten minutes make no address worse.
const RECENT_MAX: usize = 16;

/// A handshake needs four round trips through a relay and up to 600 ms of the TPM: near, by mobile
/// network, by satellite.
const SLOW: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(name: &str) -> Address {
        format!("relay://{name}.example:4430").parse().unwrap()
    }

    fn three() -> Addresses {
        let mut addresses = Addresses::default();
        addresses.set(&["a", "b", "c"].map(address));
        addresses
    }

    fn fail(addresses: &mut Addresses, name: &str, now_ms: u64) {
        let words = "cut".to_owned();
        addresses.note_failure(&address(name), Cause::Truncated, words, now_ms);
    }

    #[test]
    fn without_a_difference_the_order_is_the_operators() {
        let addresses = three();
        assert_eq!(addresses.healthiest(&[], 0), Some(address("a")));
        let tried = [address("a")];
        assert_eq!(addresses.healthiest(&tried, 0), Some(address("b")));
        let tried = ["a", "b", "c"].map(address);
        assert_eq!(addresses.healthiest(&tried, 0), None);
    }

    #[test]
    fn fewer_recent_failures_come_first_and_old_ones_are_forgiven() {
        let mut addresses = three();
        fail(&mut addresses, "a", 1000);
        assert_eq!(addresses.healthiest(&[], 1001), Some(address("b")));
        fail(&mut addresses, "a", 1002);
        fail(&mut addresses, "b", 2000);
        assert_eq!(addresses.healthiest(&[], 2001), Some(address("c")));
        fail(&mut addresses, "c", 3000);
        fail(&mut addresses, "c", 4000);
        assert_eq!(addresses.healthiest(&[], 4001), Some(address("b")));
        // Ten minutes after the failures of a, that of b still counts.
        let later = 1002 + RECENT_MS;
        assert_eq!(addresses.healthiest(&[], later), Some(address("a")));
    }

    #[test]
    fn a_slow_address_comes_after_those_that_are_not() {
        let mut addresses = three();
        addresses.note_open(&address("a"), Duration::from_secs(4));
        assert_eq!(addresses.healthiest(&[], 0), Some(address("b")));
        // A difference that nobody notices changes nothing.
        addresses.note_open(&address("a"), Duration::from_millis(900));
        addresses.note_open(&address("b"), Duration::from_millis(50));
        assert_eq!(addresses.healthiest(&[], 0), Some(address("a")));
    }

    #[test]
    fn failures_are_counted_by_cause_and_refusals_by_the_relays_words() {
        let mut addresses = three();
        let b = address("b");
        let mut note = |cause| addresses.note_failure(&b, cause, "why".into(), 7);
        note(Cause::Rejected);
        note(Cause::Rejected);
        note(Cause::Refused(wire::relay::RelayCode::Draining));
        let all = addresses.all();
        assert_eq!(
            all[1].failures,
            BTreeMap::from([("refused", 1), ("rejected", 2)])
        );
        let draining = wire::relay::RelayCode::Draining.to_string();
        assert_eq!(all[1].refusals, BTreeMap::from([(draining, 1)]));
        assert_eq!(all[1].last_failed_ms(), Some(7));
        assert!(all[0].failures.is_empty() && all[2].failures.is_empty());
    }

    #[test]
    fn an_address_that_stays_keeps_its_history() {
        let mut addresses = three();
        fail(&mut addresses, "b", 5);
        addresses.set(&["c", "b", "b", "d"].map(address));
        let all = addresses.all();
        let names: Vec<_> = all.iter().map(|health| health.address.clone()).collect();
        assert_eq!(names, ["c", "b", "d"].map(address));
        assert_eq!(all[1].failures, BTreeMap::from([("truncated", 1)]));
    }

    proptest! {
        /// Whatever happened, a round reaches every address once, and what is kept is bounded.
        #[test]
        fn a_round_reaches_every_address(failures in proptest::collection::vec((0_usize..3, 0_u64..2_000_000), 0..80)) {
            let mut addresses = three();
            for (at, now_ms) in failures {
                fail(&mut addresses, ["a", "b", "c"][at], now_ms);
            }
            let mut tried = Vec::new();
            while let Some(next) = addresses.healthiest(&tried, 2_000_000) {
                prop_assert!(!tried.contains(&next));
                tried.push(next);
            }
            prop_assert_eq!(tried.len(), 3);
            prop_assert!(addresses.all().iter().all(|health| health.failed_ms.len() <= RECENT_MAX));
        }
    }
}
