//! Listening for TCP connections: mistakes that say what to do, and connections that come through
//! failures.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::Context;
use futures::{Stream, stream};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// Listens at the address that `key` of the configuration names. `[::]` takes IPv4 as well.
///
/// # Errors
///
/// If the system refuses; the message says why, and what to do.
pub async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| {
        let advice = advice(key, address, &error);
        anyhow::Error::new(error).context(format!("cannot listen on {address}{advice}"))
    })
}

fn advice(key: &str, address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => format!(
            " ({key}): another process has the port, `ss -ltnp 'sport = :{port}'` says which; \
             end it or change {key}"
        ),
        Some(Errno::EADDRNOTAVAIL) => {
            format!(" ({key}): this host has no such address; `ip address` lists those it has")
        }
        Some(Errno::EAFNOSUPPORT) if address.is_ipv6() => {
            format!(" ({key}): this host has no IPv6; set {key} = \"0.0.0.0:{port}\"")
        }
        Some(Errno::EACCES | Errno::EPERM) => format!(
            " ({key}): ports below 1024 need CAP_NET_BIND_SERVICE; give it that or change {key}"
        ),
        Some(_) | None => format!(" ({key})"),
    }
}

/// The connections of a listener, for ever. When it fails for want of file descriptors or memory,
/// that is said (once a minute), and others have to end first; who waits meanwhile is not lost.
pub(crate) fn connections(listener: TcpListener) -> impl Stream<Item = (TcpStream, SocketAddr)> {
    stream::unfold((listener, None), async |(listener, mut said_at)| {
        loop {
            match listener.accept().await {
                Ok(connection) => return Some((connection, (listener, said_at))),
                // The peer was faster.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if said_at.is_none_or(|said_at: Instant| SILENCE < said_at.elapsed()) {
                        tracing::warn!("cannot take connections: {error}; they wait");
                        said_at = Some(Instant::now());
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    })
}

/// Raises this process's limit of file descriptors to what the system allows it, and says so if
/// that is less than `needed` for what a key of the configuration says.
///
/// # Errors
///
/// If the system refuses what it allows.
pub fn raise_descriptors(needed: usize, (key, value): (&str, usize)) -> anyhow::Result<()> {
    let needed = u64::try_from(needed).unwrap_or(u64::MAX);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise RLIMIT_NOFILE")?;
    }
    if hard < needed {
        tracing::warn!(
            "{key} = {value} may need {needed} file descriptors and {hard} are allowed: who comes when \
             they are used up has to wait; set LimitNOFILE={needed} in the unit, or lower {key}"
        );
    }
    Ok(())
}

/// Time for connections to end.
const PAUSE: Duration = Duration::from_millis(200);

/// A flood that comes and goes costs the log one line a minute.
const SILENCE: Duration = Duration::from_secs(60);
