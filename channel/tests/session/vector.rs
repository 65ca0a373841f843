//! Sessions that foreign software made: tests/vectors/session.py.

use channel::{Admission, Session, SoftwareSigningKey, SoftwareStaticKey, StaticKey as _, Suite};

use crate::net::{Side, TestRng, World};

#[test]
fn a_gateway_speaks_a_foreign_session_to_the_byte() {
    for (suite, number) in [(Suite::ChaChaPoly, 1), (Suite::AesGcm, 2)] {
        let vector = |name: &str| vector(name, number);
        let key = |name| SoftwareStaticKey::from_bytes(&vector(name)).unwrap();
        let mut world = World::new();
        world.identity = SoftwareSigningKey::from_bytes(&vector("identity")).unwrap();
        world.service_key = key("service_static");
        world.gateway_key = key("gateway_static");
        let held = world.statement(5, world.service_key.public(), &world.identity);
        // The curve's library reads a scalar from the generator as little-endian words.
        let mut random = vector("gateway_ephemeral");
        random.reverse();
        random.extend(vector("kem_seed"));
        let rng = Box::new(TestRng::listed(random));
        let config = world.config(suite, Some(held));
        let session = Session::initiate(config, rng, world.start).unwrap();
        let mut gateway = Side::new(session, &world.gateway_key);

        assert_eq!(gateway.take(), vector("hello"));
        gateway.feed(world.start, &vector("reply")).unwrap();
        assert_eq!(gateway.take(), vector("introduction"));
        gateway.feed(world.start, &vector("admission")).unwrap();
        let (hash, service_key) = gateway.opened.unwrap();
        assert_eq!(hash[..], vector("hash"));
        assert_eq!(service_key, world.service_key.public());
        gateway.feed(world.start, &vector("down")).unwrap();
        assert_eq!(gateway.received, b"downwards");
        assert_eq!(gateway.record(world.start, b"upwards"), vector("up"));
        gateway.session.close(Admission::GoingAway);
        assert_eq!(gateway.take(), vector("close"));
    }
}

fn vector(name: &str, number: u8) -> Vec<u8> {
    let start = format!("{name}_{number} = ");
    let value = VECTORS.lines().find_map(|line| line.strip_prefix(&start));
    hex::decode(value.unwrap()).unwrap()
}

const VECTORS: &str = include_str!("../vectors/session.txt");
