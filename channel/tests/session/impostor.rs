//! What an attacker on the wire, a rogue service and a rogue gateway get: nothing.

use channel::{
    Fingerprint, InitiatorConfig, KeyKind, PublicKey, SessionError, SigningKey as _,
    SoftwareSigningKey, Statement, StatementError, StaticKey as _, Suite,
};

use crate::foreign::{
    ForeignGateway, ForeignService, Pair, framed, greeting, point, preamble, state, write,
};
use crate::handshake::service_pair;
use crate::net::{SERIAL, Side, TestRng, World, contains, exchange};

// 1
#[test]
fn each_flipped_preamble_byte_fails_before_any_key_operation() {
    let world = World::new();
    let hello = world.gateway(1).take();
    for position in 0..72 {
        for flip in [0x01, 0x03, 0x80, 0xff] {
            let mut service = world.service(1);
            let mut altered = hello.clone();
            altered[position] ^= flip;

            let error = service.feed(world.start, &altered).unwrap_err();

            assert!(matches!(
                error,
                SessionError::PeerPreamble | SessionError::PeerRejected
            ));
            assert_untouched(&mut service);
        }
    }
}

// 1
#[test]
fn a_preamble_that_differs_is_refused_even_from_a_gateway_that_means_it() {
    let world = World::new();
    for position in 0..72 {
        // Suite 2 is as good as suite 1.
        let flip = if position == 4 { 4 } else { 1 };
        let mut preamble = preamble(1, world.pin().bytes());
        preamble[position] ^= flip;
        let (own, ephemeral) = (Pair::generate(80), Pair::generate(81));
        let mut gateway = ForeignGateway::with_preamble(preamble, own, ephemeral);
        let mut service = world.service(1);

        let hello = gateway.begin(&greeting(&gateway.ek(), 0));
        let error = service.feed(world.start, &hello).unwrap_err();

        assert!(matches!(error, SessionError::PeerPreamble), "{position}");
        assert_untouched(&mut service);
    }
}

// 2
#[test]
fn each_flipped_byte_of_message_1_fails_before_any_key_operation() {
    let world = World::new();
    let hello = world.gateway(1).take();
    for position in 72 + 2..hello.len() {
        let mut service = world.service(1);
        let mut altered = hello.clone();
        altered[position] ^= 1;

        let error = service.feed(world.start, &altered).unwrap_err();

        assert!(matches!(error, SessionError::PeerRejected), "{position}");
        assert_untouched(&mut service);
    }
}

// 2
#[test]
fn each_flipped_byte_of_ct_and_message_2_fails_before_the_gateway_shows_itself() {
    let world = World::new();
    let held = || Some(world.newest());
    let gateway = || world.gateway_of(world.config(Suite::ChaChaPoly, held()), 1);
    let mut service = world.service(1);
    service.feed(world.start, &gateway().take()).unwrap();
    let reply = service.take();
    assert_eq!(reply.len(), 2 + 1088 + 163);
    for position in 2..reply.len() {
        // The same seed makes the same gateway, so one reply serves all attempts.
        let mut gateway = gateway();
        gateway.take();
        let mut altered = reply.clone();
        altered[position] ^= 1;

        let error = gateway.feed(world.start, &altered).unwrap_err();

        assert!(matches!(error, SessionError::PeerRejected), "{position}");
        assert_untouched(&mut gateway);
    }
}

// 2
#[test]
fn an_attacker_who_exchanges_ek_gets_no_further() {
    let world = World::new();
    let mut gateway = world.gateway(1);
    let hello = gateway.take();
    // Message 1 is encrypted under its own public ephemeral, so anybody may write it anew.
    let ephemeral = Pair {
        public: hello[74..74 + 65].try_into().unwrap(),
        ..Pair::generate(60)
    };
    let preamble = preamble(1, world.pin().bytes());
    let mut noise = state(1, &preamble, Pair::generate(61), ephemeral, true);
    let foreign = ForeignGateway::new(
        1,
        world.pin().bytes(),
        Pair::generate(61),
        Pair::generate(60),
    );
    let message = write(&mut noise, &greeting(&foreign.ek(), 0));
    let mut service = world.service(1);
    let altered = [preamble, framed(&message)].concat();
    service.feed(world.start, &altered).unwrap();

    let error = gateway.feed(world.start, &service.take()).unwrap_err();

    assert!(matches!(error, SessionError::PeerRejected));
    assert_untouched(&mut gateway);
}

// 3
#[test]
fn a_service_key_outside_the_newest_statement_is_refused() {
    let world = World::new();
    let withdrawn = service_pair(&world);
    let other = Pair::generate(70);
    let other_key = PublicKey::parse(&other.public).unwrap();
    let newer = world.statement(SERIAL + 1, other_key, &world.identity);

    // The newest statement is the one held.
    let error = meet(&world, Some(newer.clone()), withdrawn.clone(), &[0xa0]);
    assert!(matches!(error, SessionError::PeerUnknownKey));
    // The newest statement is the one attached, and the held one lists the key.
    let error = meet(&world, Some(world.newest()), withdrawn, &attached(&newer));
    assert!(matches!(error, SessionError::PeerUnknownKey));
    // A rogue service attaches the true statement, whose keys it does not have.
    let error = meet(&world, None, other, &attached(&world.newest()));
    assert!(matches!(error, SessionError::PeerUnknownKey));
}

#[test]
fn a_service_without_any_statement_is_refused() {
    let world = World::new();
    let error = meet(&world, None, service_pair(&world), &[0xa0]);
    assert!(matches!(error, SessionError::PeerProtocol));
}

// 4
#[test]
fn a_statement_by_another_identity_is_refused() {
    let world = World::new();
    let stranger = SoftwareSigningKey::generate(&mut TestRng::new(71));
    let key = world.service_key.public();
    let forged = world.statement(SERIAL + 1, key, &stranger);

    for held in [None, Some(world.newest())] {
        let error = meet(&world, held, service_pair(&world), &attached(&forged));
        assert!(matches!(
            error,
            SessionError::PeerStatement(StatementError::OtherService)
        ));
    }
}

// 5
#[test]
fn an_older_statement_is_refused() {
    let world = World::new();
    let older = world.statement(SERIAL - 1, world.service_key.public(), &world.identity);
    let reply = attached(&older);
    let error = meet(&world, Some(world.newest()), service_pair(&world), &reply);
    assert!(matches!(
        error,
        SessionError::PeerStatement(StatementError::Older { .. })
    ));
}

// 5
#[test]
fn another_statement_of_the_same_serial_is_refused() {
    let world = World::new();
    let key = PublicKey::parse(&Pair::generate(72).public).unwrap();
    let held = world.statement(SERIAL, key, &world.identity);
    let reply = attached(&world.newest());
    let error = meet(&world, Some(held), service_pair(&world), &reply);
    assert!(matches!(
        error,
        SessionError::PeerStatement(StatementError::SameSerial { .. })
    ));
}

// 6
#[test]
fn the_mirrored_static_key_is_another_key() {
    let world = World::new();
    let true_pair = service_pair(&world);
    let mirrored = Pair::new(mirror(&true_pair.secret));
    assert_eq!(
        mirrored.public[..33],
        [&[4], &true_pair.public[1..33]].concat()
    );
    assert_ne!(mirrored.public, true_pair.public);

    let error = meet(&world, Some(world.newest()), mirrored, &[0xa0]);
    assert!(matches!(error, SessionError::PeerUnknownKey));
}

// 6
#[test]
fn the_mirrored_identity_is_another_pin() {
    let world = World::new();
    let identity = p256::SecretKey::from_slice(&*world.identity.to_bytes()).unwrap();
    let pin = Fingerprint::of(KeyKind::ServiceIdentity, &point(&mirror(&identity)));
    let config = InitiatorConfig {
        pin,
        ..world.config(Suite::ChaChaPoly, None)
    };
    assert_eq!(point(&identity), *world.identity.public().as_bytes());

    let mut gateway = world.gateway_of(config, 1);
    let reply = attached(&world.newest());
    let (_, reply) = ForeignService::answer(&gateway.take(), service_pair(&world), &reply);
    let error = gateway.feed(world.start, &reply).unwrap_err();

    assert!(matches!(
        error,
        SessionError::PeerStatement(StatementError::OtherService)
    ));
    assert_untouched(&mut gateway);
}

// 7
#[test]
fn what_is_no_point_on_the_curve_is_no_key() {
    let world = World::new();
    for public in no_points() {
        let bad = |seed| Pair {
            public,
            ..Pair::generate(seed)
        };
        // The service's static key.
        let error = meet(&world, Some(world.newest()), bad(73), &[0xa0]);
        assert!(matches!(error, SessionError::PeerRejected));
        // The gateway's ephemeral key.
        let mut foreign = ForeignGateway::new(1, world.pin().bytes(), Pair::generate(74), bad(75));
        let mut service = world.service(1);
        let hello = foreign.begin(&greeting(&foreign.ek(), 0));
        let error = service.feed(world.start, &hello).unwrap_err();
        assert!(matches!(error, SessionError::PeerRejected));
        assert_untouched(&mut service);
        // The gateway's static key.
        let mut foreign = ForeignGateway::new(1, world.pin().bytes(), bad(74), Pair::generate(75));
        let mut service = world.service(1);
        let hello = foreign.begin(&greeting(&foreign.ek(), 0));
        service.feed(world.start, &hello).unwrap();
        foreign.read(&service.take());
        let introduction = foreign.introduce(b"\xa2\x01\x01\x02\x60");
        let error = service.feed(world.start, &introduction).unwrap_err();
        assert!(matches!(error, SessionError::PeerRejected));
        assert!(service.peers.is_empty());
    }
}

// 8
#[test]
fn an_ek_with_a_coefficient_of_q_or_more_is_refused() {
    let world = World::new();
    let ek = foreign_gateway(&world).ek();
    // The first coefficient becomes this (FIPS 203, 7.2): 12 bits, little-endian.
    let with = |coefficient: u16| {
        let [low, high] = coefficient.to_le_bytes();
        let mut ek = ek;
        ek[0] = low;
        ek[1] = (ek[1] & 0xf0) | high;
        greeting(&ek, 0)
    };
    for coefficient in [3329, 4095] {
        let result = greet(&world, &with(coefficient));
        assert!(matches!(result, Err(SessionError::PeerProtocol)));
    }
    // And q - 1 is accepted, so it was this that was refused.
    assert!(greet(&world, &with(3328)).is_ok());
}

#[test]
fn a_malformed_message_1_asks_no_key() {
    let world = World::new();
    let good = greeting(&foreign_gateway(&world).ek(), 0);
    let (serial, other_key) = (good.len() - 1, good.len() - 2);
    let payloads = [
        [&good[..], &[0]].concat(),
        // A serial in two bytes that fits one.
        [&good[..serial], &[0x18, 0]].concat(),
        [&good[..other_key], &[3, 0]].concat(),
        [&[0xa3], &good[1..], &[3, 0]].concat(),
        [&[0xbf], &good[1..], &[0xff]].concat(),
    ];
    assert!(greet(&world, &good).is_ok());
    for payload in payloads {
        let result = greet(&world, &payload);
        assert!(matches!(result, Err(SessionError::PeerProtocol)));
    }
}

#[test]
fn a_malformed_message_3_introduces_nobody() {
    let world = World::new();
    let long = [&b"\xa2\x01\x01\x02\x78\x41"[..], &[b'v'; 65]].concat();
    let payloads: [&[u8]; 6] = [
        b"\xa2\x01\x00\x02\x60",
        b"\xa2\x01\x03\x02\x60",
        b"\xa2\x01\x01\x02\x61\xff",
        b"\xa2\x01\x01\x02\x60\x00",
        b"\xa2\x02\x60\x01\x01",
        &long[..],
    ];
    for payload in payloads {
        let mut service = world.service(1);
        let mut gateway = foreign_gateway(&world);
        let hello = gateway.begin(&greeting(&gateway.ek(), 0));
        service.feed(world.start, &hello).unwrap();
        gateway.read(&service.take());

        let introduction = gateway.introduce(payload);
        let error = service.feed(world.start, &introduction).unwrap_err();

        assert!(matches!(
            error,
            SessionError::PeerProtocol | SessionError::PeerLength { .. }
        ));
        assert!(service.peers.is_empty());
        assert!(service.take().is_empty());
    }
}

#[test]
fn a_malformed_message_2_asks_no_key() {
    let world = World::new();
    let statement = attached(&world.newest());
    let payloads = [
        [&statement[..], &[0]].concat(),
        vec![0xa0, 0xa0],
        vec![0xbf, 0xff],
        vec![0xa1, 0x02, 0x40],
        vec![0xa1, 0x01, 0x60],
        vec![0xf6],
    ];
    for payload in payloads {
        let error = meet(&world, Some(world.newest()), service_pair(&world), &payload);
        assert!(matches!(error, SessionError::PeerProtocol));
    }
}

#[test]
fn who_speaks_out_of_turn_ends_the_handshake() {
    let world = World::new();
    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    gateway.key_does = crate::net::Key::Hangs;
    exchange(&mut gateway, &mut service, world.start).unwrap();
    let error = gateway.feed(world.start, &[0]).unwrap_err();
    assert!(matches!(error, SessionError::PeerProtocol));
    assert!(gateway.take().is_empty());

    let (mut gateway, mut service) = (world.gateway(1), world.service(1));
    service.key_does = crate::net::Key::Hangs;
    service.feed(world.start, &gateway.take()).unwrap();
    let error = service.feed(world.start, &[0]).unwrap_err();
    assert!(matches!(error, SessionError::PeerProtocol));
    assert!(service.take().is_empty());
}

// 9
#[test]
fn a_prober_learns_no_gateway_key() {
    let world = World::new();
    // One that stops after message 2 and has the service's statement, but not its key.
    let mut probed = world.gateway(1);
    let reply = attached(&world.newest());
    let (_, reply) = ForeignService::answer(&probed.take(), Pair::generate(76), &reply);
    probed.feed(world.start, &reply).unwrap_err();
    assert_untouched(&mut probed);
    // One that listens to a whole session.
    let (mut gateway, mut service) = world.open(Suite::ChaChaPoly);
    exchange(&mut gateway, &mut service, world.start).unwrap();

    let key = *world.gateway_key.public().as_bytes();
    for sent in [probed.sent, gateway.sent, service.sent] {
        for part in [&key[..], &key[1..33], &key[33..]] {
            assert!(!contains(&sent, part));
        }
    }
}

// 14
#[test]
fn a_recorded_gateway_cannot_be_played_back_to_a_service() {
    let world = World::new();
    let (mut gateway, _) = world.open(Suite::ChaChaPoly);
    gateway.record(world.start, b"reading");
    let recorded = gateway.sent;
    let hello_bytes = world.gateway(1).take().len();
    let mut service = world.service(2);

    service.feed(world.start, &recorded[..hello_bytes]).unwrap();
    let error = service
        .feed(world.start, &recorded[hello_bytes..])
        .unwrap_err();

    assert!(matches!(error, SessionError::PeerRejected));
    assert!(service.peers.is_empty());
    assert!(service.received.is_empty());
}

// 14
#[test]
fn a_recorded_service_cannot_be_played_back_to_a_gateway() {
    let world = World::new();
    let (_, service) = world.open(Suite::ChaChaPoly);
    let mut gateway = world.gateway(2);
    gateway.take();

    let error = gateway.feed(world.start, &service.sent).unwrap_err();

    assert!(matches!(error, SessionError::PeerRejected));
    assert_untouched(&mut gateway);
}

#[test]
fn a_gateway_that_sends_before_admission_is_told_off() {
    let world = World::new();
    let mut service = world.service(1);
    service.admits = None;
    let mut gateway = foreign_gateway(&world);
    let hello = gateway.begin(&greeting(&gateway.ek(), 0));
    service.feed(world.start, &hello).unwrap();
    gateway.read(&service.take());
    let introduction = gateway.introduce(b"\xa2\x01\x01\x02\x60");
    service.feed(world.start, &introduction).unwrap();
    let mut transport = gateway.finish();

    let error = service
        .feed(world.start, &transport.seal(b"\0early"))
        .unwrap_err();

    assert!(matches!(error, SessionError::PeerProtocol));
    assert_eq!(transport.open(&service.take()), [1, 0xa1, 1, 8]);
    assert!(service.received.is_empty());
}

/// Lets a gateway meet a service with this key and this payload 2, which it must refuse.
fn meet(world: &World, held: Option<Statement>, key: Pair, payload: &[u8]) -> SessionError {
    let mut gateway = world.gateway_of(world.config(Suite::ChaChaPoly, held), 1);
    let (_, reply) = ForeignService::answer(&gateway.take(), key, payload);
    let error = gateway.feed(world.start, &reply).unwrap_err();
    assert_untouched(&mut gateway);
    error
}

/// Sends a service a message 1 with this payload; an error must come before its key is asked.
fn greet(world: &World, payload: &[u8]) -> Result<(), SessionError> {
    let mut service = world.service(1);
    let mut gateway = foreign_gateway(world);
    let result = service.feed(world.start, &gateway.begin(payload));
    assert_eq!(service.asked.len(), usize::from(result.is_ok()));
    if result.is_err() {
        assert_untouched(&mut service);
    }
    result
}

fn foreign_gateway(world: &World) -> ForeignGateway {
    ForeignGateway::new(
        1,
        world.pin().bytes(),
        Pair::generate(80),
        Pair::generate(81),
    )
}

/// Its key was not asked, nothing was stored, and nothing is sent.
fn assert_untouched(side: &mut Side) {
    assert!(side.asked.is_empty());
    assert!(side.statements.is_empty());
    assert!(side.take().is_empty());
    assert_eq!(side.session.poll_timeout(), None);
}

/// `{1: statement}`.
fn attached(statement: &Statement) -> Vec<u8> {
    let length = u16::try_from(statement.bytes().len())
        .unwrap()
        .to_be_bytes();
    [&[0xa1, 0x01, 0x59], &length[..], statement.bytes()].concat()
}

/// The key with the public point (X, -Y).
fn mirror(secret: &p256::SecretKey) -> p256::SecretKey {
    p256::SecretKey::from(-secret.to_nonzero_scalar())
}

/// Off the curve, infinity (SEC 1: one zero byte), and a compressed point, as 65 bytes.
fn no_points() -> [[u8; 65]; 3] {
    let point = Pair::generate(82).public;
    let mut off_curve = point;
    off_curve[64] ^= 1;
    let mut compressed = [0; 65];
    compressed[..33].copy_from_slice(&point[..33]);
    compressed[0] = 2 + (point[64] & 1);
    [off_curve, [0; 65], compressed]
}
