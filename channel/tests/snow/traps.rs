//! Where snow 0.10 surprises, each with a test: either of snow, so that a version that mended it
//! shows, or of us, that we do not step there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use channel::{Session, StaticKey as _, Suite};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use sha2::{Digest as _, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

use crate::foreign::{PATTERNS, Pair, read, state, write};
use crate::net::{Side, TestRng, World, exchange};

// 13
#[test]
fn snow_s_transport_returns_half_a_static_key_and_its_handshake_the_whole() {
    let gateway = Pair::generate(1);
    let [_, responder] = finished(gateway.clone(), Pair::generate(2));
    assert_eq!(responder.get_remote_static().unwrap(), gateway.public);

    let transport = responder.into_transport_mode().unwrap();

    assert_eq!(
        transport.get_remote_static().unwrap(),
        &gateway.public[..32]
    );
}

// 12
#[test]
fn snow_cannot_go_on_after_a_key_agreement_that_failed() {
    let fails = Arc::new(AtomicBool::new(false));
    let static_key = Pair::generate(1);
    let resolver = Tampering {
        static_key: static_key.clone(),
        fails: fails.clone(),
        ..Tampering::default()
    };
    let mut initiator = snow::Builder::with_resolver(xx(), Box::new(resolver))
        .local_private_key(&static_key.secret.to_bytes())
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut responder = builder(&Pair::generate(2)).build_responder().unwrap();
    read(&mut responder, &write(&mut initiator, b""));
    read(&mut initiator, &write(&mut responder, b""));

    // The TPM fails at message 3, and works again.
    fails.store(true, Ordering::Relaxed);
    let mut message = [0; 200];
    let error = initiator.write_message(b"", &mut message).unwrap_err();
    assert_eq!(error, snow::Error::Dh);
    fails.store(false, Ordering::Relaxed);
    let written = initiator.write_message(b"", &mut message).unwrap();

    let error = responder.read_message(&message[..written], &mut [0; 200]);
    assert_eq!(error, Err(snow::Error::Decrypt));
}

#[test]
fn snow_s_own_p256_panics_over_an_unlucky_number() {
    for unlucky in [[0; 32], [0xff; 32]] {
        let mut dh = DefaultResolver.resolve_dh(&DHChoice::P256).unwrap();
        let generated = catch_unwind(AssertUnwindSafe(|| dh.generate(&mut Unlucky(unlucky))));
        assert!(generated.is_err());
        let mut dh = DefaultResolver.resolve_dh(&DHChoice::P256).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| dh.set(&unlucky))).is_err());
    }
}

#[test]
fn an_unlucky_number_is_drawn_again() {
    let world = World::new();
    // More than the order of the curve: not a key.
    let unlucky = || vec![0xff; 32];
    let config = world.config(Suite::ChaChaPoly, Some(world.newest()));
    let rng = Box::new(TestRng::listed(unlucky()));
    let session = Session::initiate(config, rng, world.start).unwrap();
    let mut gateway = Side::new(session, &world.gateway_key);
    let config = channel::ResponderConfig {
        statement: world.newest(),
        static_key: world.service_key.public(),
    };
    let rng = Box::new(TestRng::listed(unlucky()));
    let session = Session::respond(config, rng, world.start).unwrap();
    let mut service = Side::new(session, &world.service_key);

    exchange(&mut gateway, &mut service, world.start).unwrap();

    assert!(gateway.opened.is_some() && service.opened.is_some());
}

#[test]
fn snow_begins_with_the_name_that_the_protocol_gives() {
    // 31 characters, so padded with zeros to the 32 of the hash (Noise 5.2), then the prologue.
    let name = PATTERNS[1];
    assert_eq!(name.len(), 31);
    let noise = state(2, b"prologue", Pair::generate(1), Pair::generate(2), true);
    let hash = Sha256::digest([name.as_bytes(), b"\0prologue"].concat());
    assert_eq!(noise.get_handshake_hash(), &hash[..]);
}

#[test]
fn snow_has_no_ml_kem_by_any_name() {
    for name in [
        "Noise_XXhfs_P256+MLKEM768_ChaChaPoly_BLAKE2s",
        "Noise_XXhfs_P256+ML-KEM-768_ChaChaPoly_BLAKE2s",
        "Noise_XXhfs_P256+Kyber1024_ChaChaPoly_BLAKE2s",
        "Noise_XXpsk2_P-256_ChaChaPoly_BLAKE2s",
        "Noise_XXpsk2_secp256r1_ChaChaPoly_BLAKE2s",
    ] {
        assert!(name.parse::<NoiseParams>().is_err(), "{name}");
    }
    for name in PATTERNS {
        assert_eq!(name.parse::<NoiseParams>().unwrap().dh, DHChoice::P256);
    }
}

/// So keys of a handshake stay in memory that was freed, which protocol.md and the threat model
/// have to say for as long as this test stands.
#[test]
fn snow_wipes_nothing() {
    let lock = include_str!("../../../Cargo.lock");
    let package = lock
        .split("[[package]]")
        .find(|package| package.contains("\nname = \"snow\"\n"))
        .unwrap();
    assert!(package.contains("version = \"0.10."));
    assert!(!package.contains("zeroize"));
}

#[test]
fn snow_hands_a_key_to_its_cipher_once_and_not_for_each_message() {
    // So a cipher of our own may keep the key schedule that snow's makes for each message anew.
    let keys_set = Arc::new(AtomicUsize::new(0));
    let sealed = Arc::new(AtomicUsize::new(0));
    let static_key = Pair::generate(1);
    let resolver = Tampering {
        static_key: static_key.clone(),
        keys_set: keys_set.clone(),
        sealed: sealed.clone(),
        ..Tampering::default()
    };
    let mut initiator = snow::Builder::with_resolver(xx(), Box::new(resolver))
        .local_private_key(&static_key.secret.to_bytes())
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut responder = builder(&Pair::generate(2)).build_responder().unwrap();
    read(&mut responder, &write(&mut initiator, b""));
    read(&mut initiator, &write(&mut responder, b""));
    read(&mut responder, &write(&mut initiator, b""));
    let mut transport = initiator.into_transport_mode().unwrap();
    let (keys_before, sealed_before) = (counted(&keys_set), counted(&sealed));

    let mut message = [0; 100];
    for _ in 0..50 {
        transport.write_message(b"record", &mut message).unwrap();
    }

    assert_eq!(counted(&sealed), sealed_before + 50);
    assert_eq!(counted(&keys_set), keys_before);
}

fn counted(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

/// Both sides of a handshake that is done but for the split.
fn finished(initiator: Pair, responder: Pair) -> [snow::HandshakeState; 2] {
    let mut initiator = builder(&initiator).build_initiator().unwrap();
    let mut responder = builder(&responder).build_responder().unwrap();
    read(&mut responder, &write(&mut initiator, b""));
    read(&mut initiator, &write(&mut responder, b""));
    read(&mut responder, &write(&mut initiator, b""));
    [initiator, responder]
}

/// snow with all of its own but the ephemeral key, which is drawn from a counter.
fn builder(static_key: &Pair) -> snow::Builder<'static> {
    let resolver = Tampering {
        static_key: static_key.clone(),
        ..Tampering::default()
    };
    snow::Builder::with_resolver(xx(), Box::new(resolver))
        .local_private_key(&[])
        .unwrap()
}

fn xx() -> NoiseParams {
    "Noise_XX_P256_ChaChaPoly_BLAKE2s".parse().unwrap()
}

/// snow's own cryptography, tampered with.
#[derive(Clone)]
struct Tampering {
    static_key: Pair,
    /// Whether the static key's agreement fails.
    fails: Arc<AtomicBool>,
    keys_set: Arc<AtomicUsize>,
    sealed: Arc<AtomicUsize>,
}

impl Default for Tampering {
    fn default() -> Self {
        Self {
            static_key: Pair::generate(9),
            fails: Arc::default(),
            keys_set: Arc::default(),
            sealed: Arc::default(),
        }
    }
}

impl CryptoResolver for Tampering {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let number = Sha256::digest(self.static_key.public);
        Some(Box::new(Unlucky(number.into())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(FailingDh {
            dh: DefaultResolver.resolve_dh(choice)?,
            static_key: self.static_key.clone(),
            fails: self.fails.clone(),
            is_static: false,
        }))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(CountingCipher {
            cipher: DefaultResolver.resolve_cipher(choice)?,
            keys_set: self.keys_set.clone(),
            sealed: self.sealed.clone(),
        }))
    }
}

/// Always the same number.
struct Unlucky([u8; 32]);

impl Random for Unlucky {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

struct FailingDh {
    dh: Box<dyn Dh>,
    static_key: Pair,
    fails: Arc<AtomicBool>,
    is_static: bool,
}

impl Dh for FailingDh {
    fn name(&self) -> &'static str {
        self.dh.name()
    }

    fn pub_len(&self) -> usize {
        self.dh.pub_len()
    }

    fn priv_len(&self) -> usize {
        self.dh.priv_len()
    }

    fn dh_len(&self) -> usize {
        self.dh.dh_len()
    }

    fn set(&mut self, _: &[u8]) {
        self.is_static = true;
        self.dh.set(&self.static_key.secret.to_bytes());
        let point = self.static_key.secret.public_key().to_sec1_point(false);
        assert_eq!(self.dh.pubkey(), point.as_bytes());
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), snow::Error> {
        self.dh.generate(random)
    }

    fn pubkey(&self) -> &[u8] {
        self.dh.pubkey()
    }

    fn privkey(&self) -> &[u8] {
        self.dh.privkey()
    }

    fn dh(&self, peer: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        if self.is_static && self.fails.load(Ordering::Relaxed) {
            return Err(snow::Error::Dh);
        }
        self.dh.dh(peer, out)
    }
}

struct CountingCipher {
    cipher: Box<dyn Cipher>,
    keys_set: Arc<AtomicUsize>,
    sealed: Arc<AtomicUsize>,
}

impl Cipher for CountingCipher {
    fn name(&self) -> &'static str {
        self.cipher.name()
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.keys_set.fetch_add(1, Ordering::Relaxed);
        self.cipher.set(key);
    }

    fn encrypt(&self, nonce: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        self.sealed.fetch_add(1, Ordering::Relaxed);
        self.cipher.encrypt(nonce, ad, plaintext, out)
    }

    fn decrypt(
        &self,
        nonce: u64,
        ad: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        self.cipher.decrypt(nonce, ad, ciphertext, out)
    }
}
