//! What the tests share: a spool in a folder, and a service and a gateway with software keys.

use std::path::Path;

use channel::{
    Epoch, EpochClock, EpochTerms, Fingerprint, HeaderSigner, KeyKind, Previous, RecordKey,
    SealedBatch, SigningKey, SoftwareSigningKey, SoftwareStaticKey, Statement, StatementContent,
    StaticKey, UnsignedHeader,
};
use getrandom::SysRng;
use link::KeepStatement;
use rand_core::UnwrapErr;
use spool::{Lane, Limits, NewBatch, NewEpoch, Spool, StoredHeader};
use wire::{Class, batch::Tally};

use crate::{
    config::{Patterns, ServiceConfig},
    service::Service,
};

pub(crate) fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

pub(crate) fn open_spool(folder: &Path) -> Spool {
    let limits = Limits {
        max_bytes: spool::MAX_BYTES_MIN,
        min_free_bytes: 0,
    };
    Spool::open(folder, limits).unwrap()
}

/// Waits until the thread of a spool that was dropped has let go of its file, which nothing tells.
pub(crate) async fn wait_for_spool(folder: &Path) {
    let lock = folder.join(spool::DATABASE_NAME).with_extension("db-wal");
    while lock.exists() {
        tokio::task::yield_now().await;
    }
}

/// The configured side of a service: it takes every sensor.
pub(crate) fn service(spool: &Spool) -> Service {
    let config = ServiceConfig {
        name: "farm".into(),
        addresses: Vec::new(),
        key: None,
        sensors: Patterns::default(),
        relay_token: None,
    };
    Service::new(config, spool.clone())
}

/// All private keys of a service and of a gateway.
pub(crate) struct Keys {
    pub(crate) service: SoftwareSigningKey,
    pub(crate) channel: SoftwareStaticKey,
    pub(crate) record: RecordKey,
    pub(crate) gateway: SoftwareSigningKey,
    pub(crate) gateway_channel: SoftwareStaticKey,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self {
            service: SoftwareSigningKey::generate(&mut rng()),
            channel: SoftwareStaticKey::generate(&mut rng()),
            record: RecordKey::generate(&mut rng()),
            gateway: SoftwareSigningKey::generate(&mut rng()),
            gateway_channel: SoftwareStaticKey::generate(&mut rng()),
        }
    }

    /// The service's identity.
    pub(crate) fn pin(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::ServiceIdentity, self.service.public().as_bytes())
    }

    /// The gateway's identity.
    pub(crate) fn gateway(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::GatewayIdentity, self.gateway.public().as_bytes())
    }

    pub(crate) fn statement(&self, serial: u64) -> Statement {
        let content = StatementContent {
            serial,
            channel_keys: vec![self.channel.public()],
            record_keys: vec![self.record.public()],
            online_keys: Vec::new(),
        };
        Statement::issue(content, &self.service).unwrap()
    }

    /// Makes the service a peer that has enrolled this gateway and whose statement is known.
    pub(crate) async fn become_peer_of(&self, service: &Service) {
        service
            .set_peer(self.pin(), Vec::new(), true)
            .await
            .unwrap();
        service.keep(&self.statement(1)).await.unwrap();
    }

    pub(crate) fn lane(&self, class: Class) -> Lane {
        Lane {
            service: *self.pin().bytes(),
            class,
        }
    }

    /// The lane's next epoch.
    pub(crate) async fn open_epoch(&self, spool: &Spool, class: Class, signed: bool) -> Epoch {
        let lane = self.lane(class);
        let newest = spool.lane(lane).await.unwrap().newest;
        let index = newest.as_ref().map_or(0, |newest| newest.index + 1);
        let terms = EpochTerms {
            gateway: self.gateway(),
            service: self.pin(),
            class: class.into(),
            chain_id: spool.chain_id(),
            index,
            run_id: [1; 16],
            previous: newest.map(|newest| Previous {
                epoch_id: newest.epoch_id,
                count: newest.count,
                head: newest.head,
                clean: newest.clean,
            }),
            opened: EpochClock {
                boot_id: [2; 16],
                boottime_ms: 3,
                wall_ms: 4,
                clock: 0,
            },
        };
        let (epoch, header) = Epoch::open(terms, &self.record.public(), &mut rng()).unwrap();
        let opened = spool.open_epoch(NewEpoch {
            lane,
            epoch_id: epoch.id(),
            index,
            unsigned_header: header.payload().to_vec(),
        });
        opened.await.unwrap();
        if signed {
            self.sign_header(spool, &epoch).await;
        }
        epoch
    }

    pub(crate) async fn sign_header(&self, spool: &Spool, epoch: &Epoch) {
        let header = spool.header(epoch.id()).await.unwrap();
        let Some(StoredHeader::Unsigned(payload)) = header else {
            panic!("no header waits");
        };
        let header = UnsignedHeader::from_payload(&payload).unwrap();
        let digest = header.digest(HeaderSigner::Own);
        let signature = self.gateway.sign(digest).await.unwrap();
        let signed = spool.sign_header(epoch.id(), header.finish(signature));
        signed.await.unwrap();
    }
}

/// A batch of that lane as the spool takes it.
pub(crate) fn new_batch(lane: Lane, sealed: &SealedBatch, tallies: Vec<Tally>) -> NewBatch {
    NewBatch {
        lane,
        epoch_id: sealed.epoch_id,
        number: sealed.number,
        chain: sealed.chain(),
        tallies,
        from_ms: 0,
        until_ms: 0,
        bytes: sealed.encode(),
        ledger_ids: Vec::new(),
    }
}
