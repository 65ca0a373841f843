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
use cloud::relay::{self, Admit, Limits, RelayConfig};
use link::{Address, LinkError};
use support::{Cloud, PATIENCE, rng};
use tokio::{
    net::TcpListener,
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
        admit: Admit::Open,
        max_clients: 100,
        limits: Limits::default(),
    }
}

fn key() -> SoftwareStaticKey {
    SoftwareStaticKey::generate(&mut rng())
}
