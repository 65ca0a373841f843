//! Two sessions on a simulated wire and clock.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use channel::{
    Admission, Event, Fingerprint, InitiatorConfig, KeyError, KeyKind, PublicKey, Purpose,
    RecordKey, RecordPublicKey, ResponderConfig, Session, SessionError, SigningKey as _,
    SoftwareSigningKey, SoftwareStaticKey, Statement, StatementContent, StaticKey as _, Suite,
};
use rand_core::{TryCryptoRng, TryRng};
use sha2::{Digest as _, Sha256};

/// A service with its keys, and a gateway that knows its pin. Everything follows from seeds, so two
/// sessions of one seed are alike to the byte.
pub(crate) struct World {
    pub(crate) identity: SoftwareSigningKey,
    pub(crate) service_key: SoftwareStaticKey,
    pub(crate) gateway_key: SoftwareStaticKey,
    pub(crate) record_key: RecordPublicKey,
    pub(crate) start: Instant,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut rng = TestRng::new(0);
        Self {
            identity: SoftwareSigningKey::generate(&mut rng),
            service_key: SoftwareStaticKey::generate(&mut rng),
            gateway_key: SoftwareStaticKey::generate(&mut rng),
            record_key: RecordKey::generate(&mut rng).public(),
            start: Instant::now(),
        }
    }

    pub(crate) fn pin(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::ServiceIdentity, self.identity.public().as_bytes())
    }

    /// A statement of this service, or of an impostor.
    pub(crate) fn statement(
        &self,
        serial: u64,
        key: PublicKey,
        identity: &SoftwareSigningKey,
    ) -> Statement {
        let content = StatementContent {
            serial,
            channel_keys: vec![key],
            record_keys: vec![self.record_key.clone()],
            online_keys: Vec::new(),
        };
        Statement::issue(content, identity).unwrap()
    }

    /// The service's statement with the serial that its sessions use.
    pub(crate) fn newest(&self) -> Statement {
        self.statement(SERIAL, self.service_key.public(), &self.identity)
    }

    pub(crate) fn config(&self, suite: Suite, held: Option<Statement>) -> InitiatorConfig {
        InitiatorConfig {
            suite,
            pin: self.pin(),
            held,
            static_key: self.gateway_key.public(),
            purpose: Purpose::Deliver,
            version: "1.2.3".to_owned(),
        }
    }

    pub(crate) fn gateway(&self, seed: u64) -> Side {
        self.gateway_of(self.config(Suite::ChaChaPoly, None), seed)
    }

    pub(crate) fn gateway_of(&self, config: InitiatorConfig, seed: u64) -> Side {
        let rng = Box::new(TestRng::new(2 * seed + 1));
        let session = Session::initiate(config, rng, self.start).unwrap();
        Side::new(session, &self.gateway_key)
    }

    pub(crate) fn service(&self, seed: u64) -> Side {
        let config = ResponderConfig {
            statement: self.newest(),
            static_key: self.service_key.public(),
        };
        let rng = Box::new(TestRng::new(2 * seed + 2));
        let session = Session::respond(config, rng, self.start).unwrap();
        Side::new(session, &self.service_key)
    }

    /// A gateway and a service that admitted it.
    pub(crate) fn open(&self, suite: Suite) -> (Side, Side) {
        let mut gateway = self.gateway_of(self.config(suite, None), 1);
        let mut service = self.service(1);
        exchange(&mut gateway, &mut service, self.start).unwrap();
        assert!(gateway.opened.is_some() && service.opened.is_some());
        (gateway, service)
    }
}

/// The serial of [`World::newest`]; not 1, so that there are older ones.
pub(crate) const SERIAL: u64 = 7;

/// What the private key does when it is asked.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Key {
    Works,
    Fails,
    Hangs,
}

/// A session and its driver, which notes everything.
pub(crate) struct Side {
    pub(crate) session: Session,
    pub(crate) key: SoftwareStaticKey,
    pub(crate) key_does: Key,
    /// What it answers to [`Event::Peer`]; `None`: nothing.
    pub(crate) admits: Option<Admission>,
    /// Whether it stores statements.
    pub(crate) stores: bool,
    /// Points with which the static key was to agree.
    pub(crate) asked: Vec<PublicKey>,
    pub(crate) statements: Vec<Statement>,
    pub(crate) peers: Vec<(PublicKey, Purpose, String)>,
    pub(crate) opened: Option<([u8; 32], PublicKey)>,
    pub(crate) received: Vec<u8>,
    pub(crate) renewed: usize,
    pub(crate) renewals_failed: Vec<SessionError>,
    pub(crate) closed: Option<Admission>,
    /// All bytes it ever sent.
    pub(crate) sent: Vec<u8>,
}

impl Side {
    pub(crate) fn new(session: Session, key: &SoftwareStaticKey) -> Self {
        Self {
            session,
            key: SoftwareStaticKey::from_bytes(&*key.to_bytes()).unwrap(),
            key_does: Key::Works,
            admits: Some(Admission::Ok),
            stores: true,
            asked: Vec::new(),
            statements: Vec::new(),
            peers: Vec::new(),
            opened: None,
            received: Vec::new(),
            renewed: 0,
            renewals_failed: Vec::new(),
            closed: None,
            sent: Vec::new(),
        }
    }

    /// Hands over bytes, and does what the session asks for.
    pub(crate) fn feed(&mut self, now: Instant, bytes: &[u8]) -> Result<(), SessionError> {
        let result = self.session.handle_bytes(now, bytes);
        let reacted = self.react(now);
        result.and(reacted)
    }

    /// Tells the time.
    pub(crate) fn wake(&mut self, now: Instant) -> Result<(), SessionError> {
        let result = self.session.handle_timeout(now);
        let reacted = self.react(now);
        result.and(reacted)
    }

    /// What the session wants to send.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let bytes = self.session.transmit().to_vec();
        self.session.transmitted(bytes.len());
        self.sent.extend(&bytes);
        bytes
    }

    pub(crate) fn react(&mut self, now: Instant) -> Result<(), SessionError> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::NewStatement(statement) => {
                    self.statements.push(statement);
                    if self.stores {
                        self.session.handle_statement_stored(now)?;
                    }
                }
                Event::KeyOperation { peer } => {
                    self.asked.push(peer);
                    match self.key_does {
                        Key::Works => {
                            let secret = self.key.ecdh_now(&peer);
                            self.session.handle_shared_secret(now, secret)?;
                        }
                        Key::Fails => {
                            let error = KeyError::new("TPM_RC_FAILURE");
                            self.session.handle_shared_secret(now, Err(error))?;
                        }
                        Key::Hangs => {}
                    }
                }
                Event::Peer {
                    static_key,
                    purpose,
                    version,
                    ..
                } => {
                    self.peers.push((static_key, purpose, version));
                    if let Some(admission) = self.admits {
                        self.session.handle_admission(now, admission)?;
                    }
                }
                Event::Open {
                    handshake_hash,
                    remote_static,
                } => self.opened = Some((handshake_hash, remote_static)),
                Event::Data(bytes) => self.received.extend(bytes),
                Event::Renewed => self.renewed += 1,
                Event::RenewalFailed(error) => self.renewals_failed.push(error),
                Event::Closed(reason) => self.closed = Some(reason),
            }
        }
        Ok(())
    }

    /// The one record that sends `bytes`.
    pub(crate) fn record(&mut self, now: Instant, bytes: &[u8]) -> Vec<u8> {
        self.session.send(now, bytes).unwrap();
        self.take()
    }
}

/// Carries bytes both ways until both sides are quiet.
pub(crate) fn exchange(a: &mut Side, b: &mut Side, now: Instant) -> Result<(), SessionError> {
    exchange_in_pieces(a, b, now, usize::MAX)
}

/// Does so in pieces of `piece` bytes.
pub(crate) fn exchange_in_pieces(
    a: &mut Side,
    b: &mut Side,
    now: Instant,
    piece: usize,
) -> Result<(), SessionError> {
    loop {
        let there = a.take();
        for bytes in there.chunks(piece) {
            b.feed(now, bytes)?;
        }
        let back = b.take();
        for bytes in back.chunks(piece) {
            a.feed(now, bytes)?;
        }
        if there.is_empty() && back.is_empty() {
            return Ok(());
        }
    }
}

/// Whether `part` occurs in `bytes`.
pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Bytes from a list, then SHA-256 over a seed and a counter.
pub(crate) struct TestRng {
    listed: VecDeque<u8>,
    seed: u64,
    counter: u64,
}

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            listed: VecDeque::new(),
            seed,
            counter: 0,
        }
    }

    pub(crate) fn listed(bytes: Vec<u8>) -> Self {
        Self {
            listed: bytes.into(),
            ..Self::new(0)
        }
    }
}

impl TryRng for TestRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        while self.listed.len() < bytes.len() {
            self.counter += 1;
            let block = Sha256::new()
                .chain_update(self.seed.to_le_bytes())
                .chain_update(self.counter.to_le_bytes())
                .finalize();
            self.listed.extend(block);
        }
        let count = bytes.len();
        for (byte, listed) in bytes.iter_mut().zip(self.listed.drain(..count)) {
            *byte = listed;
        }
        Ok(())
    }
}

impl TryCryptoRng for TestRng {}
