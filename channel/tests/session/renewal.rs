//! New keys in an open session (protocol.md 2.5).

use std::time::{Duration, Instant};

use channel::{Admission, SessionError, StaticKey as _, Suite};

use proptest::prelude::*;

use crate::net::{Key, Side, World, contains, exchange, seconds};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

#[test]
fn a_day_of_steady_use_is_one_session_with_new_keys_every_50_minutes() {
    for suite in [Suite::ChaChaPoly, Suite::AesGcm] {
        let world = World::new();
        let (mut gateway, mut service) = world.open(suite);
        for minute in 1..=24 * 60_u32 {
            let now = world.start + minute * MINUTE;
            gateway.wake(now).unwrap();
            service.wake(now).unwrap();
            gateway.session.send(now, &minute.to_be_bytes()).unwrap();
            service.session.send(now, &minute.to_le_bytes()).unwrap();
            exchange(&mut gateway, &mut service, now).unwrap();
        }

        let up: Vec<u8> = (1..=24 * 60_u32).flat_map(u32::to_be_bytes).collect();
        let down: Vec<u8> = (1..=24 * 60_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(service.received, up);
        assert_eq!(gateway.received, down);
        // 24 h in steps of 50 min.
        assert_eq!((gateway.renewed, service.renewed), (28, 28));
        assert_eq!((gateway.asked.len(), service.asked.len()), (29, 29));
    }
}

/// Whatever is on its way when a key changes arrives, each step of the renewal apart.
#[test]
fn bytes_on_their_way_while_keys_change_arrive_in_order() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let mut now = world.start + 50 * MINUTE;
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for step in 0..12_u8 {
        now += seconds(1);
        // Both speak before they have heard what the other has sent last.
        gateway.session.send(now, &[step; 3]).unwrap();
        service.session.send(now, &[step; 5]).unwrap();
        let (there, back) = (gateway.take(), service.take());
        service.feed(now, &there).unwrap();
        gateway.feed(now, &back).unwrap();
        up.extend([step; 3]);
        down.extend([step; 5]);
    }
    exchange(&mut gateway, &mut service, now).unwrap();

    assert_eq!((gateway.renewed, service.renewed), (1, 1));
    assert_eq!(service.received, up);
    assert_eq!(gateway.received, down);
}

#[test]
fn a_record_under_keys_that_were_replaced_ends_the_session() {
    for to_service in [true, false] {
        let world = World::new();
        let (mut gateway, mut service) = world.open(Suite::AesGcm);
        let old = [
            gateway.record(world.start, b"old"),
            service.record(world.start, b"old"),
        ];
        service.feed(world.start, &old[0]).unwrap();
        gateway.feed(world.start, &old[1]).unwrap();
        renew(&world, &mut gateway, &mut service);

        let now = world.start + HOUR;
        let result = if to_service {
            service.feed(now, &old[0])
        } else {
            gateway.feed(now, &old[1])
        };
        assert!(matches!(result, Err(SessionError::PeerRejected)));
    }
}

/// A peer that sends without a pause can keep the driver from telling the session the time.
#[test]
fn a_record_that_comes_after_the_keys_time_is_not_taken() {
    for to_service in [true, false] {
        let world = World::new();
        let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
        let late = world.start + 24 * HOUR;
        let (from, to) = if to_service {
            (&mut gateway, &mut service)
        } else {
            (&mut service, &mut gateway)
        };
        let record = from.record(world.start, b"late");
        to.feed(late, &record).unwrap();

        assert_eq!(to.closed, Some(Admission::GoingAway));
        assert!(to.received.is_empty());
    }
}

#[test]
fn the_keys_of_a_renewal_are_others() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    // The first record of each key has the same nonce and the same plaintext.
    let before = gateway.record(world.start, b"reading");
    service.feed(world.start, &before).unwrap();
    renew(&world, &mut gateway, &mut service);
    let now = world.start + 50 * MINUTE;
    let after = gateway.record(now, b"reading");

    assert_eq!(before.len(), after.len());
    assert_ne!(before, after);
    service.feed(now, &after).unwrap();
}

#[test]
fn a_renewal_costs_one_operation_of_each_key_and_shows_nobody_the_gateways() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let sent = gateway.sent.len();
    renew(&world, &mut gateway, &mut service);

    assert_eq!((gateway.asked.len(), service.asked.len()), (2, 2));
    assert_ne!(gateway.asked[0], gateway.asked[1], "fresh ephemeral keys");
    let public = *world.gateway_key.public().as_bytes();
    assert!(!contains(&gateway.sent[sent..], &public[1..]));
}

#[test]
fn a_key_that_fails_for_a_while_only_delays_the_renewal() {
    for gateway_fails in [true, false] {
        let world = World::new();
        let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
        let begin = world.start + 50 * MINUTE;
        side(gateway_fails, &mut gateway, &mut service).key_does = Key::Fails;
        let attempts = steady(&mut gateway, &mut service, begin, 5 * MINUTE);
        assert!((2..=25).contains(&attempts), "{attempts} attempts");
        let failing = side(gateway_fails, &mut gateway, &mut service);
        assert_eq!(failing.renewals_failed.len(), attempts);
        assert_eq!((gateway.renewed, service.renewed), (0, 0));

        side(gateway_fails, &mut gateway, &mut service).key_does = Key::Works;
        steady(&mut gateway, &mut service, begin + 5 * MINUTE, 5 * MINUTE);
        assert_eq!((gateway.renewed, service.renewed), (1, 1));
        assert_eq!((gateway.closed, service.closed), (None, None));
        assert_eq!(service.received.len(), gateway.received.len());
    }
}

#[test]
fn a_key_that_answers_too_late_for_a_renewal_costs_that_attempt() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    gateway.key_does = Key::Hangs;
    let now = world.start + 50 * MINUTE;
    gateway.session.send(now, b"late").unwrap();
    exchange(&mut gateway, &mut service, now).unwrap();
    let peer = *gateway.asked.last().unwrap();

    gateway.wake(now + seconds(10)).unwrap();
    assert!(matches!(
        gateway.renewals_failed[..],
        [SessionError::LocalKeyLate(_)]
    ));
    let late = gateway.key.ecdh_now(&peer);
    let result = gateway
        .session
        .handle_shared_secret(now + seconds(11), late);
    assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));

    gateway.key_does = Key::Works;
    steady(&mut gateway, &mut service, now + seconds(11), MINUTE);
    assert_eq!((gateway.renewed, service.renewed), (1, 1));
}

#[test]
fn a_session_that_only_receives_renews_as_well() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let now = world.start + 50 * MINUTE;
    service.session.send(now, b"command").unwrap();
    exchange(&mut gateway, &mut service, now).unwrap();

    assert_eq!((gateway.renewed, service.renewed), (1, 1));
    assert_eq!(gateway.received, b"command");
}

/// A gateway whose clock runs slower is told that it is time.
#[test]
fn a_service_whose_keys_are_old_asks_for_the_renewal() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    let (slow, fast) = (world.start + 40 * MINUTE, world.start + 50 * MINUTE);
    gateway.wake(slow).unwrap();
    service.session.send(fast, b"command").unwrap();
    loop {
        let (up, down) = (gateway.take(), service.take());
        if up.is_empty() && down.is_empty() {
            break;
        }
        service.feed(fast, &up).unwrap();
        gateway.feed(slow, &down).unwrap();
    }
    assert_eq!((gateway.renewed, service.renewed), (1, 1));
}

#[test]
fn a_session_that_is_closed_in_the_middle_of_a_renewal_ends_properly() {
    for messages in 1..=4 {
        let world = World::new();
        let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
        let now = world.start + 50 * MINUTE;
        gateway.session.send(now, b"reading").unwrap();
        for _ in 0..messages {
            let (up, down) = (gateway.take(), service.take());
            service.feed(now, &up).unwrap();
            gateway.feed(now, &down).unwrap();
        }
        gateway.session.close(Admission::GoingAway);
        exchange(&mut gateway, &mut service, now).unwrap();
        assert_eq!(service.closed, Some(Admission::GoingAway), "{messages}");
        assert_eq!(service.received, b"reading");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Both sides write at any moment of a renewal while the wire holds back, splits and merges.
    /// What is altered ends a session, and what came until then is a beginning of what was sent.
    #[test]
    fn renewals_at_any_moment_lose_repeat_and_reorder_nothing(
        steps in prop::collection::vec((0..5_u8, 1..3000_usize), 1..60),
        altered in prop::option::of((0..60_usize, 0..3000_usize)),
    ) {
        let world = World::new();
        let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
        let mut now = world.start;
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let (mut sent_up, mut sent_down) = (Vec::new(), Vec::new());
        let mut fresh = 0_u8;
        let mut aged = 0;
        let mut failed = false;
        for (number, (kind, count)) in steps.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..count).map(|_| { fresh = fresh.wrapping_add(1); fresh }).collect();
            match kind {
                0 => {
                    gateway.session.send(now, &bytes).unwrap();
                    sent_up.extend(bytes);
                }
                1 => {
                    service.session.send(now, &bytes).unwrap();
                    sent_down.extend(bytes);
                }
                2 | 3 => {}
                _ => {
                    // Without an answer before the next leap the peer would be dead.
                    settle(&mut gateway, &mut service, &mut up, &mut down, now)?;
                    now += 50 * MINUTE;
                    aged += 1;
                    gateway.wake(now).unwrap();
                    service.wake(now).unwrap();
                }
            }
            up.extend(gateway.take());
            down.extend(service.take());
            let (wire, to) = if kind == 2 {
                (&mut up, &mut service)
            } else if kind == 3 {
                (&mut down, &mut gateway)
            } else {
                continue;
            };
            let mut part: Vec<u8> = wire.drain(..count.min(wire.len())).collect();
            if let Some((_, at)) = altered.filter(|(step, at)| *step == number && *at < part.len()) {
                part[at] ^= 1;
                failed = true;
            }
            let taken = to.feed(now, &part);
            if failed {
                let _ = settle(&mut gateway, &mut service, &mut up, &mut down, now);
                break;
            }
            taken.unwrap();
        }
        prop_assert!(sent_up.starts_with(&service.received));
        prop_assert!(sent_down.starts_with(&gateway.received));
        if failed {
            return Ok(());
        }
        settle(&mut gateway, &mut service, &mut up, &mut down, now)?;
        prop_assert_eq!(&service.received, &sent_up);
        prop_assert_eq!(&gateway.received, &sent_down);
        prop_assert_eq!(gateway.renewed, service.renewed);
        prop_assert!(gateway.renewed <= aged);
        prop_assert_eq!(gateway.asked.len(), 1 + gateway.renewed);
        prop_assert_eq!(service.asked.len(), 1 + gateway.renewed);
    }
}

/// Delivers all that is on its way, and the answers to it.
fn settle(
    gateway: &mut Side,
    service: &mut Side,
    up: &mut Vec<u8>,
    down: &mut Vec<u8>,
    now: Instant,
) -> Result<(), TestCaseError> {
    let failed = |error: SessionError| TestCaseError::fail(error.to_string());
    loop {
        up.extend(gateway.take());
        down.extend(service.take());
        if up.is_empty() && down.is_empty() {
            return Ok(());
        }
        service.feed(now, &std::mem::take(up)).map_err(failed)?;
        gateway.feed(now, &std::mem::take(down)).map_err(failed)?;
    }
}

fn renew(world: &World, gateway: &mut Side, service: &mut Side) {
    let now = world.start + 50 * MINUTE;
    gateway.session.send(now, b"late").unwrap();
    exchange(gateway, service, now).unwrap();
    assert_eq!((gateway.renewed, service.renewed), (1, 1));
}

fn side<'a>(is_gateway: bool, gateway: &'a mut Side, service: &'a mut Side) -> &'a mut Side {
    if is_gateway { gateway } else { service }
}

/// Both speak every second; returns how often a renewal was begun.
fn steady(gateway: &mut Side, service: &mut Side, from: Instant, time: Duration) -> usize {
    let asked = service.asked.len();
    for second in 0..time.as_secs() {
        let now = from + seconds(second);
        gateway.wake(now).unwrap();
        service.wake(now).unwrap();
        gateway.session.send(now, b"up").unwrap();
        service.session.send(now, b"do").unwrap();
        exchange(gateway, service, now).unwrap();
    }
    service.asked.len() - asked
}
