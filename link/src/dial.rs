//! From an address to a connection on which the service listens.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use channel::Fingerprint;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

use crate::relay::{self, Token};
use crate::{Address, LinkError, Stage};

/// How long a caller waits for an address. Less than the default is for who has another address
/// to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the name server and the TCP connection together.
    pub connect: Duration,
    /// For the relay's answer after that. A relay waits 10 s itself for the service (protocol.md 6).
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: CONNECT_TIME_MAX,
            answer: relay::ANSWER_TIME_MAX,
        }
    }
}

/// Connects to the service, through the relay if the address is one.
///
/// `pin` is the service that a relay is asked for, `token` what the relay may want to see; a
/// direct address needs neither. The name is resolved anew each time, and all addresses that it
/// has are tried.
///
/// # Errors
///
/// [`LinkError::Unreachable`], [`LinkError::Timeout`] after 10 s without a connection or 15 s
/// without the relay's answer, [`LinkError::RelayRefused`] and the other errors of a relay,
/// [`LinkError::LocalAddress`] if the address names another service than `pin`.
pub async fn dial(
    address: &Address,
    pin: &Fingerprint,
    token: Option<&Token>,
) -> Result<TcpStream, LinkError> {
    dial_within(address, pin, token, Patience::default()).await
}

/// The same, with the caller's `patience`; no more than the default is ever waited.
///
/// # Errors
///
/// As [`dial`], with these limits.
pub async fn dial_within(
    address: &Address,
    pin: &Fingerprint,
    token: Option<&Token>,
    patience: Patience,
) -> Result<TcpStream, LinkError> {
    if let Address::Relay {
        service: Some(service),
        ..
    } = address
        && service != pin
    {
        return Err(LinkError::LocalAddress);
    }
    let stream = connect_within(address, patience.connect.min(CONNECT_TIME_MAX)).await?;
    match address {
        Address::Tcp { .. } => Ok(stream),
        Address::Relay { .. } => {
            let answered = timeout(patience.answer, relay::hello(stream, pin, token)).await;
            answered.map_err(|_| LinkError::Timeout {
                stage: Stage::Relay,
                limit: patience.answer,
            })?
        }
    }
}

/// Connects to the host itself.
pub(crate) async fn dial_tcp(address: &Address) -> Result<TcpStream, LinkError> {
    connect_within(address, CONNECT_TIME_MAX).await
}

async fn connect_within(address: &Address, limit: Duration) -> Result<TcpStream, LinkError> {
    let deadline = Instant::now() + limit;
    let found = timeout_at(deadline, lookup_host((address.host(), address.port()))).await;
    let connected = match found {
        Ok(Ok(found)) => connect_any(&alternate(found), deadline).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let stream = connected.map_err(|source| {
        if source.kind() == io::ErrorKind::TimedOut {
            LinkError::Timeout {
                stage: Stage::Connect,
                limit,
            }
        } else {
            LinkError::Unreachable {
                address: address.authority(),
                source,
            }
        }
    })?;
    prepare(&stream).map_err(LinkError::Transport)?;
    Ok(stream)
}

/// Connects to the first that answers. Each has an equal share of the time that is left, so that
/// one that swallows everything does not keep us from the next.
async fn connect_any(candidates: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut left = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
    for candidate in candidates {
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        match timeout(share, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
        left = left.saturating_sub(1).max(1);
    }
    Err(last)
}

/// Both families in turn, since it is often one of them that does not work; the resolver's order
/// within each, and its choice which is first.
fn alternate(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut found = found.peekable();
    let first_is_v4 = found.peek().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        found.partition(|address| address.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || order.len() >= CANDIDATES_MAX {
            order.truncate(CANDIDATES_MAX);
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

/// What every socket of ours is told.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Records go out when they are ready; waiting to fill a segment would only add delay.
    stream.set_nodelay(true)?;
    let milliseconds = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &milliseconds)?;
    Ok(())
}

/// Three lost SYNs (RFC 6298: after 1, 3 and 7 s) are no reason to give up, four are.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Of a name with more addresses the first four are tried: with 10 s, 2.5 s for each, in which one
/// SYN may be lost.
const CANDIDATES_MAX: usize = 4;

/// How long sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`, tcp(7)) until the kernel gives
/// the connection up. After 20 s of outage its next retransmission is up to 20 s away (RFC 6298,
/// 5.5), so a new connection is not slower; and it may go another way.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_are_tried_in_turn_and_four_addresses_at_most() {
        let found = addresses(&[
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
            "[2001:db8::3]:1",
            "192.0.2.1:1",
            "192.0.2.2:1",
        ]);
        let order = addresses(&[
            "[2001:db8::1]:1",
            "192.0.2.1:1",
            "[2001:db8::2]:1",
            "192.0.2.2:1",
        ]);
        assert_eq!(alternate(found.into_iter()), order);
        let only = addresses(&["192.0.2.1:1", "192.0.2.2:1"]);
        assert_eq!(alternate(only.clone().into_iter()), only);
        assert_eq!(alternate([].into_iter()), []);
    }

    /// The clock is tokio's, so nobody waits for the one that swallows.
    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_everything_leaves_time_for_the_next() {
        let (full, _kept) = swallowing().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let deadline = Instant::now() + CONNECT_TIME_MAX;

        let stream = connect_any(&[full, good], deadline).await.unwrap();

        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(Instant::now() <= deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_all_swallow_take_no_longer_than_allowed() {
        let (full, _kept) = swallowing().await;
        let began = Instant::now();
        let limit = Duration::from_secs(3);

        let ended = connect_any(&[full, full, full], began + limit).await;

        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        // The timer's grain is a millisecond.
        let late = began.elapsed().saturating_sub(limit);
        assert!(late < Duration::from_millis(50), "{late:?}");
    }

    #[tokio::test]
    async fn a_connection_is_given_up_when_nothing_is_acknowledged_for_twenty_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        };
        let stream = dial_tcp(&address).await.unwrap();
        assert_eq!(
            getsockopt(&stream, sockopt::TcpUserTimeout).unwrap(),
            20_000
        );
        assert!(stream.nodelay().unwrap());
    }

    /// Machines have both families under this name, or one; only one of them listens.
    #[tokio::test]
    async fn a_name_is_reached_at_whichever_of_its_addresses_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = format!("tcp://localhost:{port}").parse().unwrap();
        let stream = dial_tcp(&address).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().port(), port);

        drop(listener);
        let refused = dial_tcp(&address).await.unwrap_err();
        assert!(matches!(refused, LinkError::Unreachable { .. }));
    }

    /// A listener whose queue is full: the kernel drops every further SYN.
    async fn swallowing() -> (SocketAddr, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut kept = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            kept.push(connected.unwrap());
        }
        // Nobody accepts, and it stays open for as long as the test runs.
        std::mem::forget(listener);
        (address, kept)
    }
}
