//! A gateway of software keys, and what its spool and its end of an upload would say.

use channel::{
    Epoch, EpochClock, EpochTerms, Fingerprint, HeaderSigner, KeyKind, Previous, PublicKey,
    Purpose, RecordPublicKey, SealedBatch, SigningKey, SoftwareSigningKey, SoftwareStaticKey,
    StaticKey,
};
use cloud::registry::{Invitation, NewGateway};
use link::{Messages, StreamName};
use tokio::time::timeout;
use wire::{
    Class, ClockState, Measurement, Quality, Reading, Time, Unit, Value,
    batch::Batch,
    ticket::TicketKey,
    upload::{LaneKnown, LaneOffer, ProblemCode, ToGateway, ToService},
};

use super::{Cloud, PATIENCE, Session, rng};

pub(crate) async fn cloud_and_gateway() -> (Cloud, Gateway) {
    let cloud = Cloud::start().await;
    let gateway = Gateway::enrolled(&cloud, "greenhouse-7");
    (cloud, gateway)
}

/// A gateway of software keys.
pub(crate) struct Gateway {
    pub(crate) identity: SoftwareSigningKey,
    pub(crate) channel: SoftwareStaticKey,
}

impl Gateway {
    /// As if it had proved its keys.
    pub(crate) fn enrolled(cloud: &Cloud, name: &str) -> Self {
        let gateway = Self {
            identity: SoftwareSigningKey::generate(&mut rng()),
            channel: SoftwareStaticKey::generate(&mut rng()),
        };
        let (mut id, mut ek) = ([0; 8], [0; 32]);
        getrandom::fill(&mut id).unwrap();
        getrandom::fill(&mut ek).unwrap();
        let invitation = Invitation {
            name: name.into(),
            labels: Vec::new(),
            expires_ms: i64::MAX,
        };
        let key = TicketKey::from_bytes([1; 32]);
        cloud.registry.invite(&id, &key, &invitation).unwrap();
        let claim = cloud.registry.claim(&id, &ek).unwrap().unwrap();
        let new = NewGateway {
            fingerprint: *gateway.fingerprint().bytes(),
            identity: gateway.identity_key(),
            channel: gateway.channel.public(),
            attestation: SigningKey::public(&SoftwareSigningKey::generate(&mut rng())),
            endorsement: ek.to_vec(),
            names: [[0; 34]; 3],
        };
        cloud.registry.register(&claim, &new).unwrap().unwrap();
        gateway
    }

    pub(crate) fn identity_key(&self) -> PublicKey {
        SigningKey::public(&self.identity)
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::GatewayIdentity, self.identity_key().as_bytes())
    }

    pub(crate) fn terms(
        &self,
        cloud: &Cloud,
        index: u64,
        previous: Option<Previous>,
    ) -> EpochTerms {
        EpochTerms {
            gateway: self.fingerprint(),
            service: cloud.fingerprint(),
            class: Class::Normal.into(),
            chain_id: CHAIN,
            index,
            run_id: RUN,
            previous,
            opened: EpochClock {
                boot_id: [2; 16],
                boottime_ms: 1,
                wall_ms: 2,
                clock: 0,
            },
        }
    }

    /// An epoch, and its header signed by this gateway.
    pub(crate) async fn open(
        &self,
        terms: EpochTerms,
        record_key: &RecordPublicKey,
    ) -> (Epoch, Vec<u8>) {
        let (epoch, header) = Epoch::open(terms, record_key, &mut rng()).unwrap();
        let digest = header.digest(HeaderSigner::Own);
        let signature = self.identity.sign(digest).await.unwrap();
        (epoch, header.finish(signature))
    }

    /// A lane of class normal with its first epoch.
    pub(crate) async fn lane(&self, cloud: &Cloud) -> Lane {
        self.lane_of(self.terms(cloud, 0, None), &cloud.record_key())
            .await
    }

    pub(crate) async fn lane_of(&self, terms: EpochTerms, record_key: &RecordPublicKey) -> Lane {
        let (epoch, header) = self.open(terms, record_key).await;
        Lane { epoch, header }
    }

    pub(crate) async fn session(&self, cloud: &Cloud) -> Session {
        let session = cloud.connect(&self.channel, Purpose::Deliver).await;
        session.unwrap()
    }

    pub(crate) async fn uplink(&self, cloud: &Cloud) -> Uplink {
        let session = self.session(cloud).await;
        let messages = session.streams.open(StreamName::Upload).await.unwrap();
        Uplink { session, messages }
    }
}

/// What a spool holds of a lane.
pub(crate) struct Lane {
    pub(crate) epoch: Epoch,
    pub(crate) header: Vec<u8>,
}

impl Lane {
    pub(crate) fn header(&self) -> ToService {
        ToService::Header(self.header.clone())
    }

    pub(crate) fn seal(&mut self, batch: &Batch) -> SealedBatch {
        self.epoch.seal(&batch.encode()).unwrap()
    }

    pub(crate) fn sealed(&mut self, batch: &Batch) -> ToService {
        ToService::Batch(self.seal(batch).encode())
    }

    pub(crate) fn below(&self, from: u32) -> ToService {
        ToService::Below {
            chain_id: CHAIN,
            epoch_id: self.epoch.id(),
            from,
        }
    }

    pub(crate) fn previous(&self) -> Previous {
        Previous {
            epoch_id: self.epoch.id(),
            count: self.epoch.count(),
            head: self.epoch.head(),
            clean: true,
        }
    }

    pub(crate) fn ack(&self, next: u32) -> ToGateway {
        ToGateway::Ack {
            epoch_id: self.epoch.id(),
            next,
        }
    }

    pub(crate) fn problem(&self, number: Option<u32>, code: ProblemCode) -> ToGateway {
        ToGateway::Problem {
            epoch_id: self.epoch.id(),
            number,
            code,
        }
    }
}

/// A gateway's end of stream `upload`.
pub(crate) struct Uplink {
    pub(crate) session: Session,
    pub(crate) messages: Messages,
}

impl Uplink {
    /// Announces the critical and the normal lane; returns what the service knows of them.
    pub(crate) async fn hello(&mut self) -> Vec<LaneKnown> {
        let offers = [Class::Critical, Class::Normal].map(|class| LaneOffer {
            class,
            chain_id: CHAIN,
            oldest: None,
        });
        self.send(&ToService::Hello(offers.to_vec())).await;
        match self.answer().await {
            ToGateway::Welcome { lanes, .. } => lanes,
            other @ (ToGateway::Ack { .. } | ToGateway::Problem { .. }) => panic!("{other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, message: &ToService) {
        self.messages.send(&message.encode()).await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> ToGateway {
        let answer = timeout(PATIENCE, self.messages.recv()).await;
        let answer = answer.expect("no answer").unwrap();
        ToGateway::decode(&answer.expect("the stream has ended")).unwrap()
    }
}

pub(crate) fn one_reading(sequence: u64) -> Batch {
    Batch {
        readings: vec![reading(sequence, Value::Integer(1))],
        ..Batch::default()
    }
}

pub(crate) fn reading(sequence: u64, value: Value) -> Reading {
    let offset = i64::try_from(sequence).unwrap();
    Reading {
        sensor: "climate".into(),
        sensor_number: 4,
        sequence,
        time: Time {
            wall_ms: 1_700_000_000_000 + offset,
            boottime_ms: 5000 + sequence,
            clock: ClockState::Corrected,
        },
        measurement: Measurement {
            channel: "temperature".into(),
            value,
            unit: Unit::parse("Cel"),
            quality: Quality::OutOfRange,
        },
    }
}

pub(crate) const CHAIN: [u8; 16] = [5; 16];

pub(crate) const RUN: [u8; 16] = [7; 16];
