//! Deadlines, keep-alive and the end of keys, under a clock that only the test moves.

use std::time::{Duration, Instant};

use channel::{Admission, SessionError, Suite};

use crate::net::{Key, Side, World, exchange, seconds};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn a_gateway_gives_up_after_30_s() {
    let world = World::new();
    let mut gateway = world.gateway(1);
    let end = world.start + seconds(30);
    assert_eq!(gateway.session.poll_timeout(), Some(end));

    gateway.wake(end - Duration::from_millis(1)).unwrap();
    let error = gateway.wake(end).unwrap_err();

    assert!(matches!(error, SessionError::PeerSilent(_)));
    assert_eq!(gateway.session.poll_timeout(), None);
}

#[test]
fn a_gateway_gives_up_on_an_admission_that_does_not_come() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    service.admits = None;
    exchange(&mut gateway, &mut service, world.start).unwrap();
    let end = world.start + seconds(30);

    assert_eq!(gateway.session.poll_timeout(), Some(end));
    let error = gateway.wake(end).unwrap_err();
    assert!(matches!(error, SessionError::PeerSilent(_)));

    assert_eq!(service.session.poll_timeout(), Some(end));
    let error = service
        .session
        .handle_admission(end, Admission::Ok)
        .unwrap_err();
    assert!(matches!(error, SessionError::LocalLate(_)));
    assert!(service.take().is_empty());
}

#[test]
fn a_gateway_gives_up_on_a_statement_that_is_not_stored() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    gateway.stores = false;
    exchange(&mut gateway, &mut service, world.start).unwrap();
    let end = world.start + seconds(30);

    let error = gateway.session.handle_statement_stored(end).unwrap_err();

    assert!(matches!(error, SessionError::LocalLate(_)));
    gateway.react(end).unwrap();
    assert!(gateway.asked.is_empty());
    assert!(gateway.take().is_empty());
}

#[test]
fn a_service_gives_up_on_message_3_after_15_s() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    gateway.key_does = Key::Hangs;
    exchange(&mut gateway, &mut service, world.start).unwrap();
    let end = world.start + seconds(15);
    assert_eq!(service.session.poll_timeout(), Some(end));

    let error = service.wake(end).unwrap_err();

    assert!(matches!(error, SessionError::PeerSilent(_)));
}

// 20
#[test]
fn a_trickle_of_bytes_does_not_lengthen_the_handshake() {
    let world = World::new();
    let hello = world.gateway(1).take();
    let mut service = world.service(1);
    let end = world.start + seconds(15);
    for (second, byte) in (1..15).zip(&hello) {
        service
            .feed(world.start + seconds(second), &[*byte])
            .unwrap();
        assert_eq!(service.session.poll_timeout(), Some(end));
    }

    // Even if nobody tells the time: what completes a message too late is not read.
    let error = service.feed(end, &hello[14..]).unwrap_err();

    assert!(matches!(error, SessionError::PeerSilent(_)));
    assert!(service.asked.is_empty());
}

#[test]
fn a_key_has_no_more_time_than_the_handshake() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    service.key_does = Key::Hangs;
    let hello = gateway.take();
    service.feed(world.start + seconds(9), &hello).unwrap();
    assert_eq!(
        service.session.poll_timeout(),
        Some(world.start + seconds(15))
    );
}

#[test]
fn a_silent_peer_is_pinged_and_given_up() {
    let world = World::new();
    let (gateway, service) = world.open(Suite::ChaChaPoly);
    for (mut side, silence) in [(gateway, 240), (service, 255)] {
        let ping_at = world.start + seconds(silence);
        assert_eq!(side.session.poll_timeout(), Some(ping_at));
        side.wake(ping_at).unwrap();
        assert_eq!(side.take().len(), 2 + 17);
        assert_eq!(side.session.poll_timeout(), Some(ping_at + seconds(30)));

        let error = side.wake(ping_at + seconds(30)).unwrap_err();

        assert!(
            matches!(error, SessionError::PeerSilent(silent) if silent == seconds(silence + 30))
        );
        assert!(side.take().is_empty());
    }
}

#[test]
fn a_peer_that_answers_is_kept() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let ping_at = world.start + seconds(240);
    gateway.wake(ping_at).unwrap();
    exchange(&mut gateway, &mut service, ping_at + seconds(29)).unwrap();

    gateway.wake(ping_at + seconds(30)).unwrap();

    let heard_at = ping_at + seconds(29);
    assert_eq!(
        gateway.session.poll_timeout(),
        Some(heard_at + seconds(240))
    );
    assert_eq!(
        service.session.poll_timeout(),
        Some(heard_at + seconds(255))
    );
}

#[test]
fn a_peer_that_sends_instead_of_answering_is_kept() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let ping_at = world.start + seconds(240);
    gateway.wake(ping_at).unwrap();
    let record = service.record(ping_at, b"busy");
    gateway.feed(ping_at + seconds(1), &record).unwrap();

    gateway.wake(ping_at + seconds(30)).unwrap();

    assert!(gateway.session.poll_timeout().is_some());
}

#[test]
fn unanswered_bytes_are_followed_by_a_ping_after_15_s() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let record = gateway.record(world.start, b"first");
    gateway.record(world.start + seconds(10), b"second");
    let ping_at = world.start + seconds(15);
    assert_eq!(gateway.session.poll_timeout(), Some(ping_at));
    gateway.wake(ping_at).unwrap();
    assert_eq!(gateway.take().len(), 2 + 17);

    // What was heard meanwhile may have been sent before they arrived; a pong was not.
    service.feed(world.start, &record).unwrap();
    let other = service.record(world.start, b"other");
    let (mut gateway, _) = world.open(Suite::ChaChaPoly);
    gateway.record(world.start, b"first");
    gateway.feed(world.start + seconds(5), &other).unwrap();
    let ping_at = world.start + seconds(5 + 15);
    assert_eq!(gateway.session.poll_timeout(), Some(ping_at));

    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let first = gateway.record(world.start, b"first");
    service.feed(world.start, &first).unwrap();
    let now = world.start + seconds(15);
    gateway.wake(now).unwrap();
    exchange(&mut gateway, &mut service, now).unwrap();
    assert_eq!(gateway.session.poll_timeout(), Some(now + seconds(240)));
}

#[test]
fn a_pong_says_nothing_of_bytes_that_were_sent_after_its_ping() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let first = gateway.record(world.start, b"first");
    service.feed(world.start, &first).unwrap();
    let ping_at = world.start + seconds(15);
    gateway.wake(ping_at).unwrap();
    let ping = gateway.take();
    gateway.record(ping_at, b"lost");
    service.feed(ping_at, &ping).unwrap();
    let pong = service.take();
    let pong_at = ping_at + seconds(1);
    gateway.feed(pong_at, &pong).unwrap();

    let again = pong_at + seconds(15);
    assert_eq!(gateway.session.poll_timeout(), Some(again));
}

/// An idle link costs 100 KiB a day at most.
#[test]
fn an_idle_day_is_cheap_and_renews_the_keys_once() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let sent_before = gateway.sent.len() + service.sent.len();
    let one_way = Duration::from_millis(80);
    let mut segments = 0;
    loop {
        let now = next_timeout(&gateway, &service);
        if world.start + 24 * HOUR < now {
            break;
        }
        gateway.wake(now).unwrap();
        service.wake(now).unwrap();
        let mut arrives = now;
        loop {
            let (up, down) = (gateway.take(), service.take());
            if up.is_empty() && down.is_empty() {
                break;
            }
            arrives += one_way;
            segments += up.len().div_ceil(1448) + down.len().div_ceil(1448);
            service.feed(arrives, &up).unwrap();
            gateway.feed(arrives, &down).unwrap();
        }
    }

    assert_eq!((gateway.renewed, service.renewed), (1, 1));
    assert_eq!((gateway.closed, service.closed), (None, None));
    let sent = gateway.sent.len() + service.sent.len() - sent_before;
    // IPv4, TCP and timestamps; and an acknowledgement for each segment that is no answer.
    let bytes = sent + segments * 52 + segments / 2 * 52;
    assert!(segments > 500, "{segments} segments");
    assert!(bytes < 100 * 1024, "{bytes} bytes");
}

#[test]
fn keys_in_use_that_cannot_be_renewed_end_after_an_hour() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    gateway.key_does = Key::Fails;
    let mut now = world.start;
    while gateway.closed.is_none() {
        now += MINUTE;
        gateway.wake(now).unwrap();
        service.wake(now).unwrap();
        if gateway.closed.is_none() {
            gateway.session.send(now, b"reading").unwrap();
        }
        exchange(&mut gateway, &mut service, now).unwrap();
    }

    assert_eq!(now, world.start + HOUR);
    assert_eq!(gateway.closed, Some(Admission::GoingAway));
    assert_eq!(service.closed, Some(Admission::GoingAway));
    assert_eq!(service.received.len(), 59 * b"reading".len());
    assert_eq!((gateway.renewed, service.renewed), (0, 0));
}

#[test]
fn idle_keys_that_cannot_be_renewed_end_ten_minutes_after_their_first_late_use() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    gateway.key_does = Key::Hangs;
    let used_at = world.start + 5 * HOUR;
    keep_alive(&mut gateway, &mut service, used_at);
    gateway.session.send(used_at, b"reading").unwrap();
    exchange(&mut gateway, &mut service, used_at).unwrap();
    assert_eq!(service.received, b"reading");

    let end = used_at + 10 * MINUTE;
    keep_alive(&mut gateway, &mut service, end);
    assert!(gateway.closed.is_none() && service.closed.is_none());
    gateway.wake(end).unwrap();
    service.wake(end).unwrap();

    assert_eq!(gateway.closed, Some(Admission::GoingAway));
    assert_eq!(service.closed, Some(Admission::GoingAway));
}

#[test]
fn nothing_is_sealed_under_keys_whose_time_is_over() {
    let world = World::new();
    let (mut gateway, _) = world.open(Suite::ChaChaPoly);
    gateway.record(world.start + 50 * MINUTE, b"reading");

    let result = gateway.session.send(world.start + HOUR, b"late");

    assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));
    gateway.react(world.start + HOUR).unwrap();
    assert_eq!(gateway.closed, Some(Admission::GoingAway));
    // The close alone.
    assert_eq!(gateway.take().len(), 2 + 1 + 3 + 16);
}

/// Runs both clocks until just before `until`.
fn keep_alive(gateway: &mut Side, service: &mut Side, until: Instant) {
    loop {
        let now = next_timeout(gateway, service);
        if until <= now {
            return;
        }
        gateway.wake(now).unwrap();
        service.wake(now).unwrap();
        exchange(gateway, service, now).unwrap();
    }
}

fn next_timeout(gateway: &Side, service: &Side) -> Instant {
    [gateway, service]
        .into_iter()
        .filter_map(|side| side.session.poll_timeout())
        .min()
        .unwrap()
}
