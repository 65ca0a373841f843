//! What the tests share: a spool in a folder, and a service and a gateway with software keys.

use std::path::Path;

use channel::{
    Fingerprint, KeyKind, RecordKey, SigningKey, SoftwareSigningKey, SoftwareStaticKey, Statement,
    StatementContent, StaticKey,
};
use getrandom::SysRng;
use link::KeepStatement;
use rand_core::UnwrapErr;
use spool::{Limits, Spool};

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
}
