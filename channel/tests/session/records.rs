//! Records: whole and in order, or not at all.

use channel::{Admission, SessionError, Suite, TRANSMIT_BYTES_MAX};
use proptest::prelude::*;

use crate::foreign::{ForeignService, Transport};
use crate::handshake::service_pair;
use crate::net::{Side, World, exchange, exchange_in_pieces};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn stream_bytes_arrive_whole_and_in_order_both_ways(
        aes in any::<bool>(),
        piece in 1_usize..5_000,
        sends in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..3_000)), 0..12),
    ) {
        let world = World::new();
        let suite = if aes { Suite::AesGcm } else { Suite::ChaChaPoly };
        let (mut gateway, mut service) = world.open(suite);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for (is_up, bytes) in sends {
            let (side, all) = if is_up { (&mut gateway, &mut up) } else { (&mut service, &mut down) };
            side.session.send(world.start, &bytes).unwrap();
            all.extend(bytes);
        }

        exchange_in_pieces(&mut gateway, &mut service, world.start, piece).unwrap();

        prop_assert_eq!(service.received, up);
        prop_assert_eq!(gateway.received, down);
    }

    #[test]
    fn any_bytes_at_any_point_do_not_panic(
        steps in 0_usize..5,
        to_gateway in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 1..2_000),
        length in prop::option::of(0_u16..2_000),
    ) {
        let world = World::new();
        let (mut gateway, mut service) = (world.gateway(1), world.service(1));
        for step in 0..steps {
            let (from, to) = if step % 2 == 0 {
                (&mut gateway, &mut service)
            } else {
                (&mut service, &mut gateway)
            };
            to.feed(world.start, &from.take()).unwrap();
        }
        let side = if to_gateway { &mut gateway } else { &mut service };
        let prefix = length.map(u16::to_be_bytes);
        let bytes = [prefix.as_ref().map_or(&[][..], |prefix| prefix), &bytes].concat();

        let _ = side.feed(world.start, &bytes);
        let _ = side.session.handle_end(world.start);

        prop_assert!(side.received.is_empty());
        prop_assert!(side.session.poll_timeout().is_none());
    }
}

#[test]
fn a_long_send_is_cut_into_the_longest_records() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::AesGcm);
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[1]).collect();

    gateway.session.send(world.start, &bytes).unwrap();

    let records = gateway.take();
    assert_eq!(records[..2], 65_535_u16.to_be_bytes());
    service.feed(world.start, &records).unwrap();
    exchange(&mut gateway, &mut service, world.start).unwrap();
    assert_eq!(service.received, bytes);
}

// 15
#[test]
fn each_flipped_byte_of_a_record_ends_the_session() {
    let world = World::new();
    let record_bytes = {
        let (mut gateway, _) = world.open(Suite::ChaChaPoly);
        gateway.record(world.start, b"reading").len()
    };
    for position in 0..record_bytes {
        let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
        let mut record = gateway.record(world.start, b"reading");
        record[position] ^= 1;

        let result = service.feed(world.start, &record);
        // A longer length may wait for more, which then does not fit.
        let result = result.and_then(|()| service.feed(world.start, &[0; 300]));

        assert!(result.is_err(), "{position}");
        assert!(service.received.is_empty());
    }
}

// 15
#[test]
fn a_dropped_record_ends_the_session() {
    let (world, mut service, [_, second, _]) = three_records();
    assert_rejected(&mut service, &world, &second, b"");
}

// 15
#[test]
fn a_doubled_record_ends_the_session() {
    let (world, mut service, [first, _, _]) = three_records();
    let doubled = [&first[..], &first].concat();
    assert_rejected(&mut service, &world, &doubled, b"one");
}

// 15
#[test]
fn swapped_records_end_the_session() {
    let (world, mut service, [first, second, third]) = three_records();
    let swapped = [first, third, second].concat();
    assert_rejected(&mut service, &world, &swapped, b"one");
}

// 15
#[test]
fn a_cut_record_ends_the_session() {
    let (world, mut service, [first, second, third]) = three_records();
    let cut = [&first[..], &second[..second.len() - 1], &third].concat();
    assert_rejected(&mut service, &world, &cut, b"one");
}

// 15
#[test]
fn a_record_sent_back_to_its_sender_ends_the_session() {
    let world = World::new();
    let (mut gateway, _) = world.open(Suite::ChaChaPoly);
    let record = gateway.record(world.start, b"reading");
    assert_rejected(&mut gateway, &world, &record, b"");
}

// 15
#[test]
fn a_record_shorter_than_type_and_tag_ends_the_session_at_its_length() {
    for length in [0_u16, 1, 16] {
        let world = World::new();
        let (_, mut service) = world.open(Suite::ChaChaPoly);
        let error = service
            .feed(world.start, &length.to_be_bytes())
            .unwrap_err();
        assert!(
            matches!(error, SessionError::PeerLength { bytes } if bytes == usize::from(length))
        );
        assert!(service.take().is_empty());
    }
}

#[test]
fn a_handshake_frame_that_is_too_long_is_refused_at_its_length() {
    let world = World::new();
    let mut service = world.service(1);
    let hello = world.gateway(1).take();
    service.feed(world.start, &hello[..72]).unwrap();
    let error = service.feed(world.start, &[0xff, 0xff]).unwrap_err();
    assert!(matches!(error, SessionError::PeerLength { bytes: 65_535 }));

    let mut gateway = world.gateway(1);
    let error = gateway.feed(world.start, &[0xff, 0xff]).unwrap_err();
    assert!(matches!(error, SessionError::PeerLength { bytes: 65_535 }));
}

// 16
#[test]
fn the_end_of_the_transport_without_a_close_is_an_error() {
    let world = World::new();
    let fresh = [world.gateway(1), world.service(1)];
    let (gateway, service) = world.open(Suite::ChaChaPoly);
    for mut side in fresh.into_iter().chain([gateway, service]) {
        let error = side.session.handle_end(world.start).unwrap_err();
        assert!(matches!(error, SessionError::PeerTruncated));
        assert!(side.closed.is_none());
    }
}

// 16
#[test]
fn the_end_of_the_transport_after_a_close_is_none() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    gateway.session.send(world.start, b"last words").unwrap();
    gateway.session.close(Admission::GoingAway);
    gateway.session.close(Admission::Busy);

    exchange(&mut gateway, &mut service, world.start).unwrap();
    gateway.react(world.start).unwrap();

    assert_eq!(service.received, b"last words");
    for side in [&mut gateway, &mut service] {
        assert_eq!(side.closed, Some(Admission::GoingAway));
        side.session.handle_end(world.start).unwrap();
        let result = side.session.send(world.start, b"more");
        assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));
    }
}

#[test]
fn what_was_under_way_when_a_session_closed_is_ignored() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let under_way = service.record(world.start, b"under way");
    gateway.session.close(Admission::Ok);

    gateway.feed(world.start, &under_way).unwrap();

    assert!(gateway.received.is_empty());
}

#[test]
fn a_service_may_close_instead_of_admitting() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    service.admits = None;
    exchange(&mut gateway, &mut service, world.start).unwrap();

    service.session.close(Admission::GoingAway);
    exchange(&mut gateway, &mut service, world.start).unwrap();

    assert_eq!(gateway.closed, Some(Admission::GoingAway));
    assert!(gateway.opened.is_none());
}

#[test]
fn bytes_before_a_bad_record_are_delivered() {
    let (world, mut service, [first, mut second, _]) = three_records();
    second[5] ^= 1;
    assert_rejected(&mut service, &world, &[first, second].concat(), b"one");
}

// 18: 4, 5 and 7 are records of a renewal, which is not due.
#[test]
fn records_that_the_protocol_does_not_have_here_are_refused_and_the_peer_is_told() {
    let plaintexts: [&[u8]; 17] = [
        &[4],
        &[5],
        &[7],
        &[8],
        &[255],
        &[4, 1, 2, 3],
        // Stream bytes, but none.
        &[0],
        // Ping and pong with a body.
        &[2, 0],
        &[3, 0],
        // Admission, once more.
        &[6, 0xa1, 1, 0],
        // A close that is none: empty, unknown code, other key, trailing byte, long form, no map.
        &[1],
        &[1, 0xa1, 1, 10],
        &[1, 0xa1, 2, 0],
        &[1, 0xa1, 1, 0, 0],
        &[1, 0xa1, 1, 0x18, 0],
        &[1, 0xa0],
        &[1, 0x81, 0],
    ];
    for plaintext in plaintexts {
        let (world, mut gateway, mut service) = open_with_foreign_service();

        let error = gateway
            .feed(world.start, &service.seal(plaintext))
            .unwrap_err();

        assert!(matches!(error, SessionError::PeerProtocol), "{plaintext:?}");
        assert_eq!(service.open(&gateway.take()), [1, 0xa1, 1, 8]);
        assert!(gateway.received.is_empty() && gateway.closed.is_none());
        assert_eq!(gateway.session.poll_timeout(), None);
    }
}

#[test]
fn a_ping_is_answered_and_an_unasked_pong_is_not() {
    let (world, mut gateway, mut service) = open_with_foreign_service();
    gateway.feed(world.start, &service.seal(&[2])).unwrap();
    assert_eq!(service.open(&gateway.take()), [3]);
    gateway.feed(world.start, &service.seal(&[3])).unwrap();
    assert!(gateway.take().is_empty());
}

#[test]
fn a_full_queue_refuses_more_without_harm() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::AesGcm);
    let bytes = vec![7; TRANSMIT_BYTES_MAX];
    gateway.session.send(world.start, &bytes).unwrap();
    let queued = gateway.session.transmit().len();
    assert!(TRANSMIT_BYTES_MAX < queued);

    let error = gateway.session.send(world.start, b"more").unwrap_err();
    assert!(matches!(error, SessionError::LocalBacklog { bytes } if bytes == queued));
    assert_eq!(gateway.session.transmit().len(), queued);

    exchange(&mut gateway, &mut service, world.start).unwrap();
    assert_eq!(gateway.session.transmit().len(), 0);
    gateway.session.send(world.start, b"more").unwrap();
    exchange(&mut gateway, &mut service, world.start).unwrap();
    assert_eq!(service.received, [&bytes[..], b"more"].concat());
}

#[test]
fn a_peer_that_pings_and_does_not_read_cannot_fill_the_queue() {
    let (world, mut gateway, mut service) = open_with_foreign_service();
    let bytes = vec![7; TRANSMIT_BYTES_MAX];
    gateway.session.send(world.start, &bytes).unwrap();
    let queued = gateway.session.transmit().len();

    for _ in 0..1_000 {
        gateway.feed(world.start, &service.seal(&[2])).unwrap();
    }

    assert_eq!(gateway.session.transmit().len(), queued);
}

/// A service that just opened, and three records for it: "one", "two", "three".
fn three_records() -> (World, Side, [Vec<u8>; 3]) {
    let world = World::new();
    let (mut gateway, service) = world.open(Suite::ChaChaPoly);
    let records = [&b"one"[..], b"two", b"three"].map(|bytes| gateway.record(world.start, bytes));
    (world, service, records)
}

fn assert_rejected(side: &mut Side, world: &World, records: &[u8], delivered: &[u8]) {
    let error = side.feed(world.start, records).unwrap_err();
    assert!(matches!(error, SessionError::PeerRejected));
    assert_eq!(side.received, delivered);
    assert!(side.closed.is_none());
    assert!(side.take().is_empty());
    let result = side.session.handle_bytes(world.start, records);
    assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));
}

/// A gateway and the records of a service that may say anything.
fn open_with_foreign_service() -> (World, Side, Transport) {
    let world = World::new();
    let config = world.config(Suite::ChaChaPoly, Some(world.newest()));
    let mut gateway = world.gateway_of(config, 1);
    let (mut service, reply) =
        ForeignService::answer(&gateway.take(), service_pair(&world), &[0xa0]);
    gateway.feed(world.start, &reply).unwrap();
    service.read(&gateway.take());
    let mut transport = service.finish();
    let admission = transport.seal(&[6, 0xa1, 1, 0]);
    gateway.feed(world.start, &admission).unwrap();
    assert!(gateway.opened.is_some());
    (world, gateway, transport)
}
