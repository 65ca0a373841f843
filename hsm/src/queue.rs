//! What waits for the TPM: the urgent first, and in each rank the oldest first.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::owner::lock;

/// How urgent a call is. A command that the TPM works on is never interrupted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Rank {
    /// A peer waits in a handshake, and gives up after seconds.
    Handshake,
    /// An epoch's header: delivery waits for it.
    Signature,
    /// Evidence, health, sealing and setting up: nobody loses anything by a wait.
    Rest,
}

impl Rank {
    fn place(self) -> usize {
        match self {
            Self::Handshake => 0,
            Self::Signature => 1,
            Self::Rest => 2,
        }
    }
}

/// A bounded queue; whoever takes from it may wait.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    /// One lane for each [`Rank`].
    lanes: [VecDeque<T>; RANKS],
    closed: bool,
}

/// Why nothing was put in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NotTaken {
    /// As many of this rank wait as may.
    Full,
    /// Nobody takes any more.
    Closed,
}

/// What came out of a wait.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Next<T> {
    /// The most urgent.
    Item(T),
    /// Nothing came in time.
    Nothing,
    /// Nothing will come any more.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                lanes: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Puts an item behind those of its rank.
    pub(crate) fn put(&self, rank: Rank, item: T) -> Result<(), NotTaken> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(NotTaken::Closed);
        }
        let Some(lane) = state.lanes.get_mut(rank.place()) else {
            return Err(NotTaken::Full);
        };
        if WAITING_MAX <= lane.len() {
            return Err(NotTaken::Full);
        }
        lane.push_back(item);
        // All: who waits may wait for another rank.
        self.changed.notify_all();
        Ok(())
    }

    /// Takes the most urgent item, and waits for one: without end, or as long as `patience`.
    pub(crate) fn take(&self, patience: Option<Duration>) -> Next<T> {
        self.take_from(RANKS, patience)
    }

    /// As [`take`](Self::take), of those more urgent than `rank`.
    pub(crate) fn take_above(&self, rank: Rank, patience: Duration) -> Next<T> {
        self.take_from(rank.place(), Some(patience))
    }

    fn take_from(&self, lanes: usize, patience: Option<Duration>) -> Next<T> {
        let give_up = patience.map(|patience| Instant::now() + patience);
        let mut state = lock(&self.state);
        loop {
            let mut urgent = state.lanes.iter_mut().take(lanes);
            if let Some(item) = urgent.find_map(VecDeque::pop_front) {
                return Next::Item(item);
            }
            if state.closed {
                return Next::Closed;
            }
            let left = give_up.map(|give_up| give_up.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return Next::Nothing,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes nothing more; what is in may still be taken out.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

const RANKS: usize = 3;

/// Of each rank: a handshake and an epoch header for each of a dozen services, and some calls for
/// people. Past that the TPM does not keep up, and callers had better hear it.
const WAITING_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urgent_comes_first_and_then_the_oldest() {
        let queue = Queue::new();
        for (rank, item) in [
            (Rank::Rest, "quote"),
            (Rank::Signature, "header"),
            (Rank::Rest, "health"),
            (Rank::Handshake, "handshake"),
            (Rank::Signature, "second header"),
        ] {
            queue.put(rank, item).unwrap();
        }
        queue.close();

        for expected in ["handshake", "header", "second header", "quote", "health"] {
            assert_eq!(queue.take(None), Next::Item(expected));
        }
        assert_eq!(queue.take(None), Next::Closed);
        assert_eq!(queue.put(Rank::Rest, "late"), Err(NotTaken::Closed));
    }

    #[test]
    fn a_flood_of_one_rank_leaves_room_for_the_others() {
        let queue = Queue::new();
        for number in 0..WAITING_MAX {
            queue.put(Rank::Rest, number).unwrap();
        }
        assert_eq!(queue.put(Rank::Rest, 99), Err(NotTaken::Full));
        queue.put(Rank::Handshake, 100).unwrap();
        assert_eq!(queue.take(None), Next::Item(100));
    }

    #[test]
    fn who_pauses_is_given_only_what_is_more_urgent() {
        let queue = Queue::new();
        queue.put(Rank::Rest, "quote").unwrap();
        queue.put(Rank::Signature, "header").unwrap();
        let above = |rank| queue.take_above(rank, Duration::ZERO);
        assert_eq!(above(Rank::Signature), Next::Nothing);
        assert_eq!(above(Rank::Rest), Next::Item("header"));
        assert_eq!(above(Rank::Rest), Next::Nothing);
        assert_eq!(queue.take(None), Next::Item("quote"));
    }

    #[test]
    fn a_wait_ends_with_an_item_or_with_patience() {
        let queue = Queue::new();
        assert_eq!(queue.take(Some(Duration::ZERO)), Next::Nothing);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.take(None));
            queue.put(Rank::Rest, 1).unwrap();
            assert_eq!(waiting.join().unwrap(), Next::Item(1));
        });
    }
}
