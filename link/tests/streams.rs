//! What a link carries: messages on named streams, in both directions, up to its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

#[expect(dead_code, reason = "each test file uses its part")]
mod fixture;

use std::pin::pin;
use std::time::Duration;

use channel::{Admission, SessionError};
use fixture::open_pair;
use link::{LinkError, MESSAGE_BYTES_MAX, Messages, StreamName, Streams};
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Running = JoinHandle<Result<Admission, LinkError>>;

/// An open link with both drivers running.
struct Pair {
    gateway: Streams,
    service: Streams,
    gateway_driver: Running,
    service_driver: Running,
}

impl Pair {
    async fn open() -> Self {
        let (gateway, service) = open_pair().await;
        let (gateway_driver, gateway) = gateway.split();
        let (service_driver, service) = service.split();
        Self {
            gateway,
            service,
            gateway_driver: tokio::spawn(gateway_driver.run()),
            service_driver: tokio::spawn(service_driver.run()),
        }
    }

    /// A stream that the gateway has opened, both ends.
    async fn stream(&self, name: StreamName) -> (Messages, Messages) {
        let opened = self.gateway.open(name).await.unwrap();
        let (accepted_name, accepted) = self.service.accept().await.unwrap();
        assert_eq!(accepted_name, name);
        (opened, accepted)
    }
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order_both_ways_on_several_streams() {
    let pair = Pair::open().await;
    for name in [StreamName::Upload, StreamName::Enroll, StreamName::Tunnel] {
        let (mut gateway, mut service) = pair.stream(name).await;
        for bytes in [0, 1, 17, 70_000, MESSAGE_BYTES_MAX] {
            let message = vec![u8::try_from(bytes % 251).unwrap(); bytes];
            let (sent, received) = tokio::join!(gateway.send(&message), service.recv());
            sent.unwrap();
            assert_eq!(received.unwrap().unwrap(), message);
            let (sent, received) = tokio::join!(service.send(&message), gateway.recv());
            sent.unwrap();
            assert_eq!(received.unwrap().unwrap(), message);
        }
    }
}

#[tokio::test]
async fn the_service_opens_streams_too() {
    let pair = Pair::open().await;
    let mut opened = pair.service.open(StreamName::Command).await.unwrap();
    let (name, mut accepted) = pair.gateway.accept().await.unwrap();
    assert_eq!(name, StreamName::Command);

    opened.send(b"set").await.unwrap();
    assert_eq!(accepted.recv().await.unwrap().unwrap(), b"set");
}

#[tokio::test]
async fn a_finished_stream_ends_for_the_receiver_and_not_for_the_sender() {
    let pair = Pair::open().await;
    let (mut gateway, mut service) = pair.stream(StreamName::Upload).await;

    gateway.send(b"last").await.unwrap();
    gateway.finish().await.unwrap();

    assert_eq!(service.recv().await.unwrap().unwrap(), b"last");
    assert_eq!(service.recv().await.unwrap(), None);
    service.send(b"answer").await.unwrap();
    assert_eq!(gateway.recv().await.unwrap().unwrap(), b"answer");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_without_harm() {
    let pair = Pair::open().await;
    let (mut gateway, mut service) = pair.stream(StreamName::Upload).await;

    let refused = gateway.send(&vec![0; MESSAGE_BYTES_MAX + 1]).await;

    assert!(matches!(refused, Err(LinkError::LocalOversized { .. })));
    gateway.send(b"fits").await.unwrap();
    assert_eq!(service.recv().await.unwrap().unwrap(), b"fits");
}

#[tokio::test]
async fn a_ninth_stream_waits_until_one_of_eight_is_dropped() {
    let pair = Pair::open().await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(pair.stream(StreamName::Tunnel).await);
    }
    {
        let mut ninth = pin!(pair.gateway.open(StreamName::Tunnel));
        let waiting = timeout(Duration::from_millis(100), &mut ninth).await;
        assert!(waiting.is_err(), "a ninth stream was opened");
        streams.pop();
        ninth.await.unwrap();
    }
    assert!(!pair.gateway_driver.is_finished());
}

#[tokio::test]
async fn streams_come_and_go_without_end() {
    let pair = Pair::open().await;
    for round in 0_u32..100 {
        let (mut gateway, mut service) = pair.stream(StreamName::Tunnel).await;
        gateway.send(&round.to_be_bytes()).await.unwrap();
        let received = service.recv().await.unwrap().unwrap();
        assert_eq!(received, round.to_be_bytes());
    }
}

#[tokio::test]
async fn when_both_write_and_neither_reads_both_wait_and_nothing_is_lost() {
    const COUNT: usize = 128;
    let message = vec![0x5A; 64 * 1024];
    let pair = Pair::open().await;
    let (gateway, service) = pair.stream(StreamName::Upload).await;
    let (mut gateway_sender, mut gateway_receiver) = gateway.split();
    let (mut service_sender, mut service_receiver) = service.split();
    let mut writing = pin!(async {
        tokio::join!(
            async {
                for _ in 0..COUNT {
                    gateway_sender.send(&message).await.unwrap();
                }
            },
            async {
                for _ in 0..COUNT {
                    service_sender.send(&message).await.unwrap();
                }
            }
        )
    });

    let stuck = timeout(Duration::from_millis(500), &mut writing).await;

    assert!(stuck.is_err(), "8 MiB went where nobody took them");
    // The windows of yamux are 256 KiB.
    let (received, sent) = pair.gateway.bytes();
    assert!(received < 512 * 1024, "{received} bytes were let in");
    assert!(sent < 512 * 1024, "{sent} bytes were let out");

    let mut read = async || {
        for _ in 0..COUNT {
            assert!(gateway_receiver.recv().await.unwrap().unwrap() == message);
            assert!(service_receiver.recv().await.unwrap().unwrap() == message);
        }
    };
    tokio::join!(writing, read());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_stop_another() {
    let pair = Pair::open().await;
    let (mut full, _unread) = pair.stream(StreamName::Tunnel).await;
    let message = vec![0; MESSAGE_BYTES_MAX];
    let mut filling = pin!(full.send(&message));
    let stuck = timeout(Duration::from_millis(200), &mut filling).await;
    assert!(stuck.is_err());

    let (mut gateway, mut service) = pair.stream(StreamName::Upload).await;
    gateway.send(b"urgent").await.unwrap();
    assert_eq!(service.recv().await.unwrap().unwrap(), b"urgent");
}

#[tokio::test]
async fn a_close_delivers_what_was_sent_and_tells_both_why() {
    let pair = Pair::open().await;
    let (mut gateway, mut service) = pair.stream(StreamName::Upload).await;
    for number in 0_u8..10 {
        gateway.send(&[number]).await.unwrap();
    }

    pair.gateway.close(Admission::GoingAway);
    pair.gateway.close(Admission::Busy);

    for number in 0_u8..10 {
        assert_eq!(service.recv().await.unwrap().unwrap(), [number]);
    }
    assert_eq!(service.recv().await.unwrap(), None);
    for driver in [pair.gateway_driver, pair.service_driver] {
        assert_eq!(driver.await.unwrap().unwrap(), Admission::GoingAway);
    }
    assert!(pair.service.accept().await.is_none());
    let refused = pair.service.open(StreamName::Command).await;
    assert!(matches!(refused, Err(LinkError::Ended)));
}

#[tokio::test]
async fn both_may_close_at_once() {
    let pair = Pair::open().await;
    pair.gateway.close(Admission::Ok);
    pair.service.close(Admission::Ok);
    assert_eq!(pair.gateway_driver.await.unwrap().unwrap(), Admission::Ok);
    assert_eq!(pair.service_driver.await.unwrap().unwrap(), Admission::Ok);
}

#[tokio::test]
async fn a_peer_that_does_not_read_cannot_stop_a_close() {
    let (gateway, service) = open_pair().await;
    let (_not_driven, _streams) = service.split();
    let (driver, streams) = gateway.split();
    let running = tokio::spawn(driver.run());
    tokio::time::pause();

    streams.close(Admission::GoingAway);

    assert_eq!(running.await.unwrap().unwrap(), Admission::GoingAway);
}

#[tokio::test]
async fn an_end_without_a_close_is_a_truncation() {
    let pair = Pair::open().await;
    let (mut gateway, mut service) = pair.stream(StreamName::Upload).await;
    gateway.send(b"before").await.unwrap();
    assert_eq!(service.recv().await.unwrap().unwrap(), b"before");

    pair.gateway_driver.abort();

    assert!(matches!(
        pair.service_driver.await.unwrap(),
        Err(LinkError::Peer(SessionError::PeerTruncated) | LinkError::Transport(_))
    ));
    assert!(matches!(service.recv().await, Err(LinkError::Ended)));
    assert!(matches!(service.send(b"x").await, Err(LinkError::Ended)));
    assert!(matches!(gateway.recv().await, Err(LinkError::Ended)));
    assert!(pair.service.accept().await.is_none());
}

#[tokio::test]
async fn bytes_are_counted_in_both_directions() {
    let pair = Pair::open().await;
    let (mut gateway, mut service) = pair.stream(StreamName::Upload).await;
    let before = pair.gateway.bytes();

    gateway.send(&[0; 10_000]).await.unwrap();
    service.recv().await.unwrap().unwrap();
    service.send(&[0; 5_000]).await.unwrap();
    gateway.recv().await.unwrap().unwrap();

    let after = pair.gateway.bytes();
    assert!((5_000..6_000).contains(&(after.0 - before.0)));
    assert!((10_000..11_000).contains(&(after.1 - before.1)));
}
