//! The order of attempts, and how long each may take.

use std::time::Duration;

use link::{Address, Patience};

use crate::backoff::Backoff;

/// The order of attempts.
pub(super) struct Rounds {
    backoff: Backoff,
    /// The addresses that this round has tried.
    pub(super) tried: Vec<Address>,
    /// Whether this is the first round since the start or since a session that worked.
    first: bool,
}

impl Rounds {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::new(RETRY_MIN, RETRY_MAX),
            tried: Vec::new(),
            first: true,
        }
    }

    /// How long this round waits at one of so many addresses. The first round is in a hurry to find
    /// one that works; if there is none, the network is slow, and the next rounds have time.
    pub(super) fn waits(&self, addresses: usize) -> Waits {
        if self.first && 1 < addresses {
            HURRIED
        } else {
            Waits::default()
        }
    }

    /// Begins afresh after a session that worked, without the address at which it `failed`; returns
    /// the pause until then. It may have ended for all gateways at once, so that they spread.
    pub(super) fn after_work(&mut self, failed: Option<Address>) -> Duration {
        self.backoff.reset();
        self.first = true;
        self.tried = failed.into_iter().collect();
        self.backoff.pause()
    }

    /// Ends the round; returns the pause until the next.
    pub(super) fn end(&mut self) -> Duration {
        self.tried.clear();
        self.first = false;
        self.backoff.pause()
    }
}

/// How long one attempt waits.
#[derive(Clone, Copy)]
pub(super) struct Waits {
    pub(super) dial: Patience,
    /// For the service to prove its key, after the relay's `ok`.
    pub(super) proof: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            dial: Patience::default(),
            proof: PROOF_TIME_MAX,
        }
    }
}

/// By satellite the connection takes 0.6 s, or 1.6 s if its first SYN is lost; the relay's answer two
/// round trips; the service's first message one. Twice that and more is waited, so a dead relay
/// costs 3 s, and one that keeps silent 5 s.
const HURRIED: Waits = Waits {
    dial: Patience {
        connect: Duration::from_secs(3),
        answer: Duration::from_secs(5),
    },
    proof: Duration::from_secs(5),
};

/// The session's own limit (protocol.md 2.4).
const PROOF_TIME_MAX: Duration = Duration::from_secs(30);

/// protocol.md 6.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// protocol.md 6.
const RETRY_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(name: &str) -> Address {
        format!("relay://{name}.example:4430").parse().unwrap()
    }

    #[test]
    fn only_the_first_round_of_several_addresses_is_in_a_hurry() {
        let mut rounds = Rounds::new();
        assert_eq!(rounds.waits(1).dial, Patience::default());
        assert_eq!(rounds.waits(2).dial, HURRIED.dial);
        rounds.end();
        assert_eq!(rounds.waits(2).dial, Patience::default());
        rounds.after_work(Some(address("a")));
        assert_eq!(rounds.waits(2).dial, HURRIED.dial);
    }

    #[test]
    fn pauses_lie_between_rounds_and_grow_until_a_session_works() {
        let mut rounds = Rounds::new();
        for round in 0..20_u32 {
            rounds.tried.push(address("a"));
            let ceiling = (RETRY_MIN * 2_u32.pow(round.min(9))).min(RETRY_MAX);
            assert!(rounds.end() <= ceiling);
            assert!(rounds.tried.is_empty());
        }
        let pause = rounds.after_work(Some(address("a")));
        assert!(pause <= RETRY_MIN, "{pause:?}");
        assert_eq!(rounds.tried, [address("a")]);
    }
}
