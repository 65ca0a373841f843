//! A service is reached directly and through its relay, by as many as it has room for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::time::Duration;

use channel::{Admission, Purpose, SoftwareStaticKey};
use cloud::relay::{self, Admit, Limits, RelayConfig, RelayMetrics};
use link::{Address, LinkError};
use support::{Cloud, PATIENCE, REGISTRY, gateway::Gateway, rng};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wire::relay::RelayCode;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_found_at_its_relay_and_again_after_the_relay_was_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address: Address = format!("relay://127.0.0.1:{port}").parse().unwrap();
    let relay = tokio::spawn(relay::serve(
        listener,
        config(port),
        CancellationToken::new(),
    ));
    let cloud = Cloud::start_with(vec![address.clone()], 100).await;
    assert_eq!(answer(&cloud, &address).await, Admission::UnknownGateway);

    relay.abort();
    let _ = relay.await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let relay = tokio::spawn(relay::serve(
        listener,
        config(port),
        CancellationToken::new(),
    ));
    assert_eq!(answer(&cloud, &address).await, Admission::UnknownGateway);
    relay.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_a_relay_tells_to_leave_comes_back_to_the_one_that_takes_its_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address: Address = format!("relay://127.0.0.1:{port}").parse().unwrap();
    let stop = CancellationToken::new();
    let relay = tokio::spawn(relay::serve(listener, config(port), stop.clone()));
    let cloud = Cloud::start_with(vec![address.clone()], 100).await;
    assert_eq!(answer(&cloud, &address).await, Admission::UnknownGateway);

    stop.cancel();
    timeout(PATIENCE, relay).await.unwrap().unwrap().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let relay = relay::serve(listener, config(port), CancellationToken::new());
    let relay = tokio::spawn(relay);
    assert_eq!(answer(&cloud, &address).await, Admission::UnknownGateway);
    relay.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_away_keeps_nobody_from_the_others() {
    // Nobody listens where this one was.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone_port = gone.local_addr().unwrap().port();
    drop(gone);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let relays = [gone_port, port].map(|port| format!("relay://127.0.0.1:{port}").parse().unwrap());
    let relay = relay::serve(listener, config(port), CancellationToken::new());
    let relay = tokio::spawn(relay);
    let cloud = Cloud::start_with(relays.to_vec(), 100).await;
    assert_eq!(answer(&cloud, &relays[1]).await, Admission::UnknownGateway);
    relay.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_suspended_or_retired_in_mid_session_is_told_so_and_closed() {
    let cloud = Cloud::start().await;
    let mut sessions = Vec::new();
    for (state, code) in [
        ("revoked", Admission::Revoked),
        ("suspended", Admission::Suspended),
        ("retired", Admission::Retired),
        ("enrolled", Admission::GoingAway),
    ] {
        let key = Gateway::enrolled(&cloud, state).channel;
        let session = cloud.connect(&key, Purpose::Deliver).await.unwrap();
        sessions.push((session, code));
    }
    // As another process does it.
    cloud.change(REGISTRY, "UPDATE gateway SET state = name");
    let (stays, stays_code) = sessions.pop().unwrap();
    for (session, code) in sessions {
        assert_eq!(session.ended().await, code);
    }
    // The one whose standing is good is there until the service goes.
    cloud.stop.cancel();
    assert_eq!(stays.ended().await, stays_code);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_there_is_no_room_waits_until_there_is() {
    let cloud = Cloud::start_with(Vec::new(), 1).await;
    let (first, second) = (key(), key());
    let session = cloud.connect(&first, Purpose::Enrol).await.unwrap();
    let waiting = cloud.connect(&second, Purpose::Enrol);
    tokio::pin!(waiting);
    let early = timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "let in beyond the limit");
    session.cut();
    let end = timeout(PATIENCE, waiting).await;
    end.expect("not let in").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_connections_and_says_nothing_is_bounded_and_keeps_nobody_else_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let relay: Address = format!("relay://127.0.0.1:{port}").parse().unwrap();
    let serving = relay::serve(listener, config(port), CancellationToken::new());
    let serving = tokio::spawn(serving);
    let cloud = Cloud::start_with(vec![relay.clone()], 1000).await;
    let Address::Tcp { host, port } = &cloud.address else {
        panic!("it listens itself");
    };
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect((host.as_str(), *port)).await.unwrap());
    }

    // The next one of the same address is hung up on, at once.
    let mut next = TcpStream::connect((host.as_str(), *port)).await.unwrap();
    let end = timeout(PATIENCE, next.read(&mut [0; 1])).await;
    assert!(matches!(end.expect("let in"), Ok(0) | Err(_)));
    assert!(cloud.connect(&key(), Purpose::Enrol).await.is_err());

    // Who comes another way is not kept out, and who hangs up makes room.
    assert_eq!(answer(&cloud, &relay).await, Admission::UnknownGateway);
    silent.truncate(16);
    let again = async {
        while cloud.connect(&key(), Purpose::Enrol).await.is_err() {
            // The service does not say when it has noticed.
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("not let in");
    serving.abort();
}

/// How the service answers a stranger at its relay, once it has registered there.
async fn answer(cloud: &Cloud, address: &Address) -> Admission {
    let asking = async {
        loop {
            match cloud.connect_at(address, &key(), Purpose::Deliver).await {
                Err(LinkError::Refused(admission)) => return admission,
                Err(LinkError::RelayRefused(RelayCode::NoSuchService)) => {
                    // The relay does not say when somebody registers.
                    sleep(Duration::from_millis(10)).await;
                }
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("let in"),
            }
        }
    };
    timeout(PATIENCE, asking).await.expect("not registered")
}

fn config(port: u16) -> RelayConfig {
    RelayConfig {
        names: vec![format!("127.0.0.1:{port}")],
        services: None,
        admit: Admit::Open,
        max_clients: 100,
        limits: Limits::default(),
        metrics: RelayMetrics::default(),
    }
}

fn key() -> SoftwareStaticKey {
    SoftwareStaticKey::generate(&mut rng())
}
