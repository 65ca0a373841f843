//! A gateway that uploads, and the service's end, which says what the test says.

use std::sync::Arc;

use channel::{
    Admission, Epoch, InitiatorConfig, Purpose, ResponderConfig, SealedBatch, SoftwareStaticKey,
    StaticKey, Suite,
};
use futures::future::BoxFuture;
use link::{Address, PeerHello, Registry, StreamName};
use spool::NewBatch;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use wire::batch::Tally;

use super::super::*;
use crate::fixture::{Keys, new_batch, open_spool, service};

/// A gateway's spool, and whom it delivers to.
pub(super) struct Site {
    pub(super) keys: Keys,
    pub(super) spool: Spool,
    pub(super) service: Arc<Service>,
    memory: Arc<Mutex<Memory>>,
    _folder: TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = open_spool(folder.path());
        Self {
            keys: Keys::new(),
            service: Arc::new(service(&spool)),
            spool,
            memory: Arc::default(),
            _folder: folder,
        }
    }

    pub(super) fn lane(&self, class: Class) -> Lane {
        self.keys.lane(class)
    }

    pub(super) async fn open_epoch(&self, class: Class, signed: bool) -> Epoch {
        self.keys.open_epoch(&self.spool, class, signed).await
    }

    pub(super) async fn sign(&self, epoch: &Epoch) {
        self.keys.sign_header(&self.spool, epoch).await;
    }

    pub(super) fn new_batch(&self, sealed: &SealedBatch) -> NewBatch {
        let tally = Tally {
            sensor_number: 0,
            run_id: [1; 16],
            first: u64::from(sealed.number),
            last: u64::from(sealed.number),
            count: 1,
        };
        new_batch(self.lane(Class::Normal), sealed, vec![tally])
    }

    /// Seals one reading's worth of `bytes` bytes into the lane of the epoch.
    pub(super) async fn append(&self, epoch: &mut Epoch, bytes: usize) {
        let sealed = epoch.seal(&vec![0; bytes]).unwrap();
        for &class in Class::ALL {
            let newest = self.spool.lane(self.lane(class)).await.unwrap().newest;
            if newest.is_some_and(|newest| newest.epoch_id == epoch.id()) {
                let mut batch = self.new_batch(&sealed);
                batch.lane = self.lane(class);
                self.spool.append(batch).await.unwrap();
            }
        }
    }

    pub(super) async fn held(&self, class: Class) -> u64 {
        self.spool.lane(self.lane(class)).await.unwrap().batches
    }

    pub(super) fn known(&self, epoch: &Epoch, next: u32) -> LaneKnown {
        LaneKnown {
            class: Class::Normal,
            chain_id: self.spool.chain_id(),
            index: 0,
            epoch_id: epoch.id(),
            next,
        }
    }

    /// Connects both ends and lets the upload run.
    pub(super) async fn start(&self) -> Far {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let config = InitiatorConfig {
            suite: Suite::ChaChaPoly,
            pin: self.keys.pin(),
            held: None,
            static_key: self.keys.gateway_channel.public(),
            purpose: Purpose::Deliver,
            version: "test".into(),
        };
        let answer = ResponderConfig {
            statement: self.keys.statement(1),
            static_key: self.keys.channel.public(),
        };
        // For the rest of the program, since the drivers are spawned.
        let shelf: &'static Arc<Service> = Box::leak(Box::new(Arc::clone(&self.service)));
        let [near_key, far_key] = [&self.keys.gateway_channel, &self.keys.channel].map(|key| {
            let key = SoftwareStaticKey::from_bytes(&*key.to_bytes()).unwrap();
            &*Box::leak(Box::new(key))
        });
        let near = link::connect(&address, config, near_key, &**shelf);
        let (near, far) = tokio::join!(near, async {
            let (stream, _) = listener.accept().await.unwrap();
            link::accept(stream, answer, far_key, &Open).await
        });
        let (near_driver, near) = near.unwrap().split();
        let (far_driver, far) = far.unwrap().0.split();
        tokio::spawn(near_driver.run());
        tokio::spawn(far_driver.run());
        let ends = Ends {
            service: *self.keys.pin().bytes(),
            gateway: *self.keys.gateway().bytes(),
        };
        let (service, spool) = (Arc::clone(&self.service), self.spool.clone());
        let memory = Arc::clone(&self.memory);
        let upload = tokio::spawn(async move {
            let clock = Clock::new().unwrap();
            let messages = near.open(StreamName::Upload).await?;
            let upload = Upload::new(&service, &spool, &clock, &ends, &memory);
            upload.run(messages).await
        });
        let (name, messages) = far.accept().await.unwrap();
        assert_eq!(name, StreamName::Upload);
        Far {
            messages,
            upload,
            _streams: far,
        }
    }
}

/// Lets everybody in.
struct Open;

impl Registry for Open {
    fn admit<'a>(&'a self, _peer: &'a PeerHello) -> BoxFuture<'a, Admission> {
        Box::pin(async { Admission::Ok })
    }
}

/// The service's end, which says what the test says.
pub(super) struct Far {
    pub(super) messages: Messages,
    pub(super) upload: JoinHandle<Result<(), Failure>>,
    _streams: link::Streams,
}

impl Far {
    pub(super) async fn hear(&mut self) -> ToService {
        let bytes = self.messages.recv().await.unwrap().unwrap();
        ToService::decode(&bytes).unwrap()
    }

    pub(super) async fn say(&mut self, message: &ToGateway) {
        self.messages.send(&message.encode()).await.unwrap();
    }

    /// With the smallest window, 64 KiB.
    pub(super) async fn welcome(&mut self, lanes: Vec<LaneKnown>) {
        self.say(&ToGateway::Welcome { window: 1, lanes }).await;
    }

    pub(super) async fn ack(&mut self, epoch: &Epoch, next: u32) {
        let epoch_id = epoch.id();
        self.say(&ToGateway::Ack { epoch_id, next }).await;
    }

    pub(super) async fn batch(&mut self) -> SealedBatch {
        let heard = self.hear().await;
        let ToService::Batch(bytes) = heard else {
            panic!("{heard:?}");
        };
        SealedBatch::decode(&bytes).unwrap()
    }

    /// The numbers of the next batches.
    pub(super) async fn batches(&mut self, count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(self.batch().await.number);
        }
        numbers
    }

    /// An absence has no event to wait for: what is wrongly sent comes within a moment.
    pub(super) async fn hears_nothing(&mut self) {
        let moment = std::time::Duration::from_millis(200);
        let heard = tokio::time::timeout(moment, self.messages.recv()).await;
        assert!(heard.is_err());
    }

    pub(super) async fn end(self) -> Result<(), Failure> {
        self.upload.await.unwrap()
    }
}
