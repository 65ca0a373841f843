//! Gateway, relays and service in one process: the daemon's own uplink over a spool with batches
//! ready to go, real relays, the real service with its database, and a software TPM.

#![allow(dead_code, reason = "no test uses all of it")]

use std::{sync::Arc, time::Duration};

use channel::{
    Epoch, EpochClock, EpochTerms, HeaderSigner, Previous, SigningKey, SoftwareSigningKey,
    StaticKey,
};
use cloud::{
    keys::ServiceKeys,
    registry::{Invitation, NewGateway, Registry},
    relay::{Admit, Limits as RelayLimits, RelayConfig, RelayMetrics},
    serve::Service as CloudService,
    sink::sqlite::SqliteSink,
};
use demo::{
    accounts::Accounts,
    process::{Process, ours},
};
use gatewayd::{
    clock::Clock,
    config::{Patterns, ServiceConfig},
    identity::Identity,
    service::{LinkState, Service},
    uplink::{Uplink, addresses::Health},
    watchdog::Progress,
};
use getrandom::SysRng;
use hsm::{Hsm, HsmConfig, swtpm::Swtpm};
use link::Address;
use rand_core::UnwrapErr;
use spool::{Lane, Limits, NewBatch, NewEpoch, Spool};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use wire::{
    Class, ClockState, Measurement, Quality, Reading, Time, Value,
    batch::{Batch, Tally},
    ticket::TicketKey,
};

/// A gateway with a spool, and its service.
pub(crate) struct Rig {
    pub(crate) cloud: Cloud,
    pub(crate) spool: Spool,
    identity: Arc<Identity>,
    epoch: Epoch,
    sequence: u64,
    folder: TempDir,
    _tpm: Swtpm,
}

impl Rig {
    /// With a service that is registered at the relays on these ports.
    pub(crate) async fn start(relay_ports: &[u16]) -> Self {
        let tpm = Swtpm::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hsm = Hsm::start(HsmConfig {
            tpm: tpm.tpm(),
            keys: folder.path().join("keys"),
            timeout: Duration::from_secs(30),
        });
        let keys = hsm.provision(false).await.unwrap();
        let identity = Arc::new(Identity::new(hsm, keys).unwrap());
        let cloud = Cloud::start(relay_ports).await;
        cloud.register(&identity);
        let limits = Limits {
            max_bytes: 256 * 1024 * 1024,
            min_free_bytes: 0,
        };
        let spool = Spool::open(&folder.path().join("spool"), limits).unwrap();
        let epoch = open_epoch(&spool, &identity, &cloud.keys).await;
        Self {
            cloud,
            spool,
            identity,
            epoch,
            sequence: 0,
            folder,
            _tpm: tpm,
        }
    }

    /// Puts so many batches on the gateway's disk, each of four readings of `bytes` in all.
    pub(crate) async fn take(&mut self, batches: u64, bytes: usize) {
        for _ in 0..batches {
            let first = self.sequence;
            let readings = (0..4)
                .map(|part| reading(first + part, bytes / 4))
                .collect();
            self.sequence += 4;
            let batch = Batch {
                readings,
                ..Batch::default()
            };
            let sealed = self.epoch.seal(&batch.encode()).unwrap();
            let tally = Tally {
                sensor_number: 0,
                run_id: RUN,
                first,
                last: first + 3,
                count: 4,
            };
            let batch = NewBatch {
                lane: lane(&self.cloud.keys),
                epoch_id: sealed.epoch_id,
                number: sealed.number,
                chain: sealed.chain(),
                tallies: vec![tally],
                from_ms: 0,
                until_ms: 0,
                bytes: sealed.encode(),
                ledger_ids: Vec::new(),
            };
            self.spool.append(batch).await.unwrap();
        }
    }

    /// Starts the daemon's uplink to the service at these ports of this machine.
    pub(crate) async fn uplink(&self, ports: &[u16]) -> Running {
        let addresses = ports
            .iter()
            .map(|port| format!("relay://127.0.0.1:{port}").parse().unwrap());
        let config = ServiceConfig {
            name: "farm".into(),
            addresses: addresses.collect(),
            key: None,
            sensors: Patterns::default(),
            relay_token: None,
        };
        let service = Arc::new(Service::new(config, self.spool.clone()));
        let pin = self.cloud.keys.statement.fingerprint();
        service.set_peer(pin, Vec::new(), true).await.unwrap();
        let clock = Clock::new().unwrap();
        let (slot, identity) = watch::channel(Some(Arc::clone(&self.identity)));
        let uplink = Uplink::new(
            Arc::clone(&service),
            self.spool.clone(),
            clock.clone(),
            identity,
            Progress::new(clock),
        );
        let stop = CancellationToken::new();
        let task = tokio::spawn(uplink.run(stop.clone()));
        Running {
            service,
            stop,
            task,
            _identity: slot,
        }
    }

    /// Waits until everything is acknowledged; returns how long that took.
    pub(crate) async fn delivered(&self, limit: Duration) -> Duration {
        let began = Instant::now();
        while self.held().await > 0 {
            assert!(began.elapsed() < limit, "not delivered within {limit:?}");
            sleep(POLL_INTERVAL).await;
        }
        began.elapsed()
    }

    /// Waits until fewer batches are held.
    pub(crate) async fn fewer_than(&self, batches: u64, limit: Duration) -> Duration {
        let began = Instant::now();
        while batches <= self.held().await {
            assert!(began.elapsed() < limit, "no ack within {limit:?}");
            sleep(POLL_INTERVAL).await;
        }
        began.elapsed()
    }

    /// Batches that are not acknowledged.
    pub(crate) async fn held(&self) -> u64 {
        let status = self.spool.status().await.unwrap();
        status.lanes.iter().map(|lane| lane.batches).sum()
    }

    /// Every reading that was taken is at the service, once.
    pub(crate) async fn assert_books(&self) {
        let spool = self.spool.status().await.unwrap();
        let held: u64 = spool.lanes.iter().map(|lane| lane.readings).sum();
        let status = serde_json::json!({"spool": {
            "stored_readings": spool.appended_readings,
            "held_readings": held,
            "lost_readings": spool.lost_readings,
        }});
        let books = Accounts::read(&status, &self.cloud.readings()).unwrap();
        assert!(books.hold(), "{books:?}");
        assert_eq!(
            (books.taken, books.delivered, books.in_ledger),
            (self.sequence, self.sequence, 0)
        );
    }
}

/// An uplink at work.
pub(crate) struct Running {
    pub(crate) service: Arc<Service>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    /// An identity that changes ends the session.
    _identity: watch::Sender<Option<Arc<Identity>>>,
}

impl Running {
    /// What happened at the address with this port.
    pub(crate) fn at(&self, port: u16) -> Health {
        let all = self.service.health().all();
        all.into_iter()
            .find(|health| health.address.port() == port)
            .unwrap()
    }

    /// How often the address was charged with this.
    pub(crate) fn charged(&self, port: u16, word: &str) -> u64 {
        self.at(port).failures.get(word).copied().unwrap_or(0)
    }

    /// The port in use or tried last.
    pub(crate) fn port(&self) -> Option<u16> {
        self.service.link().address.map(|address| address.port())
    }

    /// Waits until a session is open at this port.
    pub(crate) async fn connected_at(&self, port: u16, limit: Duration) -> Duration {
        let began = Instant::now();
        while self.port() != Some(port) || self.service.link().state != LinkState::Connected {
            let link = self.service.link();
            assert!(began.elapsed() < limit, "not there in {limit:?}: {link:?}");
            sleep(POLL_INTERVAL).await;
        }
        began.elapsed()
    }

    /// Stops it as the daemon does.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// The service.
pub(crate) struct Cloud {
    pub(crate) keys: Arc<ServiceKeys>,
    registry: Arc<Registry>,
    folder: TempDir,
    _serving: tokio::task::JoinSet<anyhow::Result<()>>,
}

impl Cloud {
    /// Registered at the relays on these ports.
    pub(crate) async fn start(relay_ports: &[u16]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        ServiceKeys::init(folder.path()).unwrap();
        let keys = Arc::new(ServiceKeys::load(folder.path()).unwrap());
        let registry = Arc::new(Registry::open(folder.path()).unwrap());
        let sink = SqliteSink::open(&folder.path().join("readings.db")).unwrap();
        let service = CloudService {
            keys: Arc::clone(&keys),
            registry: Arc::clone(&registry),
            sink: Arc::new(sink),
            sessions_max: 100,
            endorsement_roots: None,
        };
        let relays: Vec<Address> = relay_ports
            .iter()
            .map(|port| format!("relay://127.0.0.1:{port}").parse().unwrap())
            .collect();
        let mut serving = tokio::task::JoinSet::new();
        let stop = CancellationToken::new();
        serving.spawn(cloud::serve::serve(service, None, relays.clone(), stop));
        let pin = keys.statement.fingerprint();
        for relay in &relays {
            // It takes the gateway that asks, which then leaves.
            while link::dial(relay, &pin, None).await.is_err() {
                sleep(POLL_INTERVAL).await;
            }
        }
        Self {
            keys,
            registry,
            folder,
            _serving: serving,
        }
    }

    /// As if the gateway had proved its keys.
    fn register(&self, identity: &Identity) {
        let (id, ek) = ([3; 8], [4; 32]);
        let invitation = Invitation {
            name: "greenhouse-7".into(),
            labels: Vec::new(),
            expires_ms: i64::MAX,
        };
        let key = TicketKey::from_bytes([1; 32]);
        self.registry.invite(&id, &key, &invitation).unwrap();
        let claim = self.registry.claim(&id, &ek).unwrap().unwrap();
        let new = NewGateway {
            fingerprint: *identity.fingerprint().bytes(),
            identity: SigningKey::public(identity),
            channel: StaticKey::public(identity),
            attestation: SigningKey::public(&SoftwareSigningKey::generate(&mut rng())),
            endorsement: ek.to_vec(),
            names: [[0; 34]; 3],
        };
        self.registry.register(&claim, &new).unwrap().unwrap();
    }

    /// When it last admitted a gateway, in milliseconds since 1970.
    pub(crate) fn newest_session(&self) -> i64 {
        let registry = self.folder.path().join("registry.db");
        let registry = rusqlite::Connection::open(registry).unwrap();
        registry
            .query_row("SELECT max(session_ms) FROM gateway", [], |row| row.get(0))
            .unwrap()
    }

    pub(crate) fn readings(&self) -> std::path::PathBuf {
        self.folder.path().join("readings.db")
    }
}

/// An honest relay in this process.
pub(crate) struct Relay {
    pub(crate) port: u16,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        Self::known_as(|port| format!("127.0.0.1:{port}")).await
    }

    async fn known_as(name: impl Fn(u16) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = RelayConfig {
            names: vec![name(port)],
            services: None,
            admit: Admit::Open,
            max_clients: 100,
            limits: RelayLimits::default(),
            metrics: RelayMetrics::default(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(cloud::relay::serve(listener, config, stop));
        Self { port, task }
    }
}

impl Drop for Relay {
    /// As a power cut ends it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An honest relay as a process, so that it can be killed.
pub(crate) struct RelayProcess {
    pub(crate) port: u16,
    folder: TempDir,
    pub(crate) running: Option<Process>,
}

impl RelayProcess {
    pub(crate) async fn start() -> Self {
        let port = demo::site::free_port().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[relay]\nadmit = \"open\"\nlisten = \"127.0.0.1:{port}\"\nnames = [\"127.0.0.1:{port}\"]\n"
        );
        std::fs::write(folder.path().join("gateway-cloud.toml"), config).unwrap();
        let mut relay = Self {
            port,
            folder,
            running: None,
        };
        relay.run().await;
        relay
    }

    /// Starts it (again), and waits until it listens.
    pub(crate) async fn run(&mut self) {
        let mut command = ours("gateway-cloud").unwrap();
        command
            .arg("--config")
            .arg(self.folder.path().join("gateway-cloud.toml"))
            .arg("--state")
            .arg(self.folder.path())
            .arg("relay");
        let mut process = Process::start("relay", self.folder.path(), &mut command).unwrap();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            assert!(process.is_running().unwrap(), "the relay has ended");
            sleep(POLL_INTERVAL).await;
        }
        self.running = Some(process);
    }
}

async fn open_epoch(spool: &Spool, identity: &Identity, keys: &ServiceKeys) -> Epoch {
    let terms = EpochTerms {
        gateway: identity.fingerprint(),
        service: keys.statement.fingerprint(),
        class: Class::Normal.into(),
        chain_id: spool.chain_id(),
        index: 0,
        run_id: RUN,
        previous: None::<Previous>,
        opened: EpochClock {
            boot_id: [2; 16],
            boottime_ms: 3,
            wall_ms: 4,
            clock: 0,
        },
    };
    let (epoch, header) = Epoch::open(terms, &keys.records[0].public(), &mut rng()).unwrap();
    let opened = spool.open_epoch(NewEpoch {
        lane: lane(keys),
        epoch_id: epoch.id(),
        index: 0,
        unsigned_header: header.payload().to_vec(),
    });
    opened.await.unwrap();
    let digest = header.digest(HeaderSigner::Own);
    let signature = identity.sign(digest).await.unwrap();
    let signed = spool.sign_header(epoch.id(), header.finish(signature));
    signed.await.unwrap();
    epoch
}

fn lane(keys: &ServiceKeys) -> Lane {
    Lane {
        service: *keys.statement.fingerprint().bytes(),
        class: Class::Normal,
    }
}

fn reading(sequence: u64, bytes: usize) -> Reading {
    Reading {
        sensor: "camera".into(),
        sensor_number: 0,
        sequence,
        time: Time {
            wall_ms: 1_700_000_000_000,
            boottime_ms: 5000 + sequence,
            clock: ClockState::Synchronised,
        },
        measurement: Measurement {
            channel: "thumbnail".into(),
            value: Value::Bytes(vec![0x17; bytes]),
            unit: None,
            quality: Quality::Ok,
        },
    }
}

pub(crate) fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

const RUN: [u8; 16] = [7; 16];

/// The spool and the link's note cannot be awaited from outside.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
