//! What a session costs the relay, and what the relay costs a session.
//!
//! The relay is the built program, in a process of its own; another one plays the gateways, so that
//! neither runs out of file descriptors first. Numbers that would worry us: an idle session of more
//! than 20 kB; less than 0.8 of what two hops of socat carry in the same run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench prints, and reports by panicking"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cloud::keys::ServiceKeys;
use futures::{StreamExt, stream};
use link::{
    Address,
    relay::{Registration, RelayEvent},
};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::relay::{Answer, ClientMessage, GREETING_BYTES, RelayCode};

fn main() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [role, port, service, count] = arguments.as_slice()
        && role == CLIENTS
    {
        let service = hex(service);
        return runtime.block_on(clients(
            port.parse().unwrap(),
            service,
            count.parse().unwrap(),
        ));
    }
    // Both ends of every splice, and what the relay needs besides.
    let sessions_max = usize::try_from(hard.saturating_sub(100) / 2).unwrap();
    println!("| idle sessions | relay's VmRSS kB: none | all | kB a session | sessions a second |");
    println!("|---|---|---|---|---|");
    for count in [1_000, 10_000] {
        runtime.block_on(idle(count.min(sessions_max)));
    }
    println!();
    println!(
        "| path | streams | MB/s | CPU s a GB, of the relay or of both hops | 200 bytes there and back, us |"
    );
    println!("|---|---|---|---|---|");
    for streams in [1, 4] {
        runtime.block_on(carried(streams));
        socat(streams);
    }
}

/// Memory of the relay for sessions that say nothing.
async fn idle(count: usize) {
    let relay = Relay::start();
    let mut registration = relay.register().await;
    // Whatever is made once is there.
    let first = relay.joined(&mut registration, Ipv4Addr::LOCALHOST).await;
    let before = relay.resident_kb();
    let began = Instant::now();
    let mut clients = Command::new(env::current_exe().unwrap())
        .args([CLIENTS, &relay.port.to_string()])
        .args([
            to_hex(relay.keys.statement.fingerprint().bytes()),
            count.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ids = stream::unfold(&mut registration, async |registration| {
        Some((incoming(registration).await, registration))
    });
    let taken = ids.take(count).map(|id| relay.accept(id));
    let sessions: Vec<_> = taken.buffer_unordered(16).collect().await;
    let seconds = began.elapsed().as_secs_f64();
    let mut ready = String::new();
    BufReader::new(clients.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    assert_eq!(ready, "ready\n");
    // What the last greetings needed is given back within moments.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = relay.resident_kb();
    println!(
        "| {} | {before} | {after} | {:.2} | {:.0} |",
        sessions.len(),
        (after - before) as f64 / count as f64,
        count as f64 / seconds
    );
    drop(clients.stdin.take());
    clients.wait().unwrap();
    drop((sessions, first));
}

/// A process of gateways that are joined, and then say nothing until their input ends.
async fn clients(port: u16, service: [u8; 32], count: usize) {
    let dialled = (0..count).map(|number| {
        // As from so many hosts: what is pending is bounded for each.
        let host = u32::try_from(number % 1000).unwrap();
        let host = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + host);
        hello(port, service, host)
    });
    let dialled: Vec<_> = stream::iter(dialled).buffer_unordered(32).collect().await;
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    drop(dialled);
}

/// Bytes through the relay.
async fn carried(streams: usize) {
    let relay = Relay::start();
    let mut registration = relay.register().await;
    let mut pairs = Vec::new();
    for _ in 0..streams {
        let (client, service) = relay.joined(&mut registration, Ipv4Addr::LOCALHOST).await;
        pairs.push((blocking(client), blocking(service)));
    }
    let before = cpu_seconds(relay.process.id());
    let rate = measure(&pairs);
    let gigabytes = (TOTAL as f64) / 1e9;
    let cpu = (cpu_seconds(relay.process.id()) - before) / gigabytes;
    let there_and_back = ping_pong(&pairs[0]);
    println!("| relay | {streams} | {rate:.0} | {cpu:.2} | {there_and_back:.0} |");
}

/// The same through two hops of socat: a relay of one kind, and a wire to it.
fn socat(streams: usize) {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = Hop::start(target.local_addr().unwrap());
    let first = Hop::start(second.address);
    let pairs: Vec<_> = (0..streams)
        .map(|_| {
            let client = dial(first.address);
            let (service, _) = target.accept().unwrap();
            service.set_nodelay(true).unwrap();
            (client, service)
        })
        .collect();
    let processes = || {
        let children = children(first.process.id()).into_iter();
        children
            .chain(children_of(&second))
            .map(cpu_seconds)
            .sum::<f64>()
    };
    let before = processes();
    let rate = measure(&pairs);
    let cpu = (processes() - before) / (TOTAL as f64 / 1e9);
    let there_and_back = ping_pong(&pairs[0]);
    println!("| two hops of socat | {streams} | {rate:.0} | {cpu:.2} | {there_and_back:.0} |");
}

fn children_of(hop: &Hop) -> Vec<u32> {
    children(hop.process.id())
}

/// MB/s of all streams together.
fn measure(pairs: &[(TcpStream, TcpStream)]) -> f64 {
    let each = TOTAL / pairs.len();
    let began = Instant::now();
    thread::scope(|scope| {
        for (client, service) in pairs {
            scope.spawn(move || {
                let chunk = vec![0x5a; 64 * 1024];
                let mut client = client;
                for _ in 0..each / chunk.len() {
                    client.write_all(&chunk).unwrap();
                }
            });
            scope.spawn(move || {
                let mut chunk = vec![0; 256 * 1024];
                let mut service = service;
                let mut left = each / (64 * 1024) * (64 * 1024);
                while left > 0 {
                    left -= service.read(&mut chunk).unwrap();
                }
            });
        }
    });
    TOTAL as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// The median of 2000 round trips of 200 bytes, in microseconds.
fn ping_pong((client, service): &(TcpStream, TcpStream)) -> f64 {
    let turns = 2000;
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut service, mut bytes) = (service, [0; 200]);
            for _ in 0..turns {
                service.read_exact(&mut bytes).unwrap();
                service.write_all(&bytes).unwrap();
            }
        });
        let (mut client, mut bytes) = (client, [7; 200]);
        let mut times: Vec<_> = (0..turns)
            .map(|_| {
                let began = Instant::now();
                client.write_all(&bytes).unwrap();
                client.read_exact(&mut bytes).unwrap();
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[turns / 2].as_secs_f64() * 1e6
    })
}

/// The built relay, with one service on its list.
struct Relay {
    port: u16,
    address: Address,
    keys: Arc<ServiceKeys>,
    process: Child,
    _folder: TempDir,
}

impl Relay {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        ServiceKeys::init(folder.path()).unwrap();
        let keys = Arc::new(ServiceKeys::load(folder.path()).unwrap());
        let port = free_port();
        let name = format!("127.0.0.1:{port}");
        let config = folder.path().join("gateway-cloud.toml");
        let service = keys.statement.fingerprint();
        let text = format!(
            "[relay]\nlisten = \"{name}\"\nservices = [\"{service}\"]\nbytes_per_second = \"1024GiB\"\n"
        );
        fs::write(&config, text).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_gateway-cloud"))
            .arg("--config")
            .arg(config)
            .arg("relay")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(port);
        Self {
            port,
            address: format!("relay://{name}").parse().unwrap(),
            keys,
            process,
            _folder: folder,
        }
    }

    async fn register(&self) -> Registration {
        let registered =
            link::relay::register(&self.address, &self.keys.statement, &self.keys.online);
        registered.await.unwrap()
    }

    async fn accept(&self, id: [u8; 16]) -> tokio::net::TcpStream {
        link::relay::accept(&self.address, id).await.unwrap()
    }

    async fn joined(
        &self,
        registration: &mut Registration,
        host: Ipv4Addr,
    ) -> (tokio::net::TcpStream, tokio::net::TcpStream) {
        let service = *self.keys.statement.fingerprint().bytes();
        tokio::join!(hello(self.port, service, host), async {
            let id = incoming(registration).await;
            self.accept(id).await
        })
    }

    fn resident_kb(&self) -> i64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.unwrap().trim().trim_end_matches(" kB");
        text.parse().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// A socat that passes connections on.
struct Hop {
    address: SocketAddr,
    process: Child,
}

impl Hop {
    fn start(to: SocketAddr) -> Self {
        let port = free_port();
        let process = Command::new("socat")
            .args(["-b", "65536"])
            .arg(format!(
                "TCP-LISTEN:{port},fork,reuseaddr,nodelay,bind=127.0.0.1"
            ))
            .arg(format!("TCP:{to},nodelay"))
            .spawn()
            .expect("socat is needed: make setup");
        // Without a connection to it, which it would pass on.
        while !fs::read_to_string("/proc/net/tcp")
            .unwrap()
            .contains(&format!("0100007F:{port:04X} 00000000:0000 0A"))
        {
            thread::sleep(Duration::from_millis(10));
        }
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            process,
        }
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        for child in children(self.process.id()) {
            let child = Pid::from_raw(i32::try_from(child).unwrap());
            let _ = kill(child, Signal::SIGTERM);
        }
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    let id = Pid::from_raw(i32::try_from(process.id()).unwrap());
    kill(id, Signal::SIGKILL).unwrap();
    process.wait().unwrap();
}

async fn incoming(registration: &mut Registration) -> [u8; 16] {
    match registration.next().await.unwrap() {
        RelayEvent::Incoming(id) => id,
        other @ (RelayEvent::Drain | _) => panic!("{other:?}"),
    }
}

/// A gateway at `host` that asks the relay for the service, and is joined.
async fn hello(port: u16, service: [u8; 32], host: Ipv4Addr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((host, 0).into()).unwrap();
    let mut stream = socket
        .connect((Ipv4Addr::LOCALHOST, port).into())
        .await
        .unwrap();
    stream.set_nodelay(true).unwrap();
    stream.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
    let hello = ClientMessage::Hello {
        service,
        token: None,
    };
    let hello = hello.encode();
    let length = u16::try_from(hello.len()).unwrap();
    stream
        .write_all(&[&length.to_be_bytes(), hello.as_slice()].concat())
        .await
        .unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(Answer::decode(&answer).unwrap().code, RelayCode::Ok);
    stream
}

fn blocking(stream: tokio::net::TcpStream) -> TcpStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn wait_for(port: u16) {
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// User and system time, proc(5).
fn cpu_seconds(process: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return 0.0;
    };
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = rest.split_whitespace().collect();
    let ticks: f64 = [11, 12]
        .iter()
        .map(|field| fields[*field].parse::<f64>().unwrap())
        .sum();
    ticks / 100.0
}

fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
    text.split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn hex(text: &str) -> [u8; 32] {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
    bytes.try_into().unwrap()
}

const CLIENTS: &str = "clients";

/// Bytes of one measurement.
const TOTAL: usize = 4 << 30;
