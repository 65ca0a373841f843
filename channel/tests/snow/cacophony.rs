//! The vectors of another implementation, on the curve that it has, with snow driven as
//! `channel/src/noise.rs` drives it: no private key in snow, the static key's agreement made
//! outside and for one point, the ephemeral key drawn before, the psk set between two messages.

use std::sync::{Arc, OnceLock};

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

#[test]
fn snow_driven_our_way_speaks_the_vectors_of_cacophony() {
    let vectors: Vec<_> = VECTORS.split("\n\n").skip(1).map(Vector).collect();
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let mut sides = [Side::new(&vector, "init"), Side::new(&vector, "resp")];
        let messages = if vector.text("protocol").unwrap().contains("IX") {
            2
        } else {
            3
        };
        for number in 0..messages {
            let (payload, message) = vector.message(number);
            let [writer, reader] = ends(&mut sides, number);
            if vector.psk_before_message() == Some(number) {
                // Not earlier, as ours is not known earlier.
                writer.set_psk(&vector);
                reader.set_psk(&vector);
            }
            writer.answer();
            let mut buffer = vec![0; 1_000];
            let written = writer.noise.write_message(&payload, &mut buffer).unwrap();
            assert_eq!(buffer[..written], message);

            reader.hear(&message);
            let read = reader.noise.read_message(&message, &mut buffer).unwrap();
            assert_eq!(buffer[..read], payload);
            for side in &mut sides {
                side.heed();
            }
        }
        transport(&vector, sides, messages);
    }
}

/// The messages that follow the handshake, and its hash.
fn transport(vector: &Vector<'_>, sides: [Side; 2], messages: usize) {
    for side in &sides {
        let hash = side.noise.get_handshake_hash();
        assert_eq!(hash, vector.bytes("handshake_hash").unwrap());
    }
    let mut transports = sides.map(|side| side.noise.into_transport_mode().unwrap());
    for number in messages..6 {
        let (payload, message) = vector.message(number);
        let [writer, reader] = ends(&mut transports, number);
        let mut buffer = vec![0; 1_000];
        let written = writer.write_message(&payload, &mut buffer).unwrap();
        assert_eq!(buffer[..written], message);
        let read = reader.read_message(&message, &mut buffer).unwrap();
        assert_eq!(buffer[..read], payload);
    }
}

/// Writer and reader of a message: the initiator has the even ones.
fn ends<T>(sides: &mut [T; 2], number: usize) -> [&mut T; 2] {
    let [initiator, responder] = sides;
    if number.is_multiple_of(2) {
        [initiator, responder]
    } else {
        [responder, initiator]
    }
}

struct Side {
    noise: snow::HandshakeState,
    /// The static key, which snow does not have.
    secret: [u8; 32],
    outside: Arc<Outside>,
    heard: Option<[u8; 32]>,
}

/// What snow may know of our keys.
struct Outside {
    static_public: [u8; 32],
    ephemeral: [u8; 32],
    ephemeral_public: [u8; 32],
    /// With which point the static key agreed on what.
    answer: OnceLock<([u8; 32], [u8; 32])>,
}

impl Side {
    fn new(vector: &Vector<'_>, who: &str) -> Self {
        let key = |kind| -> [u8; 32] {
            vector
                .bytes(&format!("{who}_{kind}"))
                .unwrap()
                .try_into()
                .unwrap()
        };
        let outside = Arc::new(Outside {
            static_public: public(&key("static")),
            ephemeral: key("ephemeral"),
            ephemeral_public: public(&key("ephemeral")),
            answer: OnceLock::new(),
        });
        let protocol = vector.text("protocol").unwrap().parse().unwrap();
        let prologue = vector.bytes("prologue").unwrap();
        let builder = snow::Builder::with_resolver(protocol, Box::new(Resolver(outside.clone())))
            .local_private_key(&[])
            .unwrap()
            .prologue(&prologue)
            .unwrap();
        let noise = if who == "init" {
            builder.build_initiator()
        } else {
            builder.build_responder()
        };
        Self {
            noise: noise.unwrap(),
            secret: key("static"),
            outside,
            heard: None,
        }
    }

    fn set_psk(&mut self, vector: &Vector<'_>) {
        let protocol = vector.text("protocol").unwrap();
        let position = if protocol.contains("psk2") { 2 } else { 3 };
        let psk: [u8; 32] = vector.bytes("psk").unwrap().try_into().unwrap();
        self.noise.set_psk(position, &psk).unwrap();
    }

    /// Notes the peer's ephemeral key, the first in its first message.
    fn hear(&mut self, message: &[u8]) {
        if self.heard.is_none() {
            self.heard = message.first_chunk().copied();
        }
        self.answer();
    }

    /// Brings what the static key and the peer's ephemeral one agree on, once.
    fn answer(&mut self) {
        if let Some(peer) = self.heard {
            let _ = self.outside.answer.set((peer, agree(&self.secret, &peer)));
        }
    }

    fn heed(&mut self) {
        assert!(
            self.outside
                .answer
                .get()
                .is_none_or(|(peer, _)| Some(*peer) == self.heard)
        );
    }
}

struct Resolver(Arc<Outside>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(NoRandom))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(OutsideDh {
            outside: self.0.clone(),
            is_static: false,
        }))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct NoRandom;

impl Random for NoRandom {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
        Err(snow::Error::Rng)
    }
}

struct OutsideDh {
    outside: Arc<Outside>,
    is_static: bool,
}

impl Dh for OutsideDh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, _: &[u8]) {
        self.is_static = true;
    }

    fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        if self.is_static {
            &self.outside.static_public
        } else {
            &self.outside.ephemeral_public
        }
    }

    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, peer: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let peer: [u8; 32] = peer[..32].try_into().unwrap();
        if !self.is_static {
            out[..32].copy_from_slice(&agree(&self.outside.ephemeral, &peer));
            return Ok(());
        }
        match self.outside.answer.get() {
            Some((asked, secret)) if *asked == peer => {
                out[..32].copy_from_slice(secret);
                Ok(())
            }
            Some(_) | None => Err(snow::Error::Dh),
        }
    }
}

fn x25519(secret: &[u8; 32]) -> Box<dyn Dh> {
    let mut dh = DefaultResolver.resolve_dh(&DHChoice::Curve25519).unwrap();
    dh.set(secret);
    dh
}

fn public(secret: &[u8; 32]) -> [u8; 32] {
    x25519(secret).pubkey().try_into().unwrap()
}

fn agree(secret: &[u8; 32], peer: &[u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    x25519(secret).dh(peer, &mut out).unwrap();
    out
}

/// One vector: lines `name = value`.
struct Vector<'a>(&'a str);

impl<'a> Vector<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.text(name).map(|value| hex::decode(value).unwrap())
    }

    fn message(&self, number: usize) -> (Vec<u8>, Vec<u8>) {
        let bytes = |kind| self.bytes(&format!("{kind}_{number}")).unwrap();
        (bytes("payload"), bytes("message"))
    }

    /// The message at whose end the psk is mixed in: psk2 message 1, psk3 message 2, from 0.
    fn psk_before_message(&self) -> Option<usize> {
        let protocol = self.text("protocol").unwrap();
        [("psk2", 1), ("psk3", 2)]
            .into_iter()
            .find_map(|(psk, message)| protocol.contains(psk).then_some(message))
    }
}

const VECTORS: &str = include_str!("../vectors/cacophony.txt");
