//! What honest peers may rely on, and what a failing key does.

use channel::{
    Admission, ConfigMistake, Fingerprint, InitiatorConfig, KeyKind, PublicKey, Purpose,
    ResponderConfig, Session, SessionError, StaticKey as _, Suite,
};
use proptest::prelude::*;

use crate::foreign::{ForeignGateway, ForeignService, Pair, greeting};
use crate::net::{
    Key, SERIAL, Side, TestRng, World, contains, exchange, exchange_in_pieces, seconds,
};

const SUITES: [Suite; 2] = [Suite::ChaChaPoly, Suite::AesGcm];

// 11, 13
#[test]
fn a_handshake_ends_open_after_one_key_operation_a_side() {
    for suite in SUITES {
        let world = World::new();
        let (gateway, service) = world.open(suite);

        let (gateway_hash, service_key) = gateway.opened.unwrap();
        let (service_hash, gateway_key) = service.opened.unwrap();
        assert_eq!(gateway_hash, service_hash);
        assert_eq!(service_key, world.service_key.public());
        assert_eq!(gateway_key, world.gateway_key.public());
        assert_eq!(gateway.asked.len(), 1);
        assert_eq!(service.asked.len(), 1);
        let peer = (gateway_key, Purpose::Deliver, "1.2.3".to_owned());
        assert_eq!(service.peers, [peer]);
        assert_eq!(gateway.statements, [world.newest()]);
    }
}

#[test]
fn the_handshake_has_the_sizes_of_the_protocol() {
    let world = World::new();
    let mut gateway = world.gateway_of(world.config(Suite::ChaChaPoly, Some(world.newest())), 1);
    let mut service = world.service(1);

    let hello = gateway.take();
    assert_eq!(hello.len(), 72 + 2 + 65 + 1 + 1 + 3 + 1184 + 1 + 1 + 16);
    service.feed(world.start, &hello).unwrap();
    let reply = service.take();
    assert_eq!(reply.len(), 2 + 1088 + 163);
    gateway.feed(world.start, &reply).unwrap();
    let introduction = gateway.take();
    assert_eq!(introduction.len(), 2 + 97 + 1 + 2 + 2 + 5);
    service.feed(world.start, &introduction).unwrap();
    assert_eq!(service.take().len(), 2 + 1 + 3 + 16);
}

#[test]
fn a_gateway_understands_a_foreign_service() {
    for (suite, number) in SUITES.into_iter().zip(1..) {
        let world = World::new();
        let mut gateway = world.gateway_of(world.config(suite, Some(world.newest())), 1);
        let static_pair = service_pair(&world);

        let hello = gateway.take();
        assert_eq!(hello[..8], [b'G', b'W', b'D', b'1', number, 1, 1, 0]);
        let (mut service, reply) = ForeignService::answer(&hello, static_pair, &[0xa0]);
        gateway.feed(world.start, &reply).unwrap();
        let (payload, gateway_key) = service.read(&gateway.take());
        assert_eq!(payload, b"\xa2\x01\x01\x02\x651.2.3");
        assert_eq!(gateway_key, world.gateway_key.public().as_bytes());

        let mut transport = service.finish();
        let records = [
            transport.seal(&[6, 0xa1, 1, 0]),
            transport.seal(b"\0hello"),
            transport.seal(&[2]),
        ];
        gateway.feed(world.start, &records.concat()).unwrap();
        assert_eq!(gateway.opened.unwrap().0[..], transport.hash);
        assert_eq!(gateway.received, b"hello");
        assert_eq!(transport.open(&gateway.take()), [3]);
        assert_eq!(transport.open(&gateway.record(world.start, b"hi")), b"\0hi");
        gateway.session.close(Admission::Ok);
        assert_eq!(transport.open(&gateway.take()), [1, 0xa1, 1, 0]);
    }
}

#[test]
fn a_service_understands_a_foreign_gateway() {
    for number in [1, 2] {
        let world = World::new();
        let mut service = world.service(1);
        let static_pair = Pair::generate(50);
        let mut gateway =
            ForeignGateway::new(number, world.pin().bytes(), static_pair, Pair::generate(51));

        let hello = gateway.begin(&greeting(&gateway.ek(), 0));
        service.feed(world.start, &hello).unwrap();
        let (payload, service_key) = gateway.read(&service.take());
        let statement = world.newest();
        assert_eq!(payload[..3], [0xa1, 1, 0x59]);
        assert_eq!(payload[5..], *statement.bytes());
        assert_eq!(service_key, world.service_key.public().as_bytes());

        let introduction = gateway.introduce(b"\xa2\x01\x02\x02\x60");
        service.feed(world.start, &introduction).unwrap();
        let key = PublicKey::parse(&Pair::generate(50).public).unwrap();
        assert_eq!(service.peers, [(key, Purpose::Enrol, String::new())]);
        let mut transport = gateway.finish();
        assert_eq!(transport.open(&service.take()), [6, 0xa1, 1, 0]);
        assert_eq!(service.opened.unwrap().0[..], transport.hash);
    }
}

#[test]
fn a_statement_travels_only_to_gateways_with_an_older_one() {
    let world = World::new();
    let key = world.service_key.public();
    for (held, travels) in [(SERIAL - 1, true), (SERIAL, false), (SERIAL + 1, false)] {
        let held = world.statement(held, key, &world.identity);
        let mut gateway = world.gateway_of(world.config(Suite::ChaChaPoly, Some(held)), 1);
        let mut service = world.service(1);

        exchange(&mut gateway, &mut service, world.start).unwrap();

        assert!(gateway.opened.is_some());
        assert_eq!(gateway.statements.len(), usize::from(travels));
    }
}

#[test]
fn a_new_statement_is_stored_before_the_key_is_asked() {
    let world = World::new();
    let mut gateway = world.gateway(1);
    let mut service = world.service(1);
    gateway.stores = false;
    exchange(&mut gateway, &mut service, world.start).unwrap();
    assert_eq!(gateway.statements.len(), 1);
    assert!(gateway.asked.is_empty());

    gateway
        .session
        .handle_statement_stored(world.start)
        .unwrap();
    gateway.react(world.start).unwrap();
    exchange(&mut gateway, &mut service, world.start).unwrap();

    assert!(gateway.opened.is_some());
}

#[test]
fn a_refused_gateway_learns_the_code_and_nothing_else() {
    let world = World::new();
    for code in Admission::ALL
        .into_iter()
        .filter(|code| *code != Admission::Ok)
    {
        let mut gateway = world.gateway(1);
        let mut service = world.service(1);
        service.admits = Some(code);

        exchange(&mut gateway, &mut service, world.start).unwrap();

        assert_eq!(gateway.closed, Some(code));
        assert_eq!(service.closed, Some(code));
        assert!(gateway.opened.is_none() && service.opened.is_none());
        gateway.session.handle_end(world.start).unwrap();
        service.session.handle_end(world.start).unwrap();
    }
}

#[test]
fn nothing_is_sent_before_admission() {
    let world = World::new();
    let mut gateway = world.gateway(1);
    let mut service = world.service(1);
    service.admits = None;
    exchange(&mut gateway, &mut service, world.start).unwrap();

    for side in [&mut gateway, &mut service] {
        let result = side.session.send(world.start, b"early");
        assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));
        assert!(side.take().is_empty());
    }
}

// 10, 12
#[test]
fn a_failed_key_ends_the_handshake_without_a_word() {
    let world = World::new();
    for gateway_fails in [true, false] {
        let (mut gateway, mut service) = (world.gateway(1), world.service(1));
        let failing = if gateway_fails {
            &mut gateway
        } else {
            &mut service
        };
        failing.key_does = Key::Fails;

        let error = exchange(&mut gateway, &mut service, world.start).unwrap_err();

        assert!(matches!(error, SessionError::LocalKey(_)));
        let failed = if gateway_fails {
            &mut gateway
        } else {
            &mut service
        };
        assert_silent_for_good(failed, &world);
    }
}

// 10, 12
#[test]
fn a_late_key_ends_the_handshake_and_its_result_is_dropped() {
    let world = World::new();
    let late = world.start + seconds(10);
    for gateway_hangs in [true, false] {
        for woken in [true, false] {
            let (mut gateway, mut service) = (world.gateway(1), world.service(1));
            let hanging = if gateway_hangs {
                &mut gateway
            } else {
                &mut service
            };
            hanging.key_does = Key::Hangs;
            exchange(&mut gateway, &mut service, world.start).unwrap();

            let hung = if gateway_hangs {
                &mut gateway
            } else {
                &mut service
            };
            assert_eq!(hung.session.poll_timeout(), Some(late));
            let secret = hung.key.ecdh_now(&hung.asked[0]);
            let error = if woken {
                hung.wake(late).unwrap_err()
            } else {
                hung.session.handle_shared_secret(late, secret).unwrap_err()
            };

            assert!(matches!(error, SessionError::LocalKeyLate(_)));
            assert_silent_for_good(hung, &world);
        }
    }
}

// 10
#[test]
fn a_cancelled_handshake_sends_nothing_of_message_3() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    gateway.key_does = Key::Hangs;
    exchange(&mut gateway, &mut service, world.start).unwrap();

    gateway.session.close(Admission::GoingAway);

    gateway.react(world.start).unwrap();
    assert_eq!(gateway.closed, Some(Admission::GoingAway));
    assert_silent_for_good(&mut gateway, &world);
}

// 10
#[test]
fn the_next_attempt_after_a_failed_key_is_fresh_and_works() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    gateway.key_does = Key::Fails;
    exchange(&mut gateway, &mut service, world.start).unwrap_err();
    let (mut again, mut service) = (world.gateway(2), world.service(2));

    exchange(&mut again, &mut service, world.start).unwrap();

    assert!(again.opened.is_some());
    let message_1 = 72 + 2..;
    assert_ne!(
        gateway.sent[message_1.clone()][..65],
        again.sent[message_1][..65]
    );
    assert_ne!(gateway.asked, again.asked);
}

#[test]
fn answers_that_nobody_asked_for_do_no_harm() {
    let world = World::new();
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    for side in [&mut gateway, &mut service] {
        let secret = side.key.ecdh_now(&side.asked[0]);
        let session = &mut side.session;
        let results = [
            session.handle_shared_secret(world.start, secret),
            session.handle_statement_stored(world.start),
            session.handle_admission(world.start, Admission::Ok),
        ];
        for result in results {
            assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));
        }
    }

    let record = gateway.record(world.start, b"still here");
    service.feed(world.start, &record).unwrap();
    assert_eq!(service.received, b"still here");
}

#[test]
fn a_contradictory_configuration_is_refused() {
    let world = World::new();
    let mistake = |config: InitiatorConfig| {
        let rng = Box::new(TestRng::new(5));
        match Session::initiate(config, rng, world.start) {
            Err(SessionError::LocalConfig(mistake)) => mistake,
            Err(_) | Ok(_) => panic!("configuration was accepted"),
        }
    };
    let config = || world.config(Suite::ChaChaPoly, None);
    let stranger = channel::SoftwareSigningKey::generate(&mut TestRng::new(6));
    let held = world.statement(1, world.service_key.public(), &stranger);

    let online = Fingerprint::new(KeyKind::Online, *world.pin().bytes());
    let wrong_pin = InitiatorConfig {
        pin: online,
        ..config()
    };
    assert_eq!(mistake(wrong_pin), ConfigMistake::PinKind);
    let wrong_held = InitiatorConfig {
        held: Some(held),
        ..config()
    };
    assert_eq!(mistake(wrong_held), ConfigMistake::HeldOfAnother);
    let version = "v".repeat(65);
    let long_version = InitiatorConfig {
        version,
        ..config()
    };
    assert_eq!(mistake(long_version), ConfigMistake::Version { bytes: 65 });

    let config = ResponderConfig {
        statement: world.newest(),
        static_key: world.gateway_key.public(),
    };
    let result = Session::respond(config, Box::new(TestRng::new(5)), world.start);
    assert!(matches!(
        result,
        Err(SessionError::LocalConfig(ConfigMistake::KeyNotListed))
    ));
}

#[test]
fn a_session_may_be_driven_from_any_thread() {
    fn is_send<T: Send>() {}
    is_send::<Session>();
    is_send::<SessionError>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_handshake_does_not_mind_how_the_stream_is_cut(piece in 1_usize..1500) {
        let world = World::new();
        let (mut gateway, mut service) = (world.gateway(1), world.service(1));
        exchange_in_pieces(&mut gateway, &mut service, world.start, piece).unwrap();
        prop_assert!(gateway.opened.is_some() && service.opened.is_some());
    }
}

/// The service's static key, for a foreign peer.
pub(crate) fn service_pair(world: &World) -> Pair {
    let secret = world.service_key.to_bytes();
    Pair::new(p256::SecretKey::from_slice(&*secret).unwrap())
}

/// A session that is over sends nothing, asks nothing and takes no answer, right or late.
fn assert_silent_for_good(side: &mut Side, world: &World) {
    let gateway_key = *world.gateway_key.public().as_bytes();
    assert!(side.take().is_empty());
    let secret = side.key.ecdh_now(&side.asked[0]);
    let result = side.session.handle_shared_secret(world.start, secret);
    assert!(matches!(result, Err(SessionError::LocalOutOfTurn)));
    assert!(side.take().is_empty());
    assert_eq!(side.session.poll_timeout(), None);
    assert_eq!(side.asked.len(), 1);
    assert!(!contains(&side.sent, &gateway_key));
}
