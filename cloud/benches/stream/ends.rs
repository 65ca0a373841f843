//! This program as inlet, relay or outlet.

use std::future::Future;
use std::io;

use channel::{
    Admission, InitiatorConfig, OnlineKey, Purpose, RecordKey, ResponderConfig, SigningKey as _,
    SoftwareSigningKey, SoftwareStaticKey, Statement, StatementContent, StaticKey as _, Suite,
};
use cloud::relay::{Admit, Limits, RelayConfig, RelayMetrics};
use futures::future::BoxFuture;
use getrandom::SysRng;
use link::relay::RelayEvent;
use link::{Address, KeepStatement, Messages, PeerHello, Registry, StreamName};
use rand_core::UnwrapErr;
use tokio::net::{TcpListener, TcpStream};

/// `gateway-cloud relay` without its limit of bytes per second, which its configuration does not
/// know. Says its port.
pub(crate) fn relay() {
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = RelayConfig {
            names: vec![address.to_string()],
            services: None,
            admit: Admit::Open,
            max_clients: 10,
            limits: Limits {
                bytes_per_second: u64::MAX,
                ..Limits::default()
            },
            metrics: RelayMetrics::default(),
        };
        println!("{}", address.port());
        cloud::tasks::run(|stop| cloud::relay::serve(listener, config, stop))
            .await
            .unwrap();
    });
}

/// A service that takes sessions through the relay, and passes each of their tunnels on to a TCP
/// port. Says its fingerprint.
pub(crate) fn outlet(relay_port: &str, target: &str) {
    let target: u16 = target.parse().unwrap();
    let relay = relay_address(relay_port);
    block_on(async {
        let identity = SoftwareSigningKey::generate(&mut rng());
        let online = SoftwareSigningKey::generate(&mut rng());
        let key: &'static _ = Box::leak(Box::new(SoftwareStaticKey::generate(&mut rng())));
        let content = StatementContent {
            serial: 1,
            channel_keys: vec![key.public()],
            record_keys: vec![RecordKey::generate(&mut rng()).public()],
            online_keys: vec![OnlineKey {
                key: online.public(),
                bits: OnlineKey::RELAY,
            }],
        };
        let statement = Statement::issue(content, &identity).unwrap();
        let mut registration = link::relay::register(&relay, &statement, &online)
            .await
            .unwrap();
        println!("{}", statement.fingerprint());
        while let Ok(RelayEvent::Incoming(id)) = registration.next().await {
            let relay = relay.clone();
            let config = ResponderConfig {
                statement: statement.clone(),
                static_key: key.public(),
            };
            tokio::spawn(async move {
                let stream = link::relay::accept(&relay, id).await.unwrap();
                let accepted = link::accept(stream, config, key, &Open).await;
                let (driver, streams) = accepted.unwrap().0.split();
                tokio::spawn(driver.run());
                while let Some((_, messages)) = streams.accept().await {
                    let socket = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                    tokio::spawn(pass(messages, socket));
                }
            });
        }
    });
}

/// A gateway with a session to the service, on which each TCP connection becomes a tunnel. Says its
/// port.
pub(crate) fn inlet(relay_port: &str, service: &str, suite: &str) {
    block_on(async {
        let key: &'static _ = Box::leak(Box::new(SoftwareStaticKey::generate(&mut rng())));
        let config = InitiatorConfig {
            suite: if suite == suite_name(Suite::AesGcm) {
                Suite::AesGcm
            } else {
                Suite::ChaChaPoly
            },
            pin: service.parse().unwrap(),
            held: None,
            static_key: key.public(),
            purpose: Purpose::Deliver,
            version: "bench".to_owned(),
        };
        let connected = link::connect(&relay_address(relay_port), config, key, &Forget).await;
        let (driver, streams) = connected.unwrap().split();
        tokio::spawn(driver.run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let messages = streams.open(StreamName::Tunnel).await.unwrap();
            tokio::spawn(pass(messages, socket));
        }
    });
}

pub(crate) fn suite_name(suite: Suite) -> &'static str {
    match suite {
        Suite::ChaChaPoly => "ChaChaPoly",
        Suite::AesGcm => "AESGCM",
    }
}

/// Bytes of a socket through a tunnel and back, until both directions have ended.
async fn pass(messages: Messages, mut socket: TcpStream) {
    socket.set_nodelay(true).unwrap();
    let mut tunnel = messages.into_bytes();
    // A connection that the bench has closed may end in any way.
    let _ = tokio::io::copy_bidirectional_with_sizes(
        &mut socket,
        &mut tunnel,
        BUFFER_BYTES,
        BUFFER_BYTES,
    )
    .await;
}

fn relay_address(port: &str) -> Address {
    format!("relay://127.0.0.1:{port}").parse().unwrap()
}

/// As both daemons run.
fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work);
}

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// Lets everybody in.
struct Open;

impl Registry for Open {
    fn admit<'a>(&'a self, _peer: &'a PeerHello) -> BoxFuture<'a, Admission> {
        Box::pin(async { Admission::Ok })
    }
}

/// Keeps no statement.
struct Forget;

impl KeepStatement for Forget {
    fn keep<'a>(&'a self, _statement: &'a Statement) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// As much as a link writes and reads at once.
const BUFFER_BYTES: usize = 64 * 1024;
