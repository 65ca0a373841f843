//! What the tests share: a service on loopback with everything but its own process.

#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod authority;
pub(crate) mod gateway;

use std::{io, path::Path, pin::pin, sync::Arc, time::Duration};

use channel::{
    Admission, Fingerprint, InitiatorConfig, KeyError, KeyFuture, PublicKey, Purpose,
    RecordPublicKey, SharedSecret, Statement, StaticKey, Suite,
};
use cloud::{
    keys::ServiceKeys,
    registry::Registry,
    roots::EndorsementRoots,
    serve::{self, Service},
    sink::sqlite::SqliteSink,
};
use futures::future::BoxFuture;
use getrandom::SysRng;
use link::{Address, KeepStatement, LinkError, Streams};
use rand_core::UnwrapErr;
use rusqlite::{Connection, types::FromSql};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// A service on loopback; its state goes with it.
pub(crate) struct Cloud {
    pub(crate) keys: Arc<ServiceKeys>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) sink: Arc<SqliteSink>,
    pub(crate) address: Address,
    pub(crate) stop: CancellationToken,
    pub(crate) serving: JoinHandle<anyhow::Result<()>>,
    folder: Arc<TempDir>,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::start_with(Vec::new(), 100).await
    }

    pub(crate) async fn start_with(relays: Vec<Address>, sessions_max: usize) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        ServiceKeys::init(folder.path()).unwrap();
        Self::start_in(folder, relays, sessions_max).await
    }

    /// One that enrols only TPMs of these vendors.
    pub(crate) async fn start_trusting(roots: EndorsementRoots) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        ServiceKeys::init(folder.path()).unwrap();
        Self::start_as(folder, Vec::new(), 100, Some(Arc::new(roots))).await
    }

    /// Cuts the process off wherever it is, and starts another on what is on the disk.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| ()).await
    }

    /// The same, with something done to what is on the disk in between.
    pub(crate) async fn restart_after(mut self, meanwhile: impl FnOnce(&Path)) -> Self {
        self.serving.abort();
        // Once it is gone, nobody writes.
        let _ = (&mut self.serving).await;
        let folder = Arc::clone(&self.folder);
        drop(self);
        // Sessions that were cut off let go of the database a moment later; whoever is the last to
        // close it removes its log.
        while folder.path().join(format!("{READINGS}-wal")).exists() {
            tokio::task::yield_now().await;
        }
        meanwhile(folder.path());
        Self::start_in(folder, Vec::new(), 100).await
    }

    /// A second instance on what is on the disk, with connections of its own to the databases.
    pub(crate) async fn beside(&self) -> Self {
        Self::start_in(Arc::clone(&self.folder), Vec::new(), 100).await
    }

    async fn start_in(folder: Arc<TempDir>, relays: Vec<Address>, sessions_max: usize) -> Self {
        Self::start_as(folder, relays, sessions_max, None).await
    }

    async fn start_as(
        folder: Arc<TempDir>,
        relays: Vec<Address>,
        sessions_max: usize,
        endorsement_roots: Option<Arc<EndorsementRoots>>,
    ) -> Self {
        let keys = Arc::new(ServiceKeys::load(folder.path()).unwrap());
        let registry = Arc::new(Registry::open(folder.path()).unwrap());
        let sink = Arc::new(SqliteSink::open(&folder.path().join(READINGS)).unwrap());
        let service = Service {
            keys: Arc::clone(&keys),
            registry: Arc::clone(&registry),
            sink: Arc::clone(&sink),
            sessions_max,
            endorsement_roots,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve::serve(service, Some(listener), relays, stop.clone()));
        Self {
            keys,
            registry,
            sink,
            address: format!("tcp://127.0.0.1:{port}").parse().unwrap(),
            stop,
            serving,
            folder,
        }
    }

    /// Its state folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.keys.statement.fingerprint()
    }

    pub(crate) fn record_key(&self) -> RecordPublicKey {
        self.keys.records[0].public()
    }

    /// A session with this key.
    pub(crate) async fn connect(
        &self,
        key: &dyn StaticKey,
        purpose: Purpose,
    ) -> Result<Session, LinkError> {
        self.connect_at(&self.address, key, purpose).await
    }

    /// The same at another address.
    pub(crate) async fn connect_at(
        &self,
        address: &Address,
        key: &dyn StaticKey,
        purpose: Purpose,
    ) -> Result<Session, LinkError> {
        let config = InitiatorConfig {
            suite: Suite::ChaChaPoly,
            pin: self.fingerprint(),
            held: None,
            static_key: key.public(),
            purpose,
            version: "test".into(),
        };
        let (asks, mut asked) = mpsc::unbounded_channel();
        let lent: &'static Lent = Box::leak(Box::new(Lent {
            public: key.public(),
            asks,
        }));
        let mut connecting = pin!(link::connect(address, config, lent, &Shelf));
        let link = loop {
            tokio::select! {
                link = &mut connecting => break link?,
                Some((peer, answer)) = asked.recv() => drop(answer.send(key.ecdh(peer).await)),
            }
        };
        let h = link.handshake_hash;
        let (driver, streams) = link.split();
        let driving = tokio::spawn(driver.run());
        Ok(Session {
            h,
            streams,
            driving,
        })
    }

    /// One value of what is stored.
    pub(crate) fn reading<T: FromSql>(&self, query: &str) -> T {
        self.query(READINGS, query)
    }

    /// One value of the registry.
    pub(crate) fn registered<T: FromSql>(&self, query: &str) -> T {
        self.query(REGISTRY, query)
    }

    fn query<T: FromSql>(&self, file: &str, query: &str) -> T {
        let database = Connection::open(self.folder.path().join(file)).unwrap();
        database.query_row(query, [], |row| row.get(0)).unwrap()
    }

    /// Keeps everybody else from writing until this is dropped.
    pub(crate) fn hold(&self, file: &str) -> Connection {
        let database = Connection::open(self.folder.path().join(file)).unwrap();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        database
    }

    /// Changes the readings or the registry behind the service's back.
    pub(crate) fn change(&self, file: &str, statement: &str) {
        let database = Connection::open(self.folder.path().join(file)).unwrap();
        database.busy_timeout(PATIENCE).unwrap();
        database.execute_batch(statement).unwrap();
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A gateway's end of a session.
pub(crate) struct Session {
    pub(crate) h: [u8; 32],
    pub(crate) streams: Streams,
    driving: JoinHandle<Result<Admission, LinkError>>,
}

impl Session {
    /// Why the service has closed it.
    pub(crate) async fn ended(self) -> Admission {
        let end = tokio::time::timeout(PATIENCE, self.driving).await;
        end.expect("the session does not end").unwrap().unwrap()
    }

    /// Cuts it.
    pub(crate) fn cut(self) {
        self.driving.abort();
    }
}

struct Shelf;

impl KeepStatement for Shelf {
    fn keep<'a>(&'a self, _statement: &'a Statement) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

pub(crate) fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

pub(crate) const READINGS: &str = "readings.db";

pub(crate) const REGISTRY: &str = "registry.db";

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The key of a test, lent for the handshake, to a driver that outlives it.
struct Lent {
    public: PublicKey,
    asks: mpsc::UnboundedSender<(PublicKey, oneshot::Sender<Result<SharedSecret, KeyError>>)>,
}

impl StaticKey for Lent {
    fn public(&self) -> PublicKey {
        self.public
    }

    fn ecdh(&self, peer: PublicKey) -> KeyFuture<'_, SharedSecret> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let gone = |_| KeyError::new("the test has its key back");
            self.asks.send((peer, answer)).map_err(|_| gone(()))?;
            answered.await.map_err(|_| gone(()))?
        })
    }
}
