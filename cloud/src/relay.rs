//! The relay (protocol.md 6): joins gateways and services that cannot reach each other.
//!
//! It knows who talks to whom, how much and when, and nothing else: what it splices is a session
//! between the two. Everything that a stranger can make it hold has a bound in [`Limits`].
//!
//! Each connection is a task of its own, so splices use all cores, and end with [`serve`].

mod connection;
mod metrics;
mod pace;
mod pipes;
mod registered;
mod services;
mod sources;
mod splice;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use link::relay::Token;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use pipes::Pipes;
use services::Services;
use sources::Sources;

use crate::listen;
use crate::source::Source;
use crate::tasks::Sessions;

pub use self::metrics::RelayMetrics;

/// What a relay is told when it starts.
pub struct RelayConfig {
    /// The `host:port` names by which services dial this relay. A registration that was signed
    /// for another name is refused.
    pub names: Vec<String>,
    /// Fingerprints of the services that may register, and that gateways may ask for; `None`: any.
    pub services: Option<HashSet<[u8; 32]>>,
    /// Which gateways are served.
    pub admit: Admit,
    /// How many gateways may be connected at a time, or wait for it.
    pub max_clients: usize,
    /// All other bounds.
    pub limits: Limits,
    /// What is counted.
    pub metrics: RelayMetrics,
}

impl RelayConfig {
    /// How many file descriptors this may need at a time. With fewer, connections wait until
    /// others have ended.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        // Both ends of a splice, and of a pipe.
        let spliced = self.max_clients.saturating_mul(2);
        let pipes = self.limits.pipes.saturating_mul(2);
        let others = self.limits.pending + OWN_DESCRIPTORS;
        spliced.saturating_add(pipes).saturating_add(others)
    }
}

/// Which gateways a relay serves. It never learns which gateway it serves; so this is about the
/// services that they ask for, or about a secret that they share.
pub enum Admit {
    /// All that ask for a service which may register.
    Open,
    /// Those that know one of these secrets.
    Tokens(Vec<Token>),
}

/// What a relay allows. The default is that of protocol.md 6 where it names one.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the greeting until the first message is complete.
    pub hello_time: Duration,
    /// Length of a `hello` or `accept`.
    pub hello_bytes: usize,
    /// Length of a `register`.
    pub register_bytes: usize,
    /// Connections from one address that are neither registered nor spliced yet. An IPv6 address
    /// counts by its first 64 bits, since that many are anybody's.
    pub pending_per_address: usize,
    /// Gateways that wait for the same service.
    pub pending_per_service: usize,
    /// Connections that are neither registered nor spliced yet (protocol.md 2.4).
    pub pending: usize,
    /// Services that are registered, or whose last serial is remembered. The one that is absent
    /// for longest is forgotten for a new one.
    pub services: usize,
    /// Registrations of one service.
    pub instances_per_service: usize,
    /// From `incoming` until the service has accepted.
    pub accept_time: Duration,
    /// How long a registered service may be silent until it is pinged.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub pong_time: Duration,
    /// What is held of each direction of a splice, and read only when the other side takes.
    pub splice_bytes: usize,
    /// Pipes in use at a time, each by a direction with bytes on their way. When there are more
    /// such directions, the others copy their bytes through a buffer of [`Self::splice_bytes`].
    pub pipes: usize,
    /// The pace of each direction of a splice, after a burst of a second.
    pub bytes_per_second: u64,
    /// How long a splice may be silent in both directions.
    pub idle_time: Duration,
    /// How long splices may go on once the relay is told to stop.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_time: Duration::from_secs(5),
            hello_bytes: 512,
            register_bytes: 16 * 1024,
            pending_per_address: 16,
            pending_per_service: 64,
            pending: 4096,
            // 100 bytes each while absent: one megabyte.
            services: 10_000,
            // More than any service runs behind one relay.
            instances_per_service: 16,
            accept_time: Duration::from_secs(10),
            ping_interval: Duration::from_secs(240),
            pong_time: Duration::from_secs(30),
            splice_bytes: 64 * 1024,
            // Half of the 16,384 pages that an unprivileged user may have in pipes (pipe(7)).
            pipes: 512,
            // A gateway that catches up after an outage is meant to be fast; eight of them fill
            // a gigabit.
            bytes_per_second: 16 * 1024 * 1024,
            idle_time: Duration::from_secs(15 * 60),
            // Below the 8 s after which a process that stops gives up its tasks.
            drain_time: Duration::from_secs(5),
        }
    }
}

/// Serves until `stop`, then tells the registered services, takes nobody new, and returns when
/// the last splice has ended, or after [`Limits::drain_time`].
///
/// # Errors
///
/// None at present: whatever a connection does ends that connection alone, and a listener that
/// fails for want of file descriptors is tried again.
pub async fn serve(
    listener: TcpListener,
    config: RelayConfig,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let relay = Arc::new(Relay::new(config, stop.clone()));
    let mut connections = Sessions::default();
    let mut incoming = pin!(listen::connections(listener));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some((stream, address)) = incoming.next() => {
                let source = Source::of(address.ip());
                connections.start(connection::run(Arc::clone(&relay), stream, source));
            }
            Some(()) = connections.ended() => {}
        }
    }

    let deadline = Instant::now() + relay.config.limits.drain_time;
    tracing::info!(clients = relay.services().clients(), "relay is draining");
    while relay.services().clients() > 0 {
        tokio::select! {
            () = sleep_until(deadline) => break,
            // Who comes now is told to go elsewhere.
            Some((stream, address)) = incoming.next() => {
                let source = Source::of(address.ip());
                connections.start(connection::run(Arc::clone(&relay), stream, source));
            }
            Some(()) = connections.ended() => {}
        }
    }
    Ok(())
}

/// What the connections share.
struct Relay {
    config: RelayConfig,
    draining: CancellationToken,
    pipes: Pipes,
    services: Mutex<Services>,
    sources: Mutex<Sources>,
}

impl Relay {
    fn new(config: RelayConfig, draining: CancellationToken) -> Self {
        Self {
            pipes: Pipes::new(config.limits.splice_bytes, config.limits.pipes),
            config,
            draining,
            services: Mutex::default(),
            sources: Mutex::default(),
        }
    }

    /// Whether a service may register here, and be asked for.
    fn lists(&self, service: &[u8; 32]) -> bool {
        let listed = self.config.services.as_ref();
        listed.is_none_or(|listed| listed.contains(service))
    }

    /// Never held across an await.
    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held across an await.
    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Standard streams, listeners, the runtime's own, and registrations of a few dozen services.
const OWN_DESCRIPTORS: usize = 64;
