//! Both sides of a session against a peer that says anything, with and without keys.

mod seeds;
mod watched;

use std::sync::LazyLock;

use channel::{Admission, Purpose, ResponderConfig, Session, Statement, StaticKey as _, Suite};

use crate::foreign::{ForeignGateway, ForeignService, Pair, Transport, greeting};
use crate::input::Input;
use crate::net::{Side, TestRng, World};
use crate::sealed::signed;
pub(crate) use seeds::{gateway_seeds, records_seeds, service_seeds};
use watched::Watched;

/// A service, and who comes in its gateways' stead. The first byte chooses suite and how far the
/// peer goes by the rules; the second how the stream is cut.
pub(crate) fn service(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let (how, number) = choice(&mut input);
    let mut service = Watched::new(service_side(), &mut input);
    let mut peer = ForeignGateway::new(
        number,
        WORLD.pin().bytes(),
        Pair::generate(80),
        Pair::generate(81),
    );
    match how {
        // Anything.
        0 => {
            let anything = input.rest();
            service.feed(anything);
            let asked = !service.side.asked.is_empty();
            assert_eq!(
                asked,
                HELLOS.iter().any(|hello| anything.starts_with(hello))
            );
            asked
        }
        // Message 1 with any payload.
        1 => {
            let payload = input.rest();
            service.feed(&peer.begin(payload));
            let asked = !service.side.asked.is_empty();
            assert_eq!(asked, is_greeting(payload));
            asked
        }
        // Preamble and message 1, altered on the way.
        2 => {
            let mut hello = peer.begin(&greeting(&peer.ek(), 0));
            let altered = input.alter(&mut hello);
            service.feed(&hello);
            // Bytes behind message 1 are of no use to it, and come too early.
            let begins = hello.starts_with(&HELLOS[usize::from(number) - 1]);
            assert_eq!(!service.side.asked.is_empty(), begins);
            !altered
        }
        _ => introduction(how, input, service, peer),
    }
}

/// What may come instead of message 3, and after it.
fn introduction(
    how: u8,
    mut input: Input<'_>,
    mut service: Watched,
    mut peer: ForeignGateway,
) -> bool {
    service.feed(&peer.begin(&greeting(&peer.ek(), 0)));
    peer.read(&service.side.take());
    match how {
        // Anything.
        3 => {
            service.feed(input.rest());
            assert!(service.side.peers.is_empty());
            false
        }
        // Message 3 with any payload.
        4 => {
            let payload = input.rest();
            let frame = peer.introduce(payload);
            service.feed(&frame);
            let Some((_, purpose, version)) = service.side.peers.first() else {
                return false;
            };
            let purpose = match purpose {
                Purpose::Deliver => 1,
                Purpose::Enrol => 2,
            };
            let head = [&[0xa2, 1, purpose, 2], &text_head(version.len())[..]].concat();
            assert_eq!([&head[..], version.as_bytes()].concat(), payload);
            true
        }
        // Message 3, altered on the way.
        5 => {
            let frame = peer.introduce(INTRODUCTION);
            let mut altered = frame.clone();
            input.alter(&mut altered);
            service.feed(&altered);
            let introduced = !service.side.peers.is_empty();
            assert_eq!(introduced, altered.starts_with(&frame));
            introduced
        }
        // Records before admission.
        _ => {
            service.side.admits = None;
            service.feed(&peer.introduce(INTRODUCTION));
            assert_eq!(service.side.peers.len(), 1);
            let mut transport = peer.finish();
            service.feed(&transport.seal(input.rest()));
            assert!(service.side.opened.is_none());
            service.side.closed.is_some()
        }
    }
}

/// A gateway, and who answers in its service's stead.
pub(crate) fn gateway(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let (how, number) = choice(&mut input);
    let held = how < 4;
    let suite = [Suite::ChaChaPoly, Suite::AesGcm][usize::from(number) - 1];
    let config = WORLD.config(suite, held.then(|| STATEMENT.clone()));
    let mut gateway = Watched::new(WORLD.gateway_of(config, 1), &mut input);
    let hello = gateway.side.take();
    let service_key =
        || Pair::new(p256::SecretKey::from_slice(&*WORLD.service_key.to_bytes()).unwrap());
    let answer = |payload: &[u8]| ForeignService::answer(&hello, service_key(), payload);
    match how {
        // Anything.
        0 => {
            gateway.feed(input.rest());
            assert!(gateway.side.asked.is_empty() && gateway.side.statements.is_empty());
            false
        }
        // Message 2 with any payload, by the true service.
        1 => {
            let payload = input.rest();
            gateway.feed(&answer(payload).1);
            let asked = !gateway.side.asked.is_empty();
            // Only this: the statement that could be in it would have to be signed.
            let is_reply = payload == [0xa0] || payload == attached(STATEMENT.bytes());
            assert_eq!(asked, is_reply);
            asked
        }
        // Message 2, altered on the way.
        2 => {
            let reply = answer(&[0xa0]).1;
            let mut altered = reply.clone();
            input.alter(&mut altered);
            gateway.feed(&altered);
            let asked = !gateway.side.asked.is_empty();
            assert_eq!(asked, altered.starts_with(&reply));
            asked
        }
        // The first record, with any content.
        3 => {
            let (mut peer, reply) = answer(&[0xa0]);
            gateway.feed(&reply);
            peer.read(&gateway.side.take());
            let content = input.rest();
            gateway.feed(&peer.finish().seal(content));
            let opened = gateway.side.opened.is_some();
            assert_eq!(opened, content == [6, 0xa1, 1, 0]);
            opened || gateway.side.closed.is_some()
        }
        // A statement with any content, signed by the true identity.
        _ => {
            let statement = signed(input.rest(), b"gatewayd/1 statement", &WORLD.identity);
            gateway.feed(&answer(&attached(&statement)).1);
            let is_stored = gateway.side.statements.len() == 1;
            assert!(is_stored || gateway.side.asked.is_empty());
            is_stored
        }
    }
}

/// An open session, either side of it, whose peer has the keys and seals anything; or somebody has
/// not, and alters what is under way.
pub(crate) fn records(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let (how, number) = choice(&mut input);
    let (mut side, mut peer) = if how % 2 == 0 {
        let mut service = Watched::new(service_side(), &mut input);
        let (key, ephemeral) = (Pair::generate(80), Pair::generate(81));
        let mut peer = ForeignGateway::new(number, WORLD.pin().bytes(), key, ephemeral);
        service.feed(&peer.begin(&greeting(&peer.ek(), 0)));
        peer.read(&service.side.take());
        service.feed(&peer.introduce(INTRODUCTION));
        let mut transport = peer.finish();
        assert_eq!(transport.open(&service.side.take()), [6, 0xa1, 1, 0]);
        (service, transport)
    } else {
        let suite = [Suite::ChaChaPoly, Suite::AesGcm][usize::from(number) - 1];
        let config = WORLD.config(suite, Some(STATEMENT.clone()));
        let mut gateway = Watched::new(WORLD.gateway_of(config, 1), &mut input);
        let hello = gateway.side.take();
        let key = Pair::new(p256::SecretKey::from_slice(&*WORLD.service_key.to_bytes()).unwrap());
        let (mut peer, reply) = ForeignService::answer(&hello, key, &[0xa0]);
        gateway.feed(&reply);
        peer.read(&gateway.side.take());
        let mut transport = peer.finish();
        gateway.feed(&transport.seal(&[6, 0xa1, 1, 0]));
        (gateway, transport)
    };
    assert!(side.side.opened.is_some());
    match how / 2 {
        // Anything.
        0 => {
            side.feed(input.rest());
            assert!(side.side.received.is_empty());
            false
        }
        // Honest records, altered on the way: what arrives is a beginning of what was sent.
        1 => {
            let plaintexts = [
                &b"\0one"[..],
                b"\0two",
                b"\x02",
                b"\0three",
                b"\x01\xa1\x01\0",
            ];
            let honest = plaintexts.map(|plaintext| peer.seal(plaintext)).concat();
            let mut altered = honest.clone();
            input.alter(&mut altered);
            side.feed(&altered);
            assert!(b"onetwothree".starts_with(&side.side.received));
            let whole = altered.starts_with(&honest);
            assert_eq!(side.side.closed.is_some(), whole);
            whole
        }
        _ => sealed_records(&mut input, &mut side, &mut peer),
    }
}

/// Records with any content: what each does, said once more.
fn sealed_records(input: &mut Input<'_>, side: &mut Watched, peer: &mut Transport) -> bool {
    let mut expected = Vec::new();
    let mut accepted = false;
    while !input.is_empty() {
        let plaintext = input.chunk();
        side.feed(&peer.seal(plaintext));
        let answer = side.side.take();
        match plaintext {
            [0, body @ ..] if !body.is_empty() => expected.extend(body),
            [2] => assert_eq!(peer.open(&answer), [3]),
            [3] => assert!(answer.is_empty()),
            [1, 0xa1, 1, code] if *code < 10 => {
                let reason = Admission::ALL[usize::from(*code)];
                assert_eq!(side.side.closed, Some(reason));
                break;
            }
            // Renewal: what it does to streams, whatever it is, is nothing.
            [4 | 5 | 7, ..] => break,
            _ => {
                assert!(side.failed);
                // One too short to be a record is refused at its length, in silence.
                if !plaintext.is_empty() {
                    assert_eq!(peer.open(&answer), [1, 0xa1, 1, 8]);
                }
                break;
            }
        }
        accepted = true;
    }
    assert_eq!(side.side.received, expected);
    accepted
}

/// How far the peer goes by the rules, 0 to 6, and the suite's number. What is longer than any
/// handshake frame is cut.
fn choice(input: &mut Input<'_>) -> (u8, u8) {
    let byte = input.byte();
    input.0 = &input.0[..input.0.len().min(INPUT_BYTES_MAX)];
    ((byte & 0x7f) % 7, 1 + (byte >> 7))
}

fn service_side() -> Side {
    let config = ResponderConfig {
        statement: STATEMENT.clone(),
        static_key: WORLD.service_key.public(),
    };
    let session = Session::respond(config, Box::new(TestRng::new(4)), WORLD.start).unwrap();
    Side::new(session, &WORLD.service_key)
}

/// `{1: ek, 2: serial}` and nothing else, the serial in its shortest form, and an `ek` whose
/// coefficients are below q (FIPS 203, 7.2).
fn is_greeting(payload: &[u8]) -> bool {
    let Some(rest) = payload.strip_prefix(&[0xa2, 0x01, 0x59, 0x04, 0xa0]) else {
        return false;
    };
    let Some((ek, rest)) = rest.split_at_checked(1184) else {
        return false;
    };
    let Some(serial) = rest.strip_prefix(&[0x02]) else {
        return false;
    };
    let below_q = ek[..1152].chunks(3).all(|pair| {
        let [a, b, c] = [pair[0], pair[1], pair[2]].map(u16::from);
        (a | (b & 15) << 8) < 3329 && (b >> 4 | c << 4) < 3329
    });
    let shortest = match serial {
        [0..=23] => true,
        [0x18, n] => 24 <= *n,
        [0x19, high, _] => *high != 0,
        [0x1a, a, b, _, _] => (*a, *b) != (0, 0),
        [0x1b, a, b, c, d, _, _, _, _] => [a, b, c, d] != [&0; 4],
        _ => false,
    };
    below_q && shortest
}

/// `{1: statement}`.
fn attached(statement: &[u8]) -> Vec<u8> {
    let length = match statement.len() {
        length @ 0..24 => vec![0x40 | u8::try_from(length).unwrap()],
        length @ 24..256 => vec![0x58, u8::try_from(length).unwrap()],
        length => {
            let length = u16::try_from(length).unwrap_or(u16::MAX);
            [&[0x59], &length.to_be_bytes()[..]].concat()
        }
    };
    [&[0xa1, 0x01], &length[..], statement].concat()
}

fn text_head(length: usize) -> Vec<u8> {
    let length = u8::try_from(length).unwrap();
    if length < 24 {
        vec![0x60 | length]
    } else {
        vec![0x78, length]
    }
}

/// A statement has 12 KiB at most.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// `{1: 1, 2: "1.2.3"}`.
const INTRODUCTION: &[u8] = b"\xa2\x01\x01\x02\x651.2.3";

/// One for all inputs: its keys take long to make.
static WORLD: LazyLock<World> = LazyLock::new(World::new);
static STATEMENT: LazyLock<Statement> = LazyLock::new(|| WORLD.newest());

/// Preamble and message 1 for each suite.
static HELLOS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    [1, 2].map(|number| {
        let (key, ephemeral) = (Pair::generate(80), Pair::generate(81));
        let mut peer = ForeignGateway::new(number, WORLD.pin().bytes(), key, ephemeral);
        peer.begin(&greeting(&peer.ek(), 0))
    })
});
