//! One direction of a connection.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{Dice, Outlook, Weather};

pub(super) struct Lane {
    weather: Weather,
    dice: Dice,
    outlook: watch::Receiver<Outlook>,
    /// When the slowest part of the way is free for the next segment.
    free: Instant,
    /// When the last segment comes out; none comes before those that were sent before it.
    last: Instant,
}

impl Lane {
    pub(super) fn new(weather: Weather, seed: u64, outlook: watch::Receiver<Outlook>) -> Self {
        let now = Instant::now();
        Self {
            weather,
            dice: Dice::new(seed),
            outlook,
            free: now,
            last: now,
        }
    }

    /// Carries bytes until either end is closed. What is under way then still arrives.
    pub(super) async fn carry(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (entrance, mut exit) = mpsc::channel::<(Instant, Vec<u8>)>(SEGMENTS_UNDER_WAY_MAX);
        let mut outlook = self.outlook.clone();
        let enter = async move {
            let mut segment = vec![0; SEGMENT_BYTES];
            while let Ok(count @ 1..) = from.read(&mut segment).await {
                let bytes = segment.get(..count).unwrap_or_default().to_vec();
                let due = self.due(count);
                // The sender is held back as by a full queue at the slowest part.
                sleep_until(self.free).await;
                if entrance.send((due, bytes)).await.is_err() {
                    return;
                }
            }
        };
        let leave = async {
            while let Some((due, bytes)) = exit.recv().await {
                sleep_until(due).await;
                let open = |outlook: &Outlook| *outlook == Outlook::Open;
                if outlook.wait_for(open).await.is_err() || to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = to.shutdown().await;
        };
        // The exit outlives the entrance: it empties the way. If it fails, nobody needs the rest.
        tokio::pin!(enter);
        let mut entering = true;
        tokio::pin!(leave);
        loop {
            tokio::select! {
                () = &mut enter, if entering => entering = false,
                () = &mut leave => return,
            }
        }
    }

    /// When a segment that enters now comes out.
    fn due(&mut self, count: usize) -> Instant {
        self.free = self.free.max(Instant::now());
        if let Some(pace) = self.weather.bytes_per_second {
            let bytes = u32::try_from(count).unwrap_or(u32::MAX);
            self.free += Duration::from_secs_f64(f64::from(bytes) / f64::from(pace.max(1)));
        }
        let jitter_us = u64::try_from(self.weather.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.dice.below(jitter_us));
        let mut due = self.free + self.weather.delay + jitter;
        // A retransmission may be lost too.
        while self.dice.below(1000) < u64::from(self.weather.lost_per_mille) {
            due += self.weather.loss_delay();
        }
        self.last = self.last.max(due);
        self.last
    }
}

/// Ethernet's 1500 less the headers of IP and TCP with time stamps.
const SEGMENT_BYTES: usize = 1448;

/// 256 KiB: more than a stream of a session has under way.
const SEGMENTS_UNDER_WAY_MAX: usize = 181;

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(weather: Weather) -> Lane {
        Lane::new(weather, 7, watch::Sender::new(Outlook::Open).subscribe())
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_overtakes_and_a_loss_delays_all_that_follow() {
        let mut lane = lane(Weather {
            jitter: Duration::from_millis(100),
            lost_per_mille: 100,
            ..Weather::SATELLITE
        });
        let began = Instant::now();
        let dues: Vec<_> = (0..1000).map(|_| lane.due(SEGMENT_BYTES)).collect();
        assert!(dues.is_sorted());
        assert!(began + Weather::SATELLITE.delay <= dues[0]);
        let late = began + Weather::SATELLITE.delay + Duration::from_millis(900);
        assert!(late < dues[999], "nothing was lost");
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_that_of_the_slowest_part() {
        let mut lane = lane(Weather {
            bytes_per_second: Some(1000),
            ..Weather::FAIR
        });
        let began = Instant::now();
        for _ in 0..10 {
            lane.due(500);
        }
        assert_eq!(lane.last - began, Duration::from_secs(5));
    }
}
