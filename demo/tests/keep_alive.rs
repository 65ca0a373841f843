//! What a link costs that has nothing to say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test reports by panicking, and figures are read by people"
)]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use channel::{
    Admission, InitiatorConfig, Purpose, ResponderConfig, SoftwareStaticKey, Statement, StaticKey,
    Suite,
};
use cloud::{
    keys::ServiceKeys,
    relay::{Admit, Limits, RelayConfig, RelayMetrics},
};
use futures::future::BoxFuture;
use getrandom::SysRng;
use link::{Address, KeepStatement, Link, PeerHello, Registry, StreamName, relay::RelayEvent};
use rand_core::UnwrapErr;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, advance, sleep},
};
use tokio_util::sync::CancellationToken;

/// The clock is tokio's, so a day passes in seconds; sockets, relay and session are the real ones.
/// What the multiplexer adds by its own clock is not in it; see the next test.
#[tokio::test(start_paused = true)]
async fn an_idle_day_costs_less_than_100_kib_through_a_relay_with_all_headers() {
    let day = DAY - Duration::from_secs(120);

    let idle = idle_for(day, pass).await;

    eprintln!("an idle day: {idle:?}");
    assert!(2 * 300 < idle.segments, "nothing kept it alive");
    assert!(idle.on_the_wire(HEADERS_V4) < 100 * 1024, "IPv4");
    assert!(idle.on_the_wire(HEADERS_V6) < 100 * 1024, "IPv6");
}

/// The multiplexer measures round trips every 10 s while it is polled, by a clock that no test can
/// stop; link keeps its pings back. If one got out, each ping of the session would wake the other.
#[tokio::test]
#[ignore = "takes six minutes"]
async fn on_the_real_clock_a_ping_and_its_answer_are_all_that_passes_in_six_minutes() {
    let idle = idle_for(Duration::from_secs(300), async |_, time| sleep(time).await).await;
    eprintln!("from the second minute to the sixth: {idle:?}");
    assert_eq!(idle.segments, 2);
}

/// Lets time pass in steps, and lets sockets come to rest in between: a clock that jumps does not wait
/// for bytes between two sockets.
async fn pass(wire: &Wire, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        advance(STEP).await;
        let mut seen = u64::MAX;
        while seen != wire.segments() {
            seen = wire.segments();
            // While a blocking task runs, the clock stands still.
            let rest = || std::thread::sleep(Duration::from_millis(1));
            tokio::task::spawn_blocking(rest).await.unwrap();
        }
    }
}

/// What passed while nobody said anything.
#[derive(Debug)]
struct Idle {
    bytes: u64,
    segments: u64,
}

impl Idle {
    /// With headers, and an acknowledgement of its own for every other segment: the answer to a ping
    /// carries that of the ping.
    fn on_the_wire(&self, headers: u64) -> u64 {
        self.bytes + (self.segments + self.segments / 2) * headers
    }
}

async fn idle_for(time: Duration, pass: impl AsyncFn(&Wire, Duration)) -> Idle {
    let wire = Wire::default();
    let (gateway, service) = joined_through_a_relay(&wire).await;
    let (gateway_driver, gateway) = gateway.split();
    let (service_driver, service) = service.split();
    let driving = tokio::spawn(gateway_driver.run());
    tokio::spawn(service_driver.run());
    // As an uplink has it: one stream, on which one thing was said.
    let mut upload = gateway.open(StreamName::Upload).await.unwrap();
    upload.send(b"hello").await.unwrap();
    let (_, mut far) = service.accept().await.unwrap();
    assert!(far.recv().await.unwrap().is_some());
    pass(&wire, Duration::from_secs(60)).await;
    let (bytes_before, segments_before) = (sum(gateway.bytes()), wire.segments());

    pass(&wire, time).await;

    assert!(!driving.is_finished(), "the link did not last");
    Idle {
        bytes: sum(gateway.bytes()) - bytes_before,
        segments: wire.segments() - segments_before,
    }
}

/// Counts what passes between the gateway and the relay.
#[derive(Clone, Default)]
struct Wire(Arc<AtomicU64>);

impl Wire {
    fn segments(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Stands before the relay. What is read at once was sent at once: records go out one by one.
    async fn before(&self, relay: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = self.clone();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let relay = TcpStream::connect(("127.0.0.1", relay)).await.unwrap();
            client.set_nodelay(true).unwrap();
            relay.set_nodelay(true).unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_relay, to_relay) = relay.into_split();
            tokio::join!(
                wire.pass(from_client, to_relay),
                wire.pass(from_relay, to_client)
            );
        });
        port
    }

    async fn pass(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.0.fetch_add(1, Ordering::Relaxed);
            to.write_all(&buffer[..count]).await.unwrap();
        }
    }
}

/// Both ends of a session through a relay of this process.
async fn joined_through_a_relay(wire: &Wire) -> (Link<'static>, Link<'static>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = RelayConfig {
        names: vec![format!("127.0.0.1:{port}")],
        services: None,
        admit: Admit::Open,
        max_clients: 10,
        limits: Limits::default(),
        metrics: RelayMetrics::default(),
    };
    tokio::spawn(cloud::relay::serve(
        listener,
        config,
        CancellationToken::new(),
    ));
    let folder = tempfile::tempdir().unwrap();
    ServiceKeys::init(folder.path()).unwrap();
    // A link may ask for its key again, for as long as it lives.
    let keys: &ServiceKeys = Box::leak(Box::new(ServiceKeys::load(folder.path()).unwrap()));
    let address: Address = format!("relay://127.0.0.1:{port}").parse().unwrap();
    let registration = link::relay::register(&address, &keys.statement, &keys.online);
    let mut registration = registration.await.unwrap();
    let entrance: Address = format!("relay://127.0.0.1:{}", wire.before(port).await)
        .parse()
        .unwrap();
    let key = SoftwareStaticKey::generate(&mut UnwrapErr(SysRng));
    let key: &SoftwareStaticKey = Box::leak(Box::new(key));
    let config = InitiatorConfig {
        suite: Suite::ChaChaPoly,
        pin: keys.statement.fingerprint(),
        held: None,
        static_key: key.public(),
        purpose: Purpose::Deliver,
        version: "test".into(),
    };
    let responder = ResponderConfig {
        statement: keys.statement.clone(),
        static_key: keys.channel.public(),
    };
    let (gateway, service) = tokio::join!(link::connect(&entrance, config, key, &Shelf), async {
        let RelayEvent::Incoming(id) = registration.next().await.unwrap() else {
            panic!("the relay drains");
        };
        let stream = link::relay::accept(&address, id).await.unwrap();
        link::accept(stream, responder, &keys.channel, &Door).await
    });
    // A service that goes away keeps its sessions; here it answers the relay's pings.
    tokio::spawn(async move { while registration.next().await.is_ok() {} });
    (gateway.unwrap(), service.unwrap().0)
}

struct Shelf;

impl KeepStatement for Shelf {
    fn keep<'a>(&'a self, _: &'a Statement) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

struct Door;

impl Registry for Door {
    fn admit<'a>(&'a self, _: &'a PeerHello) -> BoxFuture<'a, Admission> {
        Box::pin(async { Admission::Ok })
    }
}

fn sum((received, sent): (u64, u64)) -> u64 {
    received + sent
}

/// A part of both ping intervals (protocol.md 2.5).
const STEP: Duration = Duration::from_secs(15);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// IPv4 20, IPv6 40; TCP 32 with time stamps (RFC 791, 8200, 7323).
const HEADERS_V4: u64 = 52;
const HEADERS_V6: u64 = 72;
