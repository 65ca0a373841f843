//! Joins two connections until both have said all, or nobody says anything.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::Limits;

/// Passes bytes both ways. Each direction is read only when the other side has taken what was
/// read before; the end of one direction is passed on, and the other goes on.
///
/// # Errors
///
/// `TimedOut` after [`Limits::idle_time`] without a byte in either direction; otherwise whatever
/// broke one of the connections.
pub(super) async fn splice(
    mut client: TcpStream,
    mut service: TcpStream,
    limits: &Limits,
) -> io::Result<()> {
    let (client_reader, client_writer) = client.split();
    let (service_reader, service_writer) = service.split();
    let activity = Activity::new();
    let both = async {
        tokio::try_join!(
            pass(client_reader, service_writer, &activity, limits),
            pass(service_reader, client_writer, &activity, limits),
        )
    };
    tokio::select! {
        ended = both => ended.map(|_| ()),
        () = activity.stopped(limits.idle_time) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn pass(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    activity: &Activity,
    limits: &Limits,
) -> io::Result<()> {
    let mut buffer = vec![0; limits.splice_bytes];
    let mut pace = Pace::new(limits.bytes_per_second);
    loop {
        let count = reader.read(&mut buffer).await?;
        let Some(bytes @ [_, ..]) = buffer.get(..count) else {
            return writer.shutdown().await;
        };
        activity.note();
        writer.write_all(bytes).await?;
        activity.note();
        pace.wait(count).await;
    }
}

/// When a byte last moved in either direction.
struct Activity {
    began: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    fn note(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for `idle`.
    async fn stopped(&self, idle: Duration) {
        loop {
            let last = self.last_ms.load(Ordering::Relaxed);
            sleep_until(self.began + Duration::from_millis(last) + idle).await;
            if self.last_ms.load(Ordering::Relaxed) == last {
                return;
            }
        }
    }
}

/// Keeps one direction to its bytes per second.
struct Pace {
    bytes_per_second: u64,
    /// When everything so far would have passed at exactly the pace.
    due: Instant,
}

impl Pace {
    fn new(bytes_per_second: u32) -> Self {
        Self {
            bytes_per_second: u64::from(bytes_per_second.max(1)),
            due: Instant::now(),
        }
    }

    /// Waits as long as `bytes` more are ahead of the pace by more than a second.
    async fn wait(&mut self, bytes: usize) {
        let nanos = u64::try_from(bytes)
            .unwrap_or(u64::MAX)
            .saturating_mul(NANOS_PER_SECOND)
            / self.bytes_per_second;
        self.due = self.due.max(Instant::now()) + Duration::from_nanos(nanos);
        if let Some(ahead) = self.due.checked_sub(BURST) {
            sleep_until(ahead).await;
        }
    }
}

/// What may pass at once after a pause, in time: a window of the session at the default pace.
const BURST: Duration = Duration::from_secs(1);

const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_of_a_second_the_pace_is_kept() {
        let began = Instant::now();
        let mut pace = Pace::new(1000);
        pace.wait(1000).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        pace.wait(3000).await;
        assert_eq!(began.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_measured_from_the_last_byte() {
        let activity = Activity::new();
        let began = activity.began;
        let idle = Duration::from_secs(10);
        tokio::join!(activity.stopped(idle), async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            activity.note();
        });
        assert_eq!(began.elapsed(), Duration::from_secs(17));
    }
}
