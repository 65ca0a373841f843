//! Readings that cannot be sealed yet, in bounded memory.

use std::collections::{BTreeMap, VecDeque};

use wire::{Class, Reading, batch::Tally};

use crate::collect::Taken;

/// Readings of one service that wait: for its first statement, for `gatewayctl init`, or for a
/// disk that takes them. When full, the oldest of the lowest class goes and is counted.
#[derive(Default)]
pub(super) struct Held {
    by_class: [VecDeque<Reading>; 3],
    lost: [BTreeMap<u32, Lost>; 3],
}

/// Readings of one sensor that were dropped.
#[derive(Clone, Copy)]
struct Lost {
    first: u64,
    last: u64,
    count: u64,
    from_ms: i64,
    until_ms: i64,
}

/// What [`Held`] had to drop of a class, for the ledger.
pub(super) struct Dropped {
    pub(super) tallies: Vec<Tally>,
    pub(super) from_ms: i64,
    pub(super) until_ms: i64,
}

impl Held {
    pub(super) fn push(&mut self, taken: &Taken) {
        of_class(&mut self.by_class, taken.class).push_back(taken.reading.clone());
        if READINGS_MAX < self.len() {
            self.drop_one();
        }
    }

    /// Takes the oldest of a class, at most `readings_max`.
    pub(super) fn take(&mut self, class: Class, readings_max: usize) -> Vec<Reading> {
        let queue = of_class(&mut self.by_class, class);
        let count = queue.len().min(readings_max);
        queue.drain(..count).collect()
    }

    /// Takes back readings that were taken last and could not be sealed, in their old place.
    pub(super) fn put_back(&mut self, class: Class, readings: Vec<Reading>) {
        let queue = of_class(&mut self.by_class, class);
        for reading in readings.into_iter().rev() {
            queue.push_front(reading);
        }
    }

    /// What was dropped of a class and is not [forgotten](Self::forget_loss), for the ledger of run
    /// `run_id`.
    pub(super) fn loss(&mut self, class: Class, run_id: [u8; 16]) -> Option<Dropped> {
        let lost = of_class(&mut self.lost, class);
        let from_ms = lost.values().map(|lost| lost.from_ms).min()?;
        let until_ms = lost.values().map(|lost| lost.until_ms).max()?;
        let tallies = lost
            .iter()
            .map(|(&sensor_number, lost)| Tally {
                sensor_number,
                run_id,
                first: lost.first,
                last: lost.last,
                count: lost.count,
            })
            .collect();
        Some(Dropped {
            tallies,
            from_ms,
            until_ms,
        })
    }

    /// The ledger has what was dropped of this class.
    pub(super) fn forget_loss(&mut self, class: Class) {
        of_class(&mut self.lost, class).clear();
    }

    /// Counts a reading as dropped.
    pub(super) fn lose(&mut self, class: Class, reading: &Reading) {
        let wall_ms = reading.time.wall_ms;
        let lost = of_class(&mut self.lost, class);
        let lost = lost.entry(reading.sensor_number).or_insert(Lost {
            first: reading.sequence,
            last: reading.sequence,
            count: 0,
            from_ms: wall_ms,
            until_ms: wall_ms,
        });
        lost.first = lost.first.min(reading.sequence);
        lost.last = lost.last.max(reading.sequence);
        lost.count += 1;
        lost.from_ms = lost.from_ms.min(wall_ms);
        lost.until_ms = lost.until_ms.max(wall_ms);
    }

    /// Drops everything, and returns how many readings that were.
    pub(super) fn give_up(&mut self) -> usize {
        let readings = self.len();
        while 0 < self.len() {
            self.drop_one();
        }
        readings
    }

    fn len(&self) -> usize {
        self.by_class.iter().map(VecDeque::len).sum()
    }

    fn drop_one(&mut self) {
        for &class in Class::ALL.iter().rev() {
            if let Some(oldest) = of_class(&mut self.by_class, class).pop_front() {
                self.lose(class, &oldest);
                return;
            }
        }
    }
}

/// The part of a class; they stand in the order of their numbers, critical first.
pub(super) fn of_class<T>(parts: &mut [T; 3], class: Class) -> &mut T {
    let [critical, normal, bulk] = parts;
    match class {
        Class::Critical => critical,
        Class::Normal => normal,
        Class::Bulk => bulk,
    }
}

/// At about 200 bytes a reading, 2 MB: half an hour of 50 sensors at one reading in ten seconds,
/// enough for an enrolment by hand.
const READINGS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use wire::{ClockState, Measurement, Quality, Time, Value};

    use super::*;

    #[test]
    fn the_oldest_of_the_lowest_class_goes_first_and_is_counted() {
        let mut held = Held::default();
        held.push(&taken(0, 0, Class::Critical));
        held.push(&taken(1, 0, Class::Bulk));
        for sequence in 0..10_000 {
            held.push(&taken(2, sequence, Class::Normal));
        }

        let mut counts = |class| -> Vec<_> {
            let dropped = held.loss(class, [7; 16]);
            held.forget_loss(class);
            let tallies = dropped.into_iter().flat_map(|dropped| dropped.tallies);
            tallies
                .map(|tally| (tally.sensor_number, tally.first, tally.last, tally.count))
                .collect()
        };
        assert_eq!(counts(Class::Critical), []);
        assert_eq!(counts(Class::Bulk), [(1, 0, 0, 1)]);
        assert_eq!(counts(Class::Normal), [(2, 0, 0, 1)]);
        assert_eq!(counts(Class::Normal), []);
        assert_eq!(held.take(Class::Critical, 10).len(), 1);
        assert_eq!(held.take(Class::Normal, 1)[0].sequence, 1);
    }

    #[test]
    fn nothing_more_urgent_goes_for_a_reading_that_comes() {
        let mut held = Held::default();
        (0..10_000).for_each(|sequence| held.push(&taken(0, sequence, Class::Critical)));

        held.push(&taken(1, 0, Class::Bulk));

        assert!(held.loss(Class::Critical, [7; 16]).is_none());
        assert_eq!(held.loss(Class::Bulk, [7; 16]).unwrap().tallies[0].count, 1);
    }

    #[test]
    fn a_class_is_taken_oldest_first_in_pieces() {
        let mut held = Held::default();
        (0..5).for_each(|sequence| held.push(&taken(0, sequence, Class::Normal)));
        let sequences = |readings: Vec<Reading>| -> Vec<u64> {
            readings.iter().map(|reading| reading.sequence).collect()
        };
        assert_eq!(sequences(held.take(Class::Normal, 3)), [0, 1, 2]);
        assert_eq!(sequences(held.take(Class::Normal, 3)), [3, 4]);
        assert!(held.take(Class::Normal, 3).is_empty());
    }

    fn taken(sensor_number: u32, sequence: u64, class: Class) -> Taken {
        Taken {
            reading: Reading {
                sensor: "s".into(),
                sensor_number,
                sequence,
                time: Time {
                    wall_ms: 1,
                    boottime_ms: 1,
                    clock: ClockState::Synchronised,
                },
                measurement: Measurement {
                    channel: "x".into(),
                    value: Value::Bool(true),
                    unit: None,
                    quality: Quality::Ok,
                },
            },
            class,
        }
    }
}
