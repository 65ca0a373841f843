//! Joins two connections until both have said all, or nobody says anything.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{Shutdown, shutdown},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{
    Limits,
    metrics::RelayMetrics,
    pace::Pace,
    pipes::{Filled, Pipe, Pipes},
};

/// What all splices of a relay share.
#[derive(Clone, Copy)]
pub(super) struct Carrier<'a> {
    pub(super) limits: &'a Limits,
    pub(super) pipes: &'a Pipes,
    pub(super) metrics: &'a RelayMetrics,
}

/// Passes bytes both ways. Each direction is read only when the other side has taken what was
/// read before; the end of one direction is passed on, and the other goes on.
///
/// A direction in which nothing is on its way holds neither pipe nor buffer.
///
/// # Errors
///
/// `TimedOut` after [`Limits::idle_time`] without a byte in either direction; otherwise whatever
/// broke one of the connections.
pub(super) async fn splice(
    client: TcpStream,
    service: TcpStream,
    carrier: Carrier<'_>,
) -> io::Result<()> {
    let activity = Activity::new();
    let metrics = carrier.metrics;
    let to_service = Direction::new(&client, &service, carrier, &metrics.to_service);
    let to_gateway = Direction::new(&service, &client, carrier, &metrics.to_gateway);
    let both = async { tokio::try_join!(to_service.pass(&activity), to_gateway.pass(&activity)) };
    tokio::select! {
        ended = both => ended.map(|_| ()),
        () = activity.stopped(carrier.limits.idle_time) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One of the two directions.
struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    carrier: Carrier<'a>,
    passed: &'a Counter,
    pace: Pace,
}

/// Why a direction gave back what it moved bytes with.
#[derive(PartialEq, Eq)]
enum Pause {
    /// There is nothing to move, or it has to wait for its pace.
    Now,
    /// Everything has been moved.
    End,
}

impl<'a> Direction<'a> {
    fn new(
        from: &'a TcpStream,
        to: &'a TcpStream,
        carrier: Carrier<'a>,
        passed: &'a Counter,
    ) -> Self {
        Self {
            from,
            to,
            carrier,
            passed,
            pace: Pace::new(carrier.limits.bytes_per_second),
        }
    }

    async fn pass(mut self, activity: &Activity) -> io::Result<()> {
        loop {
            self.from.readable().await?;
            let pause = match self.carrier.pipes.take() {
                Some(pipe) => self.through_pipe(pipe, activity).await?,
                // Boxed, since it is rare and its future is there all the time otherwise.
                None => Box::pin(self.through_buffer(activity)).await?,
            };
            if pause == Pause::End {
                return end(self.to);
            }
            self.pace.wait().await;
        }
    }

    async fn through_pipe(&mut self, mut pipe: Pipe<'_>, activity: &Activity) -> io::Result<Pause> {
        loop {
            let filled = self
                .from
                .try_io(Interest::READABLE, || pipe.fill(self.from));
            let count = match filled {
                Ok(Filled::Bytes(0)) => return Ok(Pause::End),
                Ok(Filled::Bytes(count)) => count,
                // The next turn has a buffer.
                Ok(Filled::Refused) => return Ok(Pause::Now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pause::Now),
                Err(error) => return Err(error),
            };
            activity.note();
            while pipe.held() > 0 {
                let drained = self.to.async_io(Interest::WRITABLE, || pipe.drain(self.to));
                drained.await?;
            }
            if self.passed(count, activity) {
                return Ok(Pause::Now);
            }
        }
    }

    async fn through_buffer(&mut self, activity: &Activity) -> io::Result<Pause> {
        let mut buffer = vec![0; self.carrier.limits.splice_bytes];
        loop {
            let count = match self.from.try_read(&mut buffer) {
                Ok(0) => return Ok(Pause::End),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pause::Now),
                Err(error) => return Err(error),
            };
            activity.note();
            let mut rest = buffer.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                self.to.writable().await?;
                match self.to.try_write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if self.passed(count, activity) {
                return Ok(Pause::Now);
            }
        }
    }

    /// Notes what the other side has taken, and says whether the pace wants a pause.
    fn passed(&mut self, count: usize, activity: &Activity) -> bool {
        let now = activity.note();
        self.passed.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        self.pace.note(count, now)
    }
}

/// Tells the other side that nothing more comes.
fn end(to: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    match shutdown(to.as_raw_fd(), Shutdown::Write) {
        // It has left already; the other direction says so.
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
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

    /// Notes that bytes have moved, and says when: now.
    fn note(&self) -> Instant {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.began).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last_ms.store(since, Ordering::Relaxed);
        now
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
        time::timeout,
    };

    #[tokio::test]
    async fn what_the_other_side_takes_in_parts_arrives_whole() {
        for pipes_max in [1, 0] {
            let (mut client, near) = pair(256 * 1024).await;
            let (far, mut service) = pair(4096).await;
            let limits = Limits::default();
            let pipes = Pipes::new(limits.splice_bytes, pipes_max);
            let metrics = RelayMetrics::default();
            let carrier = Carrier {
                limits: &limits,
                pipes: &pipes,
                metrics: &metrics,
            };
            // One filling of a pipe, and many times what the socket behind it has room for.
            let sent: Vec<u8> = (0..=250).cycle().take(60 * 1024).collect();
            let talk = async {
                client.write_all(&sent).await.unwrap();
                let mut received = vec![0; sent.len()];
                let read = timeout(PATIENCE, service.read_exact(&mut received)).await;
                read.expect("bytes are lost").unwrap();
                assert!(received == sent);
                drop((client, service));
            };
            // How the two ends leave does not matter here.
            let (_, ()) = tokio::join!(splice(near, far, carrier), talk);
            assert_eq!(metrics.to_service.get(), 60 * 1024);
        }
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

    /// Two ends of a connection, the first with so large a buffer for sending, the second for
    /// receiving.
    async fn pair(bytes: u32) -> (TcpStream, TcpStream) {
        let (first, second) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
        first.set_send_buffer_size(bytes).unwrap();
        second.set_recv_buffer_size(bytes).unwrap();
        second.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = second.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let (first, second) = tokio::join!(first.connect(address), listener.accept());
        (first.unwrap(), second.unwrap().0)
    }

    /// Longer than anything takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);
}
