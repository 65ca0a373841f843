//! The protocol once more, straight from protocol.md 2.1 on snow, ml-kem and p256 alone: a peer
//! that shares no line with the session, and may lie.

use hmac::{Hmac, KeyInit as _, Mac as _};
use ml_kem::kem::Generate as _;
use ml_kem::{
    Ciphertext, Decapsulate as _, DecapsulationKey768, Encapsulate as _, EncapsulationKey768, Key,
    KeyExport as _, MlKem768,
};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use sha2::{Digest as _, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

use crate::net::TestRng;

pub(crate) const PATTERNS: [&str; 2] = [
    "Noise_XXpsk2_P256_ChaChaPoly_BLAKE2s",
    "Noise_XXpsk2_P256_AESGCM_SHA256",
];

/// A key pair whose public half may be a lie.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) public: [u8; 65],
    pub(crate) secret: p256::SecretKey,
}

impl Pair {
    pub(crate) fn new(secret: p256::SecretKey) -> Self {
        Self {
            public: point(&secret),
            secret,
        }
    }

    pub(crate) fn generate(seed: u64) -> Self {
        Self::new(p256::SecretKey::generate_from_rng(&mut TestRng::new(seed)))
    }
}

pub(crate) fn point(secret: &p256::SecretKey) -> [u8; 65] {
    secret
        .public_key()
        .to_sec1_point(false)
        .as_bytes()
        .try_into()
        .unwrap()
}

pub(crate) fn preamble(suite: u8, service: &[u8; 32]) -> Vec<u8> {
    [b"GWD1", &[suite, 1, 1, 0][..], service, &[0; 32]].concat()
}

pub(crate) fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}

/// `{1: ek, 2: serial}` for a serial below 24.
pub(crate) fn greeting(ek: &[u8; 1184], serial: u8) -> Vec<u8> {
    [&[0xa2, 0x01, 0x59, 0x04, 0xa0], &ek[..], &[0x02, serial]].concat()
}

pub(crate) fn psk(shared: &[u8], ek: &[u8], ct: &[u8]) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(shared)
        .unwrap()
        .chain_update(b"gatewayd/1 noise psk\0")
        .chain_update(Sha256::digest(ek))
        .chain_update(Sha256::digest(ct))
        .finalize()
        .into_bytes()
        .into()
}

/// A gateway's half of the handshake.
pub(crate) struct ForeignGateway {
    noise: snow::HandshakeState,
    kem: DecapsulationKey768,
    preamble: Vec<u8>,
}

impl ForeignGateway {
    pub(crate) fn new(suite: u8, service: &[u8; 32], static_pair: Pair, ephemeral: Pair) -> Self {
        Self::with_preamble(preamble(suite, service), static_pair, ephemeral)
    }

    /// With a preamble that may be wrong, and is then the prologue all the same.
    pub(crate) fn with_preamble(preamble: Vec<u8>, static_pair: Pair, ephemeral: Pair) -> Self {
        let suite = if preamble[4] == 2 { 2 } else { 1 };
        Self {
            noise: state(suite, &preamble, static_pair, ephemeral, true),
            kem: DecapsulationKey768::generate_from_rng(&mut TestRng::new(99)),
            preamble,
        }
    }

    pub(crate) fn ek(&self) -> [u8; 1184] {
        self.kem.encapsulation_key().to_bytes().into()
    }

    /// Preamble and message 1.
    pub(crate) fn begin(&mut self, payload: &[u8]) -> Vec<u8> {
        [
            &self.preamble[..],
            &framed(&write(&mut self.noise, payload)),
        ]
        .concat()
    }

    /// Takes message 2; returns its payload and the service's static key.
    pub(crate) fn read(&mut self, frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (ct, message) = frame[2..].split_at(1088);
        let shared = self
            .kem
            .decapsulate(&Ciphertext::<MlKem768>::try_from(ct).unwrap());
        let psk = psk(&shared, &self.ek(), ct);
        self.noise.set_psk(2, &psk).unwrap();
        let payload = read(&mut self.noise, message);
        (payload, self.noise.get_remote_static().unwrap().to_vec())
    }

    /// Message 3.
    pub(crate) fn introduce(&mut self, payload: &[u8]) -> Vec<u8> {
        framed(&write(&mut self.noise, payload))
    }

    pub(crate) fn finish(self) -> Transport {
        Transport::new(self.noise)
    }
}

/// A service's half of the handshake.
pub(crate) struct ForeignService {
    noise: snow::HandshakeState,
}

impl ForeignService {
    /// Takes preamble and message 1, and returns itself and `ct ‖ message 2` with `payload`.
    pub(crate) fn answer(hello: &[u8], static_pair: Pair, payload: &[u8]) -> (Self, Vec<u8>) {
        let (preamble, frame) = hello.split_at(72);
        let ephemeral = Pair::generate(1_000);
        let mut noise = state(preamble[4], preamble, static_pair, ephemeral, false);
        let greeting = read(&mut noise, &frame[2..]);
        let ek = &greeting[5..5 + 1184];
        let (ct, shared) =
            EncapsulationKey768::new(&Key::<EncapsulationKey768>::try_from(ek).unwrap())
                .unwrap()
                .encapsulate_with_rng(&mut TestRng::new(98));
        noise.set_psk(2, &psk(&shared, ek, &ct)).unwrap();
        let message = write(&mut noise, payload);
        (Self { noise }, framed(&[&ct[..], &message].concat()))
    }

    /// Takes message 3; returns its payload and the gateway's static key.
    pub(crate) fn read(&mut self, frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let payload = read(&mut self.noise, &frame[2..]);
        (payload, self.noise.get_remote_static().unwrap().to_vec())
    }

    pub(crate) fn finish(self) -> Transport {
        Transport::new(self.noise)
    }
}

/// Records by hand.
pub(crate) struct Transport {
    noise: snow::TransportState,
    pub(crate) hash: Vec<u8>,
}

impl Transport {
    fn new(noise: snow::HandshakeState) -> Self {
        let hash = noise.get_handshake_hash().to_vec();
        Self {
            noise: noise.into_transport_mode().unwrap(),
            hash,
        }
    }

    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut message = vec![0; plaintext.len() + 16];
        self.noise.write_message(plaintext, &mut message).unwrap();
        framed(&message)
    }

    pub(crate) fn open(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut plaintext = vec![0; frame.len() - 2 - 16];
        self.noise
            .read_message(&frame[2..], &mut plaintext)
            .unwrap();
        plaintext
    }
}

pub(crate) fn write(noise: &mut snow::HandshakeState, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; payload.len() + 200];
    let bytes = noise.write_message(payload, &mut message).unwrap();
    message.truncate(bytes);
    message
}

pub(crate) fn read(noise: &mut snow::HandshakeState, message: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; message.len()];
    let bytes = noise.read_message(message, &mut payload).unwrap();
    payload.truncate(bytes);
    payload
}

pub(crate) fn state(
    suite: u8,
    prologue: &[u8],
    static_pair: Pair,
    ephemeral: Pair,
    initiator: bool,
) -> snow::HandshakeState {
    let pattern = PATTERNS[usize::from(suite) - 1].parse().unwrap();
    let resolver = Box::new(Resolver {
        static_pair,
        ephemeral,
    });
    let builder = snow::Builder::with_resolver(pattern, resolver)
        .local_private_key(&[])
        .unwrap()
        .prologue(prologue)
        .unwrap();
    if initiator {
        builder.build_initiator().unwrap()
    } else {
        builder.build_responder().unwrap()
    }
}

struct Resolver {
    static_pair: Pair,
    ephemeral: Pair,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Unused))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(LyingDh {
            pair: self.ephemeral.clone(),
            static_pair: self.static_pair.clone(),
        }))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Unused;

impl Random for Unused {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
        Err(snow::Error::Rng)
    }
}

struct LyingDh {
    pair: Pair,
    static_pair: Pair,
}

impl Dh for LyingDh {
    fn name(&self) -> &'static str {
        "P256"
    }

    fn pub_len(&self) -> usize {
        65
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn dh_len(&self) -> usize {
        32
    }

    fn set(&mut self, _: &[u8]) {
        self.pair = self.static_pair.clone();
    }

    fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.pair.public
    }

    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, peer: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_| snow::Error::Dh)?;
        let secret = self.pair.secret.diffie_hellman(&peer);
        out[..32].copy_from_slice(secret.raw_secret_bytes());
        Ok(())
    }
}
