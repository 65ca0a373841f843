//! What a peer that has the keys can do, and what counters do.

use rand_core::CryptoRng;

use super::*;
use crate::fixture;
use crate::record::KEY_RECORDS_MAX;
use crate::session::stage::Stage;
use crate::{
    InitiatorConfig, Purpose, RecordKey, ResponderConfig, Session, SoftwareSigningKey,
    SoftwareStaticKey, Statement, StatementContent, StaticKey as _, Suite,
};

#[test]
fn a_key_at_its_last_records_closes_the_session_instead_of_sealing_more() {
    let mut pair = Pair::open();
    pair.gateway.key_works = false;
    pair.pretend_up(KEY_RECORDS_MAX - 5);

    // The first one begins the renewal as well, which the gateway's key fails to end.
    pair.gateway
        .session
        .send(pair.now, b"last but one")
        .unwrap();
    pair.exchange();
    pair.gateway.session.send(pair.now, b"last").unwrap();
    pair.exchange();

    assert_eq!(pair.gateway.closed, Some(Admission::GoingAway));
    assert_eq!(pair.service.closed, Some(Admission::GoingAway));
    assert_eq!(pair.service.received, b"last but onelast");
}

#[test]
fn keys_that_have_done_much_are_renewed_long_before_their_limit() {
    for up in [true, false] {
        let mut pair = Pair::open();
        let worn = KEY_RECORDS_MAX / 4 * 3;
        if up {
            pair.pretend_up(worn);
        } else {
            pair.pretend_down(worn);
        }
        pair.gateway.session.send(pair.now, b"up").unwrap();
        pair.service.session.send(pair.now, b"down").unwrap();
        pair.exchange();

        assert_eq!((pair.gateway.renewed, pair.service.renewed), (1, 1));
        pair.gateway.session.send(pair.now, b"+").unwrap();
        pair.service.session.send(pair.now, b"+").unwrap();
        pair.exchange();
        assert_eq!(pair.service.received, b"up+");
        assert_eq!(pair.gateway.received, b"down+");
        assert!(!pair.gateway.open().records.are_worn());
        assert!(!pair.service.open().records.are_worn());
    }
}

#[test]
fn a_renewal_that_names_other_keys_than_those_in_use_ends_the_session() {
    for gateway_lies in [true, false] {
        let mut pair = Pair::open();
        let liar = if gateway_lies {
            &mut pair.gateway
        } else {
            &mut pair.service
        };
        liar.open().renewal.hash_mut()[0] ^= 1;
        pair.renew();

        assert!(matches!(
            pair.service.failed,
            Some(SessionError::PeerRejected)
        ));
        assert_eq!(pair.service.operations, 1, "before any key has to work");
        assert_eq!(pair.gateway.closed, Some(Admission::ProtocolError));
    }
}

#[test]
fn a_renewal_with_another_gateway_key_ends_the_session() {
    let mut pair = Pair::open();
    let other = SoftwareStaticKey::generate(&mut fixture::rng(99));
    pair.gateway.open().renewal.gateway_config().static_key = other.public();
    pair.gateway.key = other;
    pair.renew();

    assert!(matches!(
        pair.service.failed,
        Some(SessionError::PeerProtocol)
    ));
    assert_eq!(pair.service.renewed, 0);
}

#[test]
fn a_renewal_with_another_purpose_ends_the_session() {
    let mut pair = Pair::open();
    pair.gateway.open().renewal.gateway_config().purpose = Purpose::Enrol;
    pair.renew();

    assert!(matches!(
        pair.service.failed,
        Some(SessionError::PeerProtocol)
    ));
}

#[test]
fn a_renewal_with_another_service_key_ends_the_session_before_the_gateways_key_works() {
    let mut pair = Pair::open();
    let other = SoftwareStaticKey::generate(&mut fixture::rng(99));
    // Listed by the same statement: both may begin sessions, neither may go on with the other's.
    pair.service.open().renewal.service_config().static_key = other.public();
    pair.service.key = other;
    pair.renew();

    assert!(matches!(
        pair.gateway.failed,
        Some(SessionError::PeerUnknownKey)
    ));
    assert_eq!(pair.gateway.operations, 1);
}

/// The disk failed, or does not answer.
#[test]
fn a_statement_that_is_not_stored_costs_that_attempt() {
    let mut pair = Pair::open();
    pair.issue_newer();
    pair.gateway.stores = false;
    pair.renew();
    assert_eq!(
        (pair.gateway.statements.len(), pair.gateway.renewed),
        (2, 0)
    );

    pair.gateway.stores = true;
    for pause in [HANDSHAKE_TIME_MAX, HANDSHAKE_TIME_MAX] {
        pair.now += pause;
        pair.gateway.session.handle_timeout(pair.now).unwrap();
        pair.exchange();
    }
    assert_eq!(pair.gateway.statements, [1, 2, 2]);
    assert_eq!((pair.gateway.renewed, pair.service.renewed), (1, 1));
}

#[test]
fn a_newer_statement_comes_with_a_renewal_and_is_stored_before_the_key_works() {
    let mut pair = Pair::open();
    pair.issue_newer();
    pair.gateway.stores = false;
    pair.renew();
    assert_eq!(pair.gateway.statements, [1, 2]);
    assert_eq!(pair.gateway.operations, 1);

    pair.gateway
        .session
        .handle_statement_stored(pair.now)
        .unwrap();
    pair.gateway.take(pair.now, &[]);
    pair.exchange();
    assert_eq!((pair.gateway.renewed, pair.service.renewed), (1, 1));
    pair.renew();
    assert_eq!(pair.gateway.statements, [1, 2], "held, and not sent again");
    assert_eq!((pair.gateway.renewed, pair.service.renewed), (2, 2));
}

#[test]
fn a_renewal_by_a_service_key_that_was_removed_ends_the_session() {
    let mut pair = Pair::open();
    let remaining = SoftwareStaticKey::generate(&mut fixture::rng(99)).public();
    let config = pair.service.open().renewal.service_config();
    config.statement = statement(2, vec![remaining]);
    pair.renew();

    assert!(matches!(
        pair.gateway.failed,
        Some(SessionError::PeerUnknownKey)
    ));
    assert_eq!(pair.gateway.operations, 1);
}

#[test]
fn a_second_switch_and_one_that_is_not_due_end_the_session() {
    for renewed in [true, false] {
        let mut pair = Pair::open();
        if renewed {
            pair.renew();
        }
        pair.service.inject(RecordType::Switch, &[]);
        pair.exchange();

        assert!(matches!(
            pair.gateway.failed,
            Some(SessionError::PeerProtocol)
        ));
    }
}

#[test]
fn a_service_that_is_asked_to_switch_or_to_renew_ends_the_session() {
    for kind in [RecordType::Switch, RecordType::PleaseRenew] {
        let mut pair = Pair::open();
        pair.gateway.inject(kind, &[]);
        pair.exchange();

        assert!(matches!(
            pair.service.failed,
            Some(SessionError::PeerProtocol)
        ));
    }
}

#[test]
fn a_renewal_that_is_not_due_asks_no_key() {
    let mut pair = Pair::open();
    pair.gateway
        .session
        .with_open(|open, outbox| {
            open.begin_renewal(pair.now, outbox)?;
            Ok(Flow::Continues)
        })
        .unwrap();
    pair.exchange();

    assert!(matches!(
        pair.service.failed,
        Some(SessionError::PeerProtocol)
    ));
    assert_eq!(pair.service.operations, 1);
}

#[test]
fn a_gateway_that_begins_without_end_is_stopped() {
    let mut pair = Pair::open();
    pair.gateway.key_works = false;
    pair.now += KEY_FRESH;
    let mut begun = 0;
    while pair.service.failed.is_none() {
        pair.gateway
            .session
            .with_open(|open, outbox| {
                *open.renewal.retry_at_mut() = None;
                open.begin_renewal(pair.now, outbox)?;
                Ok(Flow::Continues)
            })
            .unwrap();
        pair.exchange();
        begun += 1;
        assert!(begun < 100);
    }
    assert_eq!(pair.service.operations, 1 + 64);
}

#[test]
fn messages_of_a_renewal_out_of_turn_end_the_session() {
    for number in [0, 1, 2, 3, 4, 255] {
        let mut pair = Pair::open();
        pair.service.inject(RecordType::Renewal, &[number, 1, 2, 3]);
        pair.exchange();
        assert!(pair.gateway.failed.is_some(), "{number} to the gateway");

        let mut pair = Pair::open();
        pair.now += KEY_FRESH;
        pair.gateway.inject(RecordType::Renewal, &[number, 1, 2, 3]);
        pair.exchange();
        assert!(pair.service.failed.is_some(), "{number} to the service");
        assert_eq!(pair.service.operations, 1);
    }
    let mut pair = Pair::open();
    pair.service.inject(RecordType::Renewal, &[]);
    pair.exchange();
    assert!(pair.gateway.failed.is_some());
}

/// A session and what its driver noted.
struct Side {
    session: Session,
    key: SoftwareStaticKey,
    key_works: bool,
    operations: usize,
    stores: bool,
    /// Serials of the statements to store.
    statements: Vec<u64>,
    received: Vec<u8>,
    renewed: usize,
    closed: Option<Admission>,
    failed: Option<SessionError>,
}

impl Side {
    fn new(session: Session, key: SoftwareStaticKey) -> Self {
        Self {
            session,
            key,
            key_works: true,
            operations: 0,
            stores: true,
            statements: Vec::new(),
            received: Vec::new(),
            renewed: 0,
            closed: None,
            failed: None,
        }
    }

    fn open(&mut self) -> &mut Open {
        match &mut self.session.stage {
            Stage::Open(open) => open,
            Stage::Initiator(_) | Stage::Responder(_) | Stage::Closed | Stage::Failed => {
                panic!("the session is not open")
            }
        }
    }

    /// Sends a record that a session does not send of itself.
    fn inject(&mut self, kind: RecordType, body: &[u8]) {
        self.session
            .with_open(|open, outbox| open.transmit(kind, body, outbox))
            .unwrap();
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) {
        let result = self.session.handle_bytes(now, bytes);
        self.note(result);
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::KeyOperation { peer } => {
                    self.operations += 1;
                    let secret = if self.key_works {
                        self.key.ecdh_now(&peer)
                    } else {
                        Err(KeyError::new("TPM_RC_FAILURE"))
                    };
                    let result = self.session.handle_shared_secret(now, secret);
                    self.note(result);
                }
                Event::Peer { .. } => {
                    let result = self.session.handle_admission(now, Admission::Ok);
                    self.note(result);
                }
                Event::Data(bytes) => self.received.extend(bytes),
                Event::Renewed => self.renewed += 1,
                Event::Closed(reason) => self.closed = Some(reason),
                Event::NewStatement(statement) => {
                    self.statements.push(statement.serial());
                    if self.stores {
                        let result = self.session.handle_statement_stored(now);
                        self.note(result);
                    }
                }
                Event::Open { .. } | Event::RenewalFailed(_) => {}
            }
        }
    }

    fn note(&mut self, result: Result<(), SessionError>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }
}

/// A statement of the one service of these tests.
fn statement(serial: u64, channel_keys: Vec<PublicKey>) -> Statement {
    let identity = SoftwareSigningKey::generate(&mut fixture::rng(3));
    let content = StatementContent {
        serial,
        channel_keys,
        record_keys: vec![RecordKey::generate(&mut fixture::rng(4)).public()],
        online_keys: Vec::new(),
    };
    Statement::issue(content, &identity).unwrap()
}

/// Enough bytes for some hundred handshakes.
fn long_rng(seed: u32) -> fixture::ListedRng {
    let bytes = (0..64 * 1024_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]);
    fixture::ListedRng(bytes.map(|byte| byte ^ seed.to_le_bytes()[0]).collect())
}

struct Pair {
    gateway: Side,
    service: Side,
    now: Instant,
}

impl Pair {
    fn open() -> Self {
        let boxed = |seed| -> Box<dyn CryptoRng + Send> { Box::new(long_rng(seed)) };
        let [gateway_key, service_key, other_key] =
            [1, 2, 99].map(|seed| SoftwareStaticKey::generate(&mut fixture::rng(seed)));
        let statement = statement(1, vec![service_key.public(), other_key.public()]);
        let gateway = InitiatorConfig {
            suite: Suite::AesGcm,
            pin: statement.fingerprint(),
            held: None,
            static_key: gateway_key.public(),
            purpose: Purpose::Deliver,
            version: String::new(),
        };
        let service = ResponderConfig {
            statement,
            static_key: service_key.public(),
        };
        let now = Instant::now();
        let gateway = Session::initiate(gateway, boxed(5), now).unwrap();
        let service = Session::respond(service, boxed(6), now).unwrap();
        let mut pair = Self {
            gateway: Side::new(gateway, gateway_key),
            service: Side::new(service, service_key),
            now,
        };
        pair.exchange();
        assert!(pair.gateway.session.stage.is_running());
        assert!(pair.service.session.stage.is_running());
        pair
    }

    fn exchange(&mut self) {
        loop {
            let [up, down] = [&mut self.gateway, &mut self.service].map(|side| {
                let bytes = side.session.transmit().to_vec();
                side.session.transmitted(bytes.len());
                bytes
            });
            if up.is_empty() && down.is_empty() {
                return;
            }
            self.service.take(self.now, &up);
            self.gateway.take(self.now, &down);
        }
    }

    /// Lets the keys grow old enough, and uses them.
    fn renew(&mut self) {
        self.now += KEY_FRESH;
        self.gateway.session.send(self.now, b"late").unwrap();
        self.exchange();
    }

    /// The service has a newer statement than the gateway holds.
    fn issue_newer(&mut self) {
        let config = self.service.open().renewal.service_config();
        config.statement = statement(2, vec![config.static_key]);
    }

    fn pretend_up(&mut self, records: u64) {
        self.gateway.open().records.sending.pretend(records);
        self.service.open().records.receiving.pretend(records);
    }

    fn pretend_down(&mut self, records: u64) {
        self.service.open().records.sending.pretend(records);
        self.gateway.open().records.receiving.pretend(records);
    }
}
