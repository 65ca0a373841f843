//! Who gets a link, who does not, and what each side is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

#[expect(dead_code, reason = "each test file uses its part")]
mod fixture;

use std::time::Duration;

use channel::{Admission, InitiatorConfig, Purpose, SessionError, StaticKey};
use fixture::{
    BrokenKey, Door, GatewayKey, Service, Shelf, StuckKey, listen, rng, statement, stranger,
};
use link::{Address, Link, LinkError, PeerHello, Stage};
use tokio::net::TcpStream;
use tokio::time::Instant;

type Outcome<'a> = (
    Result<Link<'a>, LinkError>,
    Result<(Link<'a>, PeerHello), LinkError>,
);

/// Lets the gateway connect to the service, with everything as given.
async fn meet<'a>(
    gateway: (InitiatorConfig, &'a dyn StaticKey, &'a Shelf),
    service: &'a Service,
    door: Admission,
) -> Outcome<'a> {
    let (config, key, shelf) = gateway;
    let door = Box::leak(Box::new(Door(door)));
    let (listener, address) = listen().await;
    tokio::join!(link::connect(&address, config, key, shelf), async {
        let (stream, _) = listener.accept().await.unwrap();
        service.accept(stream, door).await
    })
}

#[tokio::test]
async fn both_sides_name_the_session_alike_and_know_each_other() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let config = gateway.config(service.fingerprint(), None);

    let (connected, accepted) = meet((config, &gateway, &shelf), &service, Admission::Ok).await;

    let (link, (other, hello)) = (connected.unwrap(), accepted.unwrap());
    assert_eq!(link.handshake_hash, other.handshake_hash);
    assert_eq!(link.handshake_hash, hello.handshake_hash);
    assert_eq!(link.remote_static, service.key.public());
    assert_eq!(other.remote_static, gateway.public());
    assert_eq!(hello.static_key, gateway.public());
    assert_eq!(
        (hello.purpose, hello.version.as_str()),
        (Purpose::Deliver, "test")
    );
    assert_eq!(gateway.operations(), 1);
}

#[tokio::test]
async fn a_new_statement_is_kept_and_one_that_is_held_is_not_kept_again() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let config = gateway.config(service.fingerprint(), None);
    let (connected, _) = meet((config, &gateway, &shelf), &service, Admission::Ok).await;
    connected.unwrap();
    assert_eq!(*shelf.kept.lock().unwrap(), [1]);

    let config = gateway.config(service.fingerprint(), Some(service.statement.clone()));
    let (connected, _) = meet((config, &gateway, &shelf), &service, Admission::Ok).await;
    connected.unwrap();
    assert_eq!(*shelf.kept.lock().unwrap(), [1]);
}

#[tokio::test]
async fn without_a_kept_statement_the_key_is_not_used() {
    let (service, gateway) = (Service::new(), GatewayKey::new());
    let shelf = Shelf {
        full: true,
        ..Shelf::default()
    };
    let config = gateway.config(service.fingerprint(), None);

    let (connected, accepted) = meet((config, &gateway, &shelf), &service, Admission::Ok).await;

    assert!(matches!(connected, Err(LinkError::LocalStatement(_))));
    assert!(matches!(
        accepted,
        Err(LinkError::Peer(SessionError::PeerTruncated))
    ));
    assert_eq!(gateway.operations(), 0);
}

#[tokio::test]
async fn a_service_key_that_the_newest_statement_does_not_list_is_a_key_mismatch() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let successor = channel::SoftwareStaticKey::generate(&mut rng());
    let newest = statement(&service.identity, 2, &successor);
    let config = gateway.config(service.fingerprint(), Some(newest));

    let (connected, _) = meet((config, &gateway, &shelf), &service, Admission::Ok).await;

    assert!(matches!(connected, Err(LinkError::KeyMismatch(_))));
    assert_eq!(gateway.operations(), 0);
}

#[tokio::test]
async fn a_service_that_is_not_the_pinned_one_says_nothing_and_learns_nothing() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let config = gateway.config(stranger(), None);

    let (connected, accepted) = meet((config, &gateway, &shelf), &service, Admission::Ok).await;

    assert!(matches!(connected, Err(LinkError::NotAnswered)));
    assert!(matches!(
        accepted,
        Err(LinkError::Peer(SessionError::PeerPreamble))
    ));
    assert_eq!(gateway.operations(), 0);
}

#[tokio::test]
async fn a_gateway_that_is_not_admitted_is_told_why() {
    for reason in [
        Admission::UnknownGateway,
        Admission::Suspended,
        Admission::Revoked,
        Admission::Busy,
    ] {
        let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
        let config = gateway.config(service.fingerprint(), None);

        let (connected, accepted) = meet((config, &gateway, &shelf), &service, reason).await;

        assert!(matches!(connected, Err(LinkError::Refused(told)) if told == reason));
        assert!(matches!(accepted, Err(LinkError::NotAdmitted(said)) if said == reason));
    }
}

#[tokio::test]
async fn a_key_that_fails_ends_the_handshake_with_its_cause() {
    let (service, shelf) = (Service::new(), Shelf::default());
    let gateway = GatewayKey::new();
    let config = gateway.config(service.fingerprint(), None);
    let key = BrokenKey(gateway.public());

    let (connected, _) = meet((config, &key, &shelf), &service, Admission::Ok).await;

    let Err(LinkError::LocalKey(error)) = connected else {
        panic!("the key's failure was not reported");
    };
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "the TPM is locked out");
}

#[tokio::test]
async fn a_key_that_does_not_answer_is_given_up_after_ten_seconds() {
    let (service, shelf) = (Service::new(), Shelf::default());
    let gateway = GatewayKey::new();
    let config = gateway.config(service.fingerprint(), None);
    let key = StuckKey(gateway.public());

    let (connected, _) = meet((config, &key, &shelf), &service, Admission::Ok).await;

    let Err(LinkError::Timeout { stage, limit }) = connected else {
        panic!("the key's silence was not reported");
    };
    assert_eq!(
        (stage, limit),
        (Stage::KeyOperation, Duration::from_secs(10))
    );
}

/// A connection on which the other side never says a word, and a clock that only timers move.
async fn silent_stream() -> (TcpStream, TcpStream) {
    let (listener, address) = listen().await;
    let authority = address.authority();
    let (connected, accepted) = tokio::join!(TcpStream::connect(authority), listener.accept());
    tokio::time::pause();
    (connected.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_service_that_stalls_is_left_after_thirty_seconds() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let config = gateway.config(service.fingerprint(), None);
    let (stream, _silent) = silent_stream().await;
    let began = Instant::now();

    let connected = link::connect_over(stream, config, &gateway, &shelf).await;

    assert!(matches!(
        connected,
        Err(LinkError::Peer(SessionError::PeerSilent(_)))
    ));
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn a_gateway_that_stalls_is_dropped_after_fifteen_seconds() {
    let service = Service::new();
    let (_silent, stream) = silent_stream().await;
    let began = Instant::now();

    let accepted = service.accept(stream, &Door(Admission::Ok)).await;

    assert!(matches!(
        accepted,
        Err(LinkError::Peer(SessionError::PeerSilent(_)))
    ));
    assert_eq!(began.elapsed().as_secs(), 15);
}

#[tokio::test]
async fn a_handshake_may_run_in_a_task_of_its_own() {
    fn assert_send(_: &impl Send) {}
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let (_silent, stream) = silent_stream().await;
    let address = "tcp://192.0.2.1:4431".parse().unwrap();
    let config = gateway.config(service.fingerprint(), None);
    assert_send(&link::connect(&address, config, &gateway, &shelf));
    assert_send(&service.accept(stream, &Door(Admission::Ok)));
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_unreachable() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let (listener, address) = listen().await;
    drop(listener);
    let config = gateway.config(service.fingerprint(), None);

    let connected = link::connect(&address, config, &gateway, &shelf).await;

    let Err(error @ LinkError::Unreachable { .. }) = connected else {
        panic!("somebody answered");
    };
    assert_eq!(
        error.to_string(),
        format!("nothing answers at {}", address.authority())
    );
}

#[tokio::test]
async fn a_relay_address_for_another_service_is_not_dialled() {
    let (service, gateway, shelf) = (Service::new(), GatewayKey::new(), Shelf::default());
    let address: Address = format!("relay://192.0.2.1:4430/{}", stranger())
        .parse()
        .unwrap();
    let config = gateway.config(service.fingerprint(), None);

    let connected = link::connect(&address, config, &gateway, &shelf).await;

    assert!(matches!(connected, Err(LinkError::LocalAddress)));
}
