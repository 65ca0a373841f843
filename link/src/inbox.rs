//! Stream bytes that have arrived and wait for the multiplexer.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

/// Long records stay where they were opened; short ones are put together, so that what a peer sends
/// byte by byte costs no more room than its bytes.
#[derive(Default)]
pub(crate) struct Inbox {
    long: VecDeque<BytesMut>,
    /// After all of `long`.
    short: BytesMut,
    bytes: usize,
}

impl Inbox {
    pub(crate) fn push(&mut self, bytes: BytesMut) {
        self.bytes += bytes.len();
        if bytes.len() < SHORT_BYTES && !(self.long.is_empty() && self.short.is_empty()) {
            self.short.extend_from_slice(&bytes);
            return;
        }
        if !self.short.is_empty() {
            self.long.push_back(std::mem::take(&mut self.short));
        }
        self.long.push_back(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Moves the oldest bytes to the front of `out`; returns how many.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> usize {
        let mut count = 0;
        while let Some(rest) = out.get_mut(count..).filter(|rest| !rest.is_empty()) {
            let front = match self.long.front_mut() {
                Some(front) => front,
                None => &mut self.short,
            };
            let taken = front.len().min(rest.len());
            if taken == 0 {
                break;
            }
            if let Some(room) = rest.get_mut(..taken) {
                front.copy_to_slice(room);
            }
            count += taken;
            if front.is_empty() && self.long.pop_front().is_none() {
                // A burst may have made it large; an idle link keeps nothing.
                self.short = BytesMut::new();
            }
        }
        self.bytes -= count;
        count
    }
}

/// A quarter of a frame of yamux; a record that waits costs 40 bytes besides.
const SHORT_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_in_order_however_they_are_cut(
            records in prop::collection::vec(1..3 * SHORT_BYTES, 1..20),
            reads in prop::collection::vec(1..3 * SHORT_BYTES, 1..40),
        ) {
            let mut inbox = Inbox::default();
            let (mut pushed, mut read) = (Vec::new(), Vec::new());
            let mut reads = reads.into_iter().cycle();
            for (number, length) in records.into_iter().enumerate() {
                let record: Vec<u8> = (0..length).map(|at| (at * 7 + number).to_le_bytes()[0]).collect();
                pushed.extend_from_slice(&record);
                inbox.push(BytesMut::from(&record[..]));
                if number % 3 == 2 {
                    let mut out = vec![0; reads.next().unwrap()];
                    let count = inbox.read(&mut out);
                    read.extend_from_slice(&out[..count]);
                }
                prop_assert_eq!(inbox.len(), pushed.len() - read.len());
            }
            while inbox.len() > 0 {
                let mut out = vec![0; reads.next().unwrap()];
                let count = inbox.read(&mut out);
                prop_assert!(count > 0);
                read.extend_from_slice(&out[..count]);
            }
            prop_assert_eq!(pushed, read);
        }
    }

    #[test]
    fn what_comes_byte_by_byte_is_kept_together() {
        let mut inbox = Inbox::default();
        for _ in 0..1_000_000 {
            inbox.push(BytesMut::from(&[1][..]));
        }
        assert_eq!((inbox.long.len(), inbox.len()), (1, 1_000_000));
    }
}
