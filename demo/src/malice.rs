//! A relay that cannot be trusted: what protocol.md promises holds against it.
//!
//! It stands before an honest relay, under its own address, and does to each connection what its
//! plan says. It sees what a relay sees, knows where records begin, and keeps what passed.

mod frames;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};
use wire::relay::{Answer, ClientMessage, GREETING_BYTES, Greeting, RelayCode};

use crate::weather::Dice;
use frames::Frames;

/// What is done to one connection of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Nothing: it is passed on, and recorded.
    None,
    /// It is closed before a word.
    HangUp,
    /// It is held without a word.
    MuteBeforeOk,
    /// It is refused, whatever the relay behind would say.
    Refuse(RelayCode),
    /// The gateway is connected to the service with this fingerprint.
    Elsewhere([u8; 32]),
    /// After `ok` both sides are held, and nothing passes.
    Mute,
    /// After `ok` the gateway gets random bytes instead of the service's.
    Garbage,
    /// After `ok` either side gets random bytes for as long as it takes them.
    Flood,
    /// After `ok` the gateway gets what a service said in an earlier session.
    ReplayToGateway,
    /// One frame is tampered with; the rest passes.
    Tamper(Tamper, Way, u32),
}

/// What is done to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// It is left out.
    Drop,
    /// It comes twice.
    Repeat,
    /// It comes after the one that follows it.
    Swap,
    /// One of its bits is flipped, its length excepted.
    Alter,
    /// Its length is another.
    Stretch,
    /// It ends in its middle, and with it the connection.
    Cut,
}

/// In which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the gateway to the service. Frame 0 is the preamble, 1 message 1, 2 message 3.
    ToService,
    /// From the service to the gateway. Frame 0 is message 2, 1 the admission.
    ToGateway,
}

/// A relay that does what it was told to. Dropping it closes everything.
pub struct MaliciousRelay {
    /// Where gateways find it.
    pub port: u16,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

struct Shared {
    /// The honest relay.
    behind: u16,
    /// For the next connections, one each; then they are passed on.
    plan: Mutex<VecDeque<Misdeed>>,
    recording: Mutex<Recording>,
    connections: AtomicU64,
    dice: Mutex<Dice>,
}

/// What passed in the first connection that was passed on.
#[derive(Clone, Default)]
struct Recording {
    hello: Vec<u8>,
    to_service: Vec<u8>,
    to_gateway: Vec<u8>,
}

impl MaliciousRelay {
    /// Stands before the relay at `behind`, a port of this machine; `plan` is for its connections,
    /// one after the other. What is left to chance depends on `seed`.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn start(
        behind: u16,
        plan: impl IntoIterator<Item = Misdeed>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            behind,
            plan: Mutex::new(plan.into_iter().collect()),
            recording: Mutex::default(),
            connections: AtomicU64::new(0),
            dice: Mutex::new(Dice::new(seed)),
        });
        let serving = Arc::clone(&shared);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let misdeed = lock(&serving.plan).pop_front().unwrap_or(Misdeed::None);
                let shared = Arc::clone(&serving);
                connections.spawn(async move {
                    // Either side may leave whenever it likes.
                    let _ = connection(client, misdeed, &shared).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            port,
            shared,
            _task: task,
        })
    }

    /// What is done to the next connections.
    pub fn plan(&self, plan: impl IntoIterator<Item = Misdeed>) {
        *lock(&self.shared.plan) = plan.into_iter().collect();
    }

    /// Gateways' connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Says to the service, through the honest relay, what a gateway said in an earlier session;
    /// returns the bytes with which the service answered until it hung up.
    ///
    /// # Errors
    ///
    /// If the relay does not let it through.
    pub async fn replay(&self) -> anyhow::Result<usize> {
        let recording = lock(&self.shared.recording).clone();
        let mut service = TcpStream::connect(("127.0.0.1", self.shared.behind)).await?;
        service.read_exact(&mut [0; GREETING_BYTES]).await?;
        write_message(&mut service, &recording.hello).await?;
        let answer = Answer::decode(&read_message(&mut service).await?)?;
        anyhow::ensure!(
            answer.code == RelayCode::Ok,
            "the relay says {}",
            answer.code
        );
        // The service answers the first message; then comes all the rest.
        let (first, rest) = frames::split_first(&recording.to_service);
        service.write_all(first).await?;
        let mut answer = read_message(&mut service).await?;
        let (mut from_service, mut to_service) = service.into_split();
        let speaking = to_service.write_all(rest);
        let hearing = from_service.read_to_end(&mut answer);
        // A service that hangs up on it makes either fail.
        let _ = tokio::join!(speaking, hearing);
        Ok(answer.len())
    }
}

async fn connection(
    mut client: TcpStream,
    misdeed: Misdeed,
    shared: &Shared,
) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    match misdeed {
        Misdeed::HangUp => return Ok(()),
        Misdeed::MuteBeforeOk => return hold(&mut client).await,
        Misdeed::Refuse(code) => {
            client
                .write_all(&Greeting { nonce: [7; 32] }.encode())
                .await?;
            read_message(&mut client).await?;
            return write_message(&mut client, &Answer { code }.encode()).await;
        }
        Misdeed::None
        | Misdeed::Elsewhere(_)
        | Misdeed::Mute
        | Misdeed::Garbage
        | Misdeed::Flood
        | Misdeed::ReplayToGateway
        | Misdeed::Tamper(..) => {}
    }
    let mut service = TcpStream::connect(("127.0.0.1", shared.behind)).await?;
    service.set_nodelay(true)?;
    let mut greeting = [0; GREETING_BYTES];
    service.read_exact(&mut greeting).await?;
    client.write_all(&greeting).await?;
    let mut hello = read_message(&mut client).await?;
    if let Misdeed::Elsewhere(service) = misdeed {
        hello = ClientMessage::Hello {
            service,
            token: None,
        }
        .encode();
    }
    write_message(&mut service, &hello).await?;
    let answer = read_message(&mut service).await?;
    write_message(&mut client, &answer).await?;
    match misdeed {
        Misdeed::Mute => hold(&mut client).await,
        Misdeed::Garbage => {
            let noise = noise(shared, 64 * 1024);
            client.write_all(&noise).await?;
            hold(&mut client).await
        }
        Misdeed::Flood => flood(client, service, shared).await,
        Misdeed::ReplayToGateway => {
            let said = lock(&shared.recording).to_gateway.clone();
            client.write_all(&said).await?;
            hold(&mut client).await
        }
        Misdeed::Tamper(tamper, way, at) => {
            tampered(client, service, (tamper, way, at), shared).await
        }
        Misdeed::None
        | Misdeed::Elsewhere(_)
        | Misdeed::HangUp
        | Misdeed::MuteBeforeOk
        | Misdeed::Refuse(_) => recorded(client, service, hello, shared).await,
    }
}

/// Takes what comes until the other side leaves.
async fn hold(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut sink = [0; 4096];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

async fn flood(client: TcpStream, service: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    let noise = noise(shared, 32 * 1024);
    let pour = async |mut into: TcpStream| while into.write_all(&noise).await.is_ok() {};
    tokio::join!(pour(client), pour(service));
    Ok(())
}

/// Passes everything on; the first such connection is kept.
async fn recorded(
    client: TcpStream,
    service: TcpStream,
    hello: Vec<u8>,
    shared: &Shared,
) -> anyhow::Result<()> {
    let first = {
        let mut recording = lock(&shared.recording);
        let first = recording.hello.is_empty();
        if first {
            recording.hello = hello;
        }
        first
    };
    let keep = |part: fn(&mut Recording) -> &mut Vec<u8>| {
        move |bytes: &[u8]| {
            let mut recording = lock(&shared.recording);
            let kept = part(&mut recording);
            if first && kept.len() < RECORDED_BYTES_MAX {
                kept.extend_from_slice(bytes);
            }
        }
    };
    let (from_client, to_client) = client.into_split();
    let (from_service, to_service) = service.into_split();
    tokio::join!(
        pass(from_client, to_service, keep(|kept| &mut kept.to_service)),
        pass(from_service, to_client, keep(|kept| &mut kept.to_gateway)),
    );
    Ok(())
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut see: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        see(bytes);
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Passes everything on but one frame in one direction.
async fn tampered(
    client: TcpStream,
    service: TcpStream,
    (tamper, way, at): (Tamper, Way, u32),
    shared: &Shared,
) -> anyhow::Result<()> {
    let bit = lock(&shared.dice).below(u64::MAX);
    let (from_client, to_client) = client.into_split();
    let (from_service, to_service) = service.into_split();
    let frames = Frames::new(way, tamper, at, bit);
    // The connection ends with the tampered direction: a cut is one.
    match way {
        Way::ToService => tokio::select! {
            () = frames.carry(from_client, to_service) => {}
            () = pass(from_service, to_client, |_| {}) => {}
        },
        Way::ToGateway => tokio::select! {
            () = frames.carry(from_service, to_client) => {}
            () = pass(from_client, to_service, |_| {}) => {}
        },
    }
    Ok(())
}

fn noise(shared: &Shared, bytes: usize) -> Vec<u8> {
    let mut dice = lock(&shared.dice);
    let byte = || u8::try_from(dice.below(256)).unwrap_or(0);
    std::iter::repeat_with(byte).take(bytes).collect()
}

async fn read_message(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> anyhow::Result<()> {
    let length = u16::try_from(message.len())?.to_be_bytes();
    stream.write_all(&[&length, message].concat()).await?;
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handshake and a good part of an upload.
const RECORDED_BYTES_MAX: usize = 1024 * 1024;
