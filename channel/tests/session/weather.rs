//! Two sessions over a wire that splits, merges and delays what it carries, which is its right, or
//! drops, repeats, reorders, flips and cuts, which must not go unnoticed. Time is simulated.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use std::vec;

use channel::{Admission, SessionError, Suite, TRANSMIT_BYTES_MAX};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::net::{Side, World, seconds};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_wire_that_splits_merges_and_delays_loses_nothing(
        aes: bool,
        up in vec(calm(), 0..60),
        down in vec(calm(), 0..60),
        sends in sends(),
    ) {
        let mut weather = Weather::new(aes, up, down, sends);
        weather.run();

        for end in &weather.ends {
            prop_assert!(end.error.is_none(), "{:?}", end.error);
            prop_assert!(end.side.opened.is_some());
            prop_assert_eq!(end.side.asked.len(), 1);
        }
        let [gateway, service] = &weather.ends;
        prop_assert!(service.side.received == gateway.said);
        prop_assert!(gateway.side.received == service.said);

        let gateway = &mut weather.ends[0].side;
        gateway.session.close(Admission::GoingAway);
        prop_assert!(gateway.react(weather.now).is_ok());
        weather.run();
        for end in &mut weather.ends {
            prop_assert_eq!(end.side.closed, Some(Admission::GoingAway));
            prop_assert!(end.error.is_none());
            prop_assert!(end.side.session.handle_end(weather.now).is_ok());
        }
    }

    #[test]
    fn whatever_a_wire_alters_ends_the_session_and_reaches_nobody(
        aes: bool,
        up in vec(prop_oneof![9 => calm(), 1 => storm()], 0..60),
        down in vec(prop_oneof![9 => calm(), 1 => storm()], 0..60),
        sends in sends(),
    ) {
        let mut weather = Weather::new(aes, up, down, sends);
        weather.run();

        let is_harmed = weather.ends.iter().any(|end| end.line.delivered != end.line.sent);
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (&weather.ends[from], &weather.ends[to]);
            prop_assert!(from.said.starts_with(&to.side.received));
            prop_assert!(to.side.closed.is_none());
            // Not silently, and not later than the keep-alive finds out.
            prop_assert_eq!(to.error.is_some(), is_harmed);
            if !from.line.sent.starts_with(&from.line.delivered) {
                prop_assert!(to.error.is_some());
            }
            if !is_harmed {
                prop_assert!(to.side.received == from.said);
            }
            prop_assert!(to.side.asked.len() <= 1);
        }
    }
}

/// What happens to one segment on its way.
#[derive(Clone, Debug)]
enum Fate {
    Delayed(u64),
    Split(usize),
    Merged,
    Dropped,
    Repeated,
    /// The next one arrives before it.
    Overtaken,
    Flipped(usize, u8),
    /// This one and all that follow.
    CutOff,
}

fn calm() -> impl Strategy<Value = Fate> {
    prop_oneof![
        (0..2_000_u64).prop_map(Fate::Delayed),
        any::<usize>().prop_map(Fate::Split),
        Just(Fate::Merged),
    ]
}

fn storm() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::Dropped),
        Just(Fate::Repeated),
        Just(Fate::Overtaken),
        (any::<usize>(), 0..8_u8).prop_map(|(at, bit)| Fate::Flipped(at, bit)),
        Just(Fate::CutOff),
    ]
}

/// When, by whom, and how many bytes: some larger than a record.
fn sends() -> impl Strategy<Value = Vec<(u64, usize, usize)>> {
    let length = prop_oneof![9 => 1..2_000_usize, 1 => 60_000..200_000_usize];
    vec((0..120_000_u64, 0..2_usize, length), 0..12).prop_map(|mut sends| {
        sends.sort_unstable();
        sends
    })
}

/// Both ends, and what the wire has for them.
struct Weather {
    /// The gateway, then the service.
    ends: [End; 2],
    sends: VecDeque<(u64, usize, usize)>,
    start: Instant,
    now: Instant,
}

struct End {
    side: Side,
    error: Option<SessionError>,
    /// What its user sent.
    said: Vec<u8>,
    /// Where its segments go.
    line: Line,
}

impl Weather {
    fn new(aes: bool, up: Vec<Fate>, down: Vec<Fate>, sends: Vec<(u64, usize, usize)>) -> Self {
        let world = World::new();
        let suite = if aes {
            Suite::AesGcm
        } else {
            Suite::ChaChaPoly
        };
        let gateway = world.gateway_of(world.config(suite, None), 1);
        let end = |side, fates: Vec<Fate>| End {
            side,
            error: None,
            said: Vec::new(),
            line: Line::new(fates, world.start),
        };
        Self {
            ends: [end(gateway, up), end(world.service(1), down)],
            sends: sends.into(),
            start: world.start,
            now: world.start,
        }
    }

    /// Runs until all is said and the last harm is so long ago that it must have been noticed.
    fn run(&mut self) {
        let mut until = self.now + seconds(120) + NOTICED_WITHIN;
        loop {
            self.transmit();
            for end in &self.ends {
                until = until.max(end.line.harmed_at + NOTICED_WITHIN);
            }
            let Some(next) = self.next().filter(|next| *next <= until) else {
                return;
            };
            self.now = self.now.max(next);
            self.step();
        }
    }

    /// When something happens next.
    fn next(&self) -> Option<Instant> {
        let arrivals = self.ends.iter().filter_map(|end| end.line.next());
        let timeouts = self.ends.iter().filter_map(End::timeout);
        arrivals.chain(timeouts).chain(self.next_send()).min()
    }

    fn next_send(&self) -> Option<Instant> {
        let (at_ms, ..) = self.sends.front()?;
        Some(self.start + Duration::from_millis(*at_ms))
    }

    /// Lets happen what is due.
    fn step(&mut self) {
        if self.next_send().is_some_and(|at| at <= self.now) {
            self.send();
        }
        for (from, to) in [(0, 1), (1, 0)] {
            if let Some(segment) = self.ends[from].line.arrive(self.now) {
                self.ends[to].feed(self.now, &segment);
            }
            // Who gives up ends the transport, for the other side, too.
            if self.ends[from].error.is_some() && self.ends[from].line.next().is_none() {
                self.ends[to].cut(self.now);
            }
        }
        for end in &mut self.ends {
            if end.timeout().is_some_and(|at| at <= self.now) {
                let result = end.side.wake(self.now);
                end.note(result);
            }
            end.check(self.now);
        }
    }

    fn send(&mut self) {
        let Some((at_ms, who, length)) = self.sends.pop_front() else {
            return;
        };
        let end = &mut self.ends[who];
        let bytes: Vec<u8> = (0..length)
            .map(|n| (n as u64 * 7 + at_ms).to_le_bytes()[0])
            .collect();
        match end.side.session.send(self.now, &bytes) {
            Ok(()) => end.said.extend(bytes),
            // Before it is open, or after its end.
            Err(SessionError::LocalOutOfTurn) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn transmit(&mut self) {
        for end in &mut self.ends {
            let segment = end.side.take();
            if !segment.is_empty() {
                end.line.accept(self.now, segment);
            }
        }
    }
}

impl End {
    fn timeout(&self) -> Option<Instant> {
        self.side.session.poll_timeout()
    }

    fn is_over(&self) -> bool {
        self.error.is_some() || self.side.closed.is_some()
    }

    /// Whatever arrives after the end changes nothing.
    fn feed(&mut self, now: Instant, segment: &[u8]) {
        let over = self.is_over().then_some(self.side.received.len());
        let result = self.side.feed(now, segment);
        if let Some(received) = over {
            let is_ignored = match &self.error {
                Some(_) => matches!(result, Err(SessionError::LocalOutOfTurn)),
                None => result.is_ok(),
            };
            assert!(is_ignored);
            assert_eq!(self.side.received.len(), received);
        } else {
            self.note(result);
        }
    }

    fn cut(&mut self, now: Instant) {
        if !self.is_over() {
            let result = self.side.session.handle_end(now);
            self.note(result);
        }
    }

    fn note(&mut self, result: Result<(), SessionError>) {
        if let Err(error) = result {
            assert!(self.error.is_none());
            self.error = Some(error);
        }
    }

    /// A session that is not over has a time at which it does something about silence.
    fn check(&self, now: Instant) {
        let wait_max = if self.side.opened.is_some() {
            seconds(255)
        } else {
            seconds(30)
        };
        match self.timeout() {
            Some(at) => assert!(!self.is_over() && at <= now + wait_max),
            None => assert!(self.is_over()),
        }
        assert!(self.side.session.transmit().len() <= TRANSMIT_BYTES_MAX);
    }
}

/// One direction of the wire.
struct Line {
    /// Of the segments to come; those without one just pass.
    fates: vec::IntoIter<Fate>,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    overtaken: Option<Vec<u8>>,
    is_cut: bool,
    sent: Vec<u8>,
    delivered: Vec<u8>,
    harmed_at: Instant,
}

impl Line {
    fn new(fates: Vec<Fate>, start: Instant) -> Self {
        Self {
            fates: fates.into_iter(),
            under_way: VecDeque::new(),
            overtaken: None,
            is_cut: false,
            sent: Vec::new(),
            delivered: Vec::new(),
            harmed_at: start,
        }
    }

    fn accept(&mut self, now: Instant, mut segment: Vec<u8>) {
        self.sent.extend(&segment);
        let fate = self.fates.next().unwrap_or(Fate::Delayed(0));
        if self.is_cut || !matches!(fate, Fate::Delayed(_) | Fate::Split(_) | Fate::Merged) {
            self.harmed_at = now;
        }
        if self.is_cut {
            return;
        }
        let soon = now + ONE_WAY;
        match fate {
            Fate::Delayed(ms) => self.put(soon + Duration::from_millis(ms), segment),
            Fate::Split(at) => {
                // Both pieces have bytes: a record has 19 at least.
                let tail = segment.split_off(1 + at % (segment.len() - 1));
                self.put(soon, segment);
                self.put(soon, tail);
            }
            Fate::Merged => match self.under_way.back_mut() {
                Some((_, last)) => last.extend(segment),
                None => self.put(soon, segment),
            },
            Fate::Repeated => {
                self.put(soon, segment.clone());
                self.put(soon, segment);
            }
            Fate::Flipped(at, bit) => {
                let at = at % segment.len();
                segment[at] ^= 1 << bit;
                self.put(soon, segment);
            }
            Fate::Overtaken => {
                let earlier = self.overtaken.replace(segment);
                earlier
                    .into_iter()
                    .for_each(|earlier| self.put(soon, earlier));
                return;
            }
            Fate::Dropped => {}
            Fate::CutOff => self.is_cut = true,
        }
        if let Some(overtaken) = self.overtaken.take() {
            self.put(soon, overtaken);
        }
    }

    /// Not before what was put earlier.
    fn put(&mut self, at: Instant, segment: Vec<u8>) {
        let at = self.under_way.back().map_or(at, |(last, _)| at.max(*last));
        self.under_way.push_back((at, segment));
    }

    fn next(&self) -> Option<Instant> {
        self.under_way.front().map(|(at, _)| *at)
    }

    fn arrive(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.next().filter(|at| *at <= now)?;
        let (_, segment) = self.under_way.pop_front()?;
        self.delivered.extend(&segment);
        Some(segment)
    }
}

const ONE_WAY: Duration = Duration::from_millis(40);

/// The longest silence before a ping, and the time for its answer (protocol.md 2.5): 255 and 30 s.
const NOTICED_WITHIN: Duration = Duration::from_secs(290);
