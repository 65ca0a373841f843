//! The upload against a scripted service, over a real link on loopback.

use std::sync::Arc;

use channel::{
    Admission, Epoch, EpochClock, EpochTerms, HeaderSigner, InitiatorConfig, Purpose,
    ResponderConfig, SealedBatch, SigningKey, SoftwareStaticKey, StaticKey, Suite,
};
use futures::future::BoxFuture;
use link::{Address, PeerHello, Registry, StreamName};
use spool::{NewBatch, NewEpoch};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use wire::batch::Tally;

use super::*;
use crate::fixture::{Keys, open_spool, rng, service};

#[tokio::test]
async fn acks_let_the_spool_forget_and_nothing_else_does() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, 10).await;
    }
    let mut far = site.start().await;
    let ToService::Hello(offers) = far.hear().await else {
        panic!("it speaks without a greeting");
    };
    assert_eq!(offers[1].oldest, Some((epoch.id(), 0)));
    assert_eq!(offers[0].oldest, None);
    far.welcome(vec![]).await;
    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batches(3).await, [0, 1, 2]);
    assert_eq!(site.held(Class::Normal).await, 3);

    far.ack(&epoch, 2).await;
    // Written down when the spool has forgotten.
    while site.service.link().acked_readings != 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.held(Class::Normal).await, 1);
    assert!(site.service.link().last_ack_ms.is_some());
    // What comes later goes without a second header.
    site.append(&mut epoch, 10).await;
    assert_eq!(far.batches(1).await, [3]);
}

#[tokio::test]
async fn the_welcome_lets_the_spool_forget_and_what_it_lacks_is_sent() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, 10).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![site.known(&epoch, 2)]).await;

    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batches(1).await, [2]);
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn an_ack_beyond_what_was_sent_breaks_the_rules() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    far.ack(&epoch, 2).await;

    assert!(matches!(far.end().await, Err(Failure::Protocol(_))));
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn an_ack_may_cover_what_left_by_hand_and_no_more() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..4 {
        site.append(&mut epoch, 60_000).await;
    }
    site.spool.note_exported(epoch.id(), 3).await.unwrap();
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    far.ack(&epoch, 3).await;
    assert_eq!(far.batches(1).await, [3]);
    assert_eq!(site.held(Class::Normal).await, 1);

    far.ack(&epoch, 5).await;
    assert!(matches!(far.end().await, Err(Failure::Protocol(_))));
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn an_ack_for_an_epoch_that_nobody_knows_changes_nothing() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.say(&ToGateway::Ack {
        epoch_id: [7; 32],
        next: 9,
    })
    .await;

    site.append(&mut epoch, 10).await;

    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn numbers_that_are_gone_are_declared_before_the_first_that_is_held() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    epoch
        .seal(b"one that was lost before it was stored")
        .unwrap();
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    far.hear().await;
    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: 1,
    };
    assert_eq!(far.hear().await, below);
    assert_eq!(far.batches(1).await, [1]);
}

#[tokio::test]
async fn what_is_evicted_during_an_upload_is_declared_and_the_rest_goes_on() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Bulk, true).await;
    for _ in 0..20 {
        site.append(&mut epoch, 60_000).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    // Another service's critical data needs the room.
    let other = Lane {
        service: [9; 32],
        class: Class::Critical,
    };
    let rival = NewEpoch {
        lane: other,
        epoch_id: [9; 32],
        index: 0,
        unsigned_header: vec![0; 100],
    };
    site.spool.open_epoch(rival).await.unwrap();
    let mut number = 0;
    while site.held(Class::Bulk).await > 10 {
        let batch = NewBatch {
            lane: other,
            epoch_id: [9; 32],
            number,
            chain: [0; 32],
            tallies: Vec::new(),
            from_ms: 0,
            until_ms: 0,
            bytes: vec![0; 200_000],
            ledger_ids: Vec::new(),
        };
        site.spool.append(batch).await.unwrap();
        number += 1;
    }
    let oldest = site.spool.lane(site.lane(Class::Bulk)).await.unwrap();
    let (_, first) = oldest.oldest.unwrap();
    assert!(1 < first);
    far.ack(&epoch, 1).await;

    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: first,
    };
    assert_eq!(far.hear().await, below);
    assert_eq!(far.batches(1).await, [first]);
    // Declared gone, so the ack may pass over it; and the ledger has it.
    far.ack(&epoch, first + 1).await;
    assert_eq!(far.batches(1).await, [first + 1]);
    let ledger = site.spool.ledger_open(*site.keys.pin().bytes()).await;
    assert_eq!(ledger.unwrap()[0].batches[0].last, first - 1);
}

#[tokio::test]
async fn a_service_that_lags_behind_what_was_forgotten_is_told_so() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, 10).await;
    }
    let lane = site.lane(Class::Normal);
    site.spool.ack(lane, epoch.id(), 3).await.unwrap();
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![site.known(&epoch, 1)]).await;

    assert!(matches!(far.hear().await, ToService::Header(_)));
    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: 3,
    };
    assert_eq!(far.hear().await, below);
    // Its answer is no breach.
    far.ack(&epoch, 3).await;
    site.append(&mut epoch, 10).await;
    assert_eq!(far.batches(1).await, [3]);
}

#[tokio::test]
async fn no_more_than_the_window_is_on_its_way() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..5 {
        site.append(&mut epoch, 30_000).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;

    assert_eq!(far.batches(2).await, [0, 1]);
    far.hears_nothing().await;
    far.ack(&epoch, 1).await;
    assert_eq!(far.batches(1).await, [2]);
    far.hears_nothing().await;
}

#[tokio::test]
async fn a_batch_larger_than_the_window_travels_alone() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 100_000).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;

    assert_eq!(far.batches(1).await, [0]);
    far.hears_nothing().await;
    far.ack(&epoch, 1).await;
    assert_eq!(far.batches(1).await, [1]);
}

#[tokio::test]
async fn critical_goes_first_and_a_header_that_is_not_signed_holds_up_its_lane_only() {
    let site = Site::new();
    let mut bulk = site.open_epoch(Class::Bulk, true).await;
    let mut normal = site.open_epoch(Class::Normal, false).await;
    let mut critical = site.open_epoch(Class::Critical, true).await;
    for epoch in [&mut bulk, &mut normal, &mut critical] {
        site.append(epoch, 10).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    for epoch in [&critical, &bulk] {
        assert!(matches!(far.hear().await, ToService::Header(_)));
        assert_eq!(far.batch().await.epoch_id, epoch.id());
    }
    far.hears_nothing().await;
    site.sign(&normal).await;
    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batch().await.epoch_id, normal.id());
}

/// An epoch lives an hour, so two hours leave three that nobody has signed for.
#[tokio::test]
async fn two_hours_of_epochs_without_a_tpm_wait_and_leave_in_order_once_it_signs() {
    let site = Site::new();
    let mut epochs = Vec::new();
    for _ in 0..3 {
        let mut epoch = site.open_epoch(Class::Normal, false).await;
        site.append(&mut epoch, 10).await;
        site.append(&mut epoch, 10).await;
        epochs.push(epoch);
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hears_nothing().await;
    assert_eq!(site.held(Class::Normal).await, 6);

    // The TPM is back. The newest first, which must not overtake.
    for epoch in epochs.iter().rev() {
        site.sign(epoch).await;
    }
    for epoch in &epochs {
        assert!(matches!(far.hear().await, ToService::Header(_)));
        for number in 0..2 {
            let batch = far.batch().await;
            assert_eq!((batch.epoch_id, batch.number), (epoch.id(), number));
        }
    }
}

#[tokio::test]
async fn an_epoch_that_cannot_be_opened_is_set_aside_and_the_lane_goes_on() {
    let site = Site::new();
    let mut lost = site.open_epoch(Class::Normal, true).await;
    site.append(&mut lost, 60_000).await;
    site.append(&mut lost, 60_000).await;
    let mut next = site.open_epoch(Class::Normal, true).await;
    site.append(&mut next, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, lost.id());

    far.say(&problem(&lost, ProblemCode::Unopenable)).await;

    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batch().await.epoch_id, next.id());
    // Kept until it is evicted.
    assert_eq!(site.held(Class::Normal).await, 3);
}

#[tokio::test]
async fn a_problem_with_an_epoch_that_was_not_sent_sets_nothing_aside() {
    let site = Site::new();
    let mut first = site.open_epoch(Class::Normal, true).await;
    site.append(&mut first, 60_000).await;
    let mut other = site.open_epoch(Class::Normal, true).await;
    site.append(&mut other, 60_000).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    far.say(&problem(&other, ProblemCode::Unopenable)).await;
    far.ack(&first, 1).await;

    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, other.id());
}

#[tokio::test]
async fn a_batch_called_altered_is_sent_once_more_and_then_set_aside() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    far.batch().await;
    far.say(&problem(&epoch, ProblemCode::Altered)).await;
    assert!(matches!(far.end().await, Err(Failure::Protocol(_))));

    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    far.batch().await;
    far.say(&problem(&epoch, ProblemCode::Altered)).await;

    let mut next = site.open_epoch(Class::Normal, true).await;
    site.append(&mut next, 10).await;
    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, next.id());
}

#[tokio::test]
async fn a_service_that_is_not_ready_is_left_alone_and_keeps_its_place() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    far.batch().await;

    far.say(&problem(&epoch, ProblemCode::Later)).await;

    assert!(matches!(far.end().await, Err(Failure::Later)));
    let oldest = site
        .spool
        .lane(site.lane(Class::Normal))
        .await
        .unwrap()
        .oldest;
    assert_eq!(oldest, Some((epoch.id(), 0)));
}

#[tokio::test]
async fn a_batch_that_the_disk_has_damaged_is_not_sent_but_declared_and_in_the_ledger() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    let sealed = epoch.seal(b"a").unwrap();
    let mut damaged = site.new_batch(&sealed);
    *damaged.bytes.last_mut().unwrap() ^= 1;
    site.spool.append(damaged).await.unwrap();
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    far.hear().await;
    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: 1,
    };
    assert_eq!(far.hear().await, below);
    assert_eq!(far.batches(1).await, [1]);
    let ledger = site.spool.ledger_open(*site.keys.pin().bytes()).await;
    let entry = ledger.unwrap().remove(0);
    assert_eq!(entry.reason, wire::batch::LossReason::Damaged);
    assert_eq!((entry.batches[0].first, entry.batches[0].last), (0, 0));
}

#[tokio::test]
async fn an_epoch_of_an_earlier_identity_is_not_sent() {
    let mut site = Site::new();
    let now = std::mem::replace(&mut site.keys.gateway, Keys::new().gateway);
    let mut old = site.open_epoch(Class::Normal, true).await;
    site.append(&mut old, 10).await;
    site.keys.gateway = now;
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, epoch.id());
    assert_eq!(site.held(Class::Normal).await, 2);
}

#[tokio::test]
async fn a_service_that_knows_more_than_the_spool_is_reported() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    let mut newer = site.known(&epoch, 0);
    newer.epoch_id = [9; 32];
    far.welcome(vec![newer]).await;
    far.hear().await;

    assert!(site.service.link().problem.unwrap().contains("old copy"));
    // Recording goes on being delivered: the service keeps both.
    assert_eq!(far.batches(1).await, [0]);
}

fn problem(epoch: &Epoch, code: ProblemCode) -> ToGateway {
    ToGateway::Problem {
        epoch_id: epoch.id(),
        number: Some(0),
        code,
    }
}

/// A gateway's spool, and whom it delivers to.
struct Site {
    keys: Keys,
    spool: Spool,
    service: Arc<Service>,
    memory: Arc<Mutex<Memory>>,
    _folder: TempDir,
}

impl Site {
    fn new() -> Self {
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

    fn lane(&self, class: Class) -> Lane {
        Lane {
            service: *self.keys.pin().bytes(),
            class,
        }
    }

    /// The lane's next epoch.
    async fn open_epoch(&self, class: Class, signed: bool) -> Epoch {
        let lane = self.lane(class);
        let newest = self.spool.lane(lane).await.unwrap().newest;
        let index = newest.as_ref().map_or(0, |newest| newest.index + 1);
        let terms = EpochTerms {
            gateway: self.keys.gateway(),
            service: self.keys.pin(),
            class: class.into(),
            chain_id: self.spool.chain_id(),
            index,
            run_id: [1; 16],
            previous: newest.map(|newest| channel::Previous {
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
        let (epoch, header) = Epoch::open(terms, &self.keys.record.public(), &mut rng()).unwrap();
        let opened = self.spool.open_epoch(NewEpoch {
            lane,
            epoch_id: epoch.id(),
            index,
            unsigned_header: header.payload().to_vec(),
        });
        opened.await.unwrap();
        if signed {
            self.sign(&epoch).await;
        }
        epoch
    }

    async fn sign(&self, epoch: &Epoch) {
        let header = self.spool.header(epoch.id()).await.unwrap();
        let Some(spool::StoredHeader::Unsigned(payload)) = header else {
            panic!("no header waits");
        };
        let header = channel::UnsignedHeader::from_payload(&payload).unwrap();
        let digest = header.digest(HeaderSigner::Own);
        let signature = self.keys.gateway.sign(digest).await.unwrap();
        let signed = self.spool.sign_header(epoch.id(), header.finish(signature));
        signed.await.unwrap();
    }

    fn new_batch(&self, sealed: &SealedBatch) -> NewBatch {
        NewBatch {
            lane: self.lane(Class::Normal),
            epoch_id: sealed.epoch_id,
            number: sealed.number,
            chain: sealed.chain(),
            tallies: vec![Tally {
                sensor_number: 0,
                run_id: [1; 16],
                first: u64::from(sealed.number),
                last: u64::from(sealed.number),
                count: 1,
            }],
            from_ms: 0,
            until_ms: 0,
            bytes: sealed.encode(),
            ledger_ids: Vec::new(),
        }
    }

    /// Seals one reading's worth of `bytes` bytes into the lane of the epoch.
    async fn append(&self, epoch: &mut Epoch, bytes: usize) {
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

    async fn held(&self, class: Class) -> u64 {
        self.spool.lane(self.lane(class)).await.unwrap().batches
    }

    fn known(&self, epoch: &Epoch, next: u32) -> LaneKnown {
        LaneKnown {
            class: Class::Normal,
            chain_id: self.spool.chain_id(),
            index: 0,
            epoch_id: epoch.id(),
            next,
        }
    }

    /// Connects both ends and lets the upload run.
    async fn start(&self) -> Far {
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
struct Far {
    messages: Messages,
    upload: JoinHandle<Result<(), Failure>>,
    _streams: link::Streams,
}

impl Far {
    async fn hear(&mut self) -> ToService {
        let bytes = self.messages.recv().await.unwrap().unwrap();
        ToService::decode(&bytes).unwrap()
    }

    async fn say(&mut self, message: &ToGateway) {
        self.messages.send(&message.encode()).await.unwrap();
    }

    /// With the smallest window, 64 KiB.
    async fn welcome(&mut self, lanes: Vec<LaneKnown>) {
        self.say(&ToGateway::Welcome { window: 1, lanes }).await;
    }

    async fn ack(&mut self, epoch: &Epoch, next: u32) {
        let epoch_id = epoch.id();
        self.say(&ToGateway::Ack { epoch_id, next }).await;
    }

    async fn batch(&mut self) -> SealedBatch {
        let heard = self.hear().await;
        let ToService::Batch(bytes) = heard else {
            panic!("{heard:?}");
        };
        SealedBatch::decode(&bytes).unwrap()
    }

    /// The numbers of the next batches.
    async fn batches(&mut self, count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(self.batch().await.number);
        }
        numbers
    }

    /// An absence has no event to wait for: what is wrongly sent comes within a moment.
    async fn hears_nothing(&mut self) {
        let moment = std::time::Duration::from_millis(200);
        let heard = tokio::time::timeout(moment, self.messages.recv()).await;
        assert!(heard.is_err());
    }

    async fn end(self) -> Result<(), Failure> {
        self.upload.await.unwrap()
    }
}
