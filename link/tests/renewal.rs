//! The keys of a link are renewed under the streams, which do not notice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

#[expect(dead_code, reason = "each test file uses its part")]
mod fixture;

use std::sync::Mutex;
use std::time::Duration;

use channel::Admission;
use fixture::{Owners, listen};
use futures::future::BoxFuture;
use link::{Messages, PeerHello, Registry, StreamName};

#[tokio::test]
async fn a_stream_goes_on_over_renewed_keys_and_each_costs_the_gateway_one_key_operation() {
    let owners = Owners::new();
    let (gateway, service) = owners.open_pair().await;
    let (gateway_driver, gateway) = gateway.split();
    let (service_driver, service) = service.split();
    tokio::spawn(gateway_driver.run());
    tokio::spawn(service_driver.run());
    let mut near = gateway.open(StreamName::Upload).await.unwrap();
    let (_, mut far) = service.accept().await.unwrap();

    for renewals in 1..=3 {
        age_keys().await;
        // The first of these begins the renewal; the key is asked while they go on.
        let mut round = 0_u32;
        while owners.gateway.operations() < 1 + renewals {
            echo(&mut near, &mut far, round).await;
            round += 1;
        }
        for round in 0..10 {
            echo(&mut near, &mut far, round).await;
        }
        assert_eq!(owners.gateway.operations(), 1 + renewals);
    }
}

#[tokio::test]
async fn a_gateway_that_may_not_stay_is_told_when_its_keys_are_renewed() {
    let owners = Owners::new();
    let door = Box::leak(Box::new(TurningDoor(Mutex::new(vec![
        Admission::Revoked,
        Admission::Ok,
    ]))));
    let (listener, address) = listen().await;
    let config = owners.gateway.config(owners.service.fingerprint(), None);
    let connect = link::connect(&address, config, owners.gateway, owners.shelf);
    let (gateway, service) = tokio::join!(connect, async {
        let (stream, _) = listener.accept().await.unwrap();
        owners.service.accept(stream, door).await
    });
    let (gateway_driver, gateway) = gateway.unwrap().split();
    let (service_driver, service) = service.unwrap().0.split();
    let gateway_end = tokio::spawn(gateway_driver.run());
    let service_end = tokio::spawn(service_driver.run());
    let mut near = gateway.open(StreamName::Upload).await.unwrap();
    let (_, mut far) = service.accept().await.unwrap();
    echo(&mut near, &mut far, 0).await;

    age_keys().await;
    near.send(b"late").await.unwrap();

    assert_eq!(gateway_end.await.unwrap().unwrap(), Admission::Revoked);
    assert_eq!(service_end.await.unwrap().unwrap(), Admission::Revoked);
}

/// The peer neither reads nor ends: only this side's clock can end the link.
#[tokio::test]
async fn a_link_whose_keys_are_over_ends_although_its_peer_does_nothing() {
    let owners = Owners::new();
    let (gateway, _deaf) = owners.open_pair().await;
    let (driver, _streams) = gateway.split();
    let end = tokio::spawn(driver.run());
    // The driver waits for its peer.
    tokio::task::yield_now().await;

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(24 * 60 * 60)).await;
    let end = tokio::time::timeout(Duration::from_secs(60), end).await;

    let reason = end.expect("the link ends").unwrap().unwrap();
    assert_eq!(reason, Admission::GoingAway);
}

/// Answers from the end of a list.
struct TurningDoor(Mutex<Vec<Admission>>);

impl Registry for TurningDoor {
    fn admit<'a>(&'a self, _peer: &'a PeerHello) -> BoxFuture<'a, Admission> {
        let answer = self.0.lock().unwrap().pop().unwrap();
        Box::pin(async move { answer })
    }
}

/// Lets 50 minutes pass at once.
async fn age_keys() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(50 * 60)).await;
    tokio::time::resume();
}

async fn echo(near: &mut Messages, far: &mut Messages, number: u32) {
    near.send(&number.to_be_bytes()).await.unwrap();
    let heard = far.recv().await.unwrap().unwrap();
    assert_eq!(heard, number.to_be_bytes());
    far.send(&heard).await.unwrap();
    assert_eq!(near.recv().await.unwrap().unwrap(), number.to_be_bytes());
}
