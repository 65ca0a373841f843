//! `gateway-cloud relay` as a process: how it starts, or why it does not, what it holds, and how it
//! ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

use cloud::keys::ServiceKeys;
use link::{
    Address, LinkError,
    relay::{Registration, RelayEvent, Token},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use wire::relay::{GREETING_BYTES, RelayCode};
use zeroize::Zeroizing;

#[test]
fn a_relay_that_nobody_could_use_does_not_start_and_says_what_to_do() {
    for (relay, words) in [
        (
            "",
            "relay.services is empty, so nobody could use this relay",
        ),
        ("admit = \"token\"", "relay.tokens is empty"),
        (
            "admit = \"open\"\nlisten = \"[::]:0\"",
            "relay.names is empty, so no service could register",
        ),
    ] {
        let (code, said) = refused(&format!("[relay]\n{relay}"));
        assert!(said.contains(words), "{said}");
        assert!(said.contains("error: gateway-cloud: "), "{said}");
        assert_eq!(code, Some(78), "{said}");
    }
}

#[test]
fn an_address_that_cannot_be_listened_at_is_named_with_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (code, said) = refused(&open(&address.to_string()));
    let port = address.port();
    assert!(
        said.contains(&format!("cannot listen on {address} (relay.listen)")),
        "{said}"
    );
    assert!(
        said.contains(&format!("`ss -ltnp 'sport = :{port}'` says which")),
        "{said}"
    );
    assert_eq!(code, Some(1));

    // TEST-NET-1 (RFC 5737) is nobody's.
    let (_, said) = refused(&open("192.0.2.1:4430"));
    assert!(said.contains("this host has no such address"), "{said}");
}

#[tokio::test]
async fn a_relay_that_listens_on_every_address_takes_ipv6_and_ipv4() {
    let relay = Relay::start("[relay]\nadmit = \"open\"\nlisten = \"[::]:0\"\nnames = [\"a:1\"]");
    for host in ["[::1]", "127.0.0.1"] {
        let dialled = TcpStream::connect(format!("{host}:{}", relay.port())).await;
        let mut greeting = [0; GREETING_BYTES];
        dialled.unwrap().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[..4], b"GWR1");
    }
}

#[tokio::test]
async fn more_clients_than_file_descriptors_are_said_at_the_start() {
    let relay = Relay::start_by("ulimit -n 4096; ", &open("127.0.0.1:0"));
    let said = &relay.said;
    // Two for each of 10,000 clients and 512 pipes, 4096 pending, and a few of its own.
    let words = "relay.max_clients = 10000 may need 25184 file descriptors and 4096 are allowed";
    assert!(said.contains(words), "{said}");
    let words = "set LimitNOFILE=25184 in the unit, or lower relay.max_clients";
    assert!(said.contains(words), "{said}");
}

#[tokio::test]
async fn a_relay_raises_its_own_limit_of_file_descriptors() {
    let relay = Relay::start_by("ulimit -S -n 64; ", &open("127.0.0.1:0"));
    let limits = fs::read_to_string(format!("/proc/{}/limits", relay.process.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let fields: Vec<_> = line.split_whitespace().collect();
    assert_eq!(fields[3], fields[4], "{line}");
    assert_ne!(fields[3], "64");
}

#[tokio::test]
async fn a_relay_without_file_descriptors_lets_the_next_one_wait_and_says_so_once() {
    let mut relay = Relay::start_by("ulimit -n 24; ", &open("127.0.0.1:0"));
    let mut held = Vec::new();
    let first_to_wait = loop {
        let mut stream = relay.dial().await;
        let mut greeting = [0; GREETING_BYTES];
        match timeout(Duration::from_secs(1), stream.read_exact(&mut greeting)).await {
            Ok(read) => drop(read.unwrap()),
            Err(_) => break stream,
        }
        held.push(stream);
        assert!(held.len() < 24, "24 descriptors were enough");
    };
    relay
        .until_said("cannot take connections: Too many open files")
        .await;

    held.clear();
    let mut waited = first_to_wait;
    let mut greeting = [0; GREETING_BYTES];
    let read = timeout(PATIENCE, waited.read_exact(&mut greeting)).await;
    read.expect("it waits for ever").unwrap();
    let said = relay.end(Signal::SIGTERM).1;
    assert_eq!(said.matches("cannot take connections").count(), 1, "{said}");
}

#[tokio::test]
async fn a_silent_splice_holds_no_pipe() {
    let relay = Relay::start(&open("127.0.0.1:0"));
    let (_folder, keys) = service();
    let mut registration = relay.register(&keys).await;
    let before = relay.descriptors();
    let mut pairs = Vec::new();
    for _ in 0..10 {
        pairs.push(relay.joined(&keys, &mut registration, None).await.unwrap());
    }
    for (client, service) in &mut pairs {
        client.write_all(b"hello").await.unwrap();
        service.read_exact(&mut [0; 5]).await.unwrap();
        service.write_all(b"hello").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
    }
    // Two sockets each, and both ends of the few pipes that wait for whoever needs one next; a
    // pipe for each of the twenty directions would be forty.
    let more = relay.descriptors() - before;
    assert!((20..40).contains(&more), "{more} more descriptors");
}

#[tokio::test]
async fn sigterm_tells_services_lets_talks_end_and_exits_with_zero() {
    let mut relay = Relay::start(&open("127.0.0.1:0"));
    let (_folder, keys) = service();
    let mut registration = relay.register(&keys).await;
    let (mut client, mut peer) = relay.joined(&keys, &mut registration, None).await.unwrap();
    relay.signal(Signal::SIGTERM);
    assert_eq!(registration.next().await.unwrap(), RelayEvent::Drain);
    client.write_all(b"still").await.unwrap();
    peer.read_exact(&mut [0; 5]).await.unwrap();
    drop((client, peer));
    let (code, said) = relay.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("relay is draining clients=1"), "{said}");
}

#[tokio::test]
async fn metrics_count_bytes_clients_and_refusals_and_name_nobody() {
    let config = format!(
        "{}[metrics]\nlisten = \"127.0.0.1:0\"\n",
        open("127.0.0.1:0")
    );
    let relay = Relay::start(&config);
    let (_folder, keys) = service();
    let mut registration = relay.register(&keys).await;
    let (mut client, mut peer) = relay.joined(&keys, &mut registration, None).await.unwrap();
    client.write_all(&[1; 1000]).await.unwrap();
    peer.read_exact(&mut [0; 1000]).await.unwrap();
    peer.write_all(&[2; 300]).await.unwrap();
    client.read_exact(&mut [0; 300]).await.unwrap();
    let (_other_folder, other) = service();
    let unknown = link::dial(&relay.address, &other.statement.fingerprint(), None).await;
    assert!(matches!(
        unknown,
        Err(LinkError::RelayRefused(RelayCode::NoSuchService))
    ));

    let expected = [
        "gateway_relay_services 1",
        "gateway_relay_clients 1",
        "gateway_relay_bytes_total{direction=\"to_service\"} 1000",
        "gateway_relay_bytes_total{direction=\"to_gateway\"} 300",
        "gateway_relay_refused_total{reason=\"no_such_service\"} 1",
        "gateway_relay_refused_total{reason=\"not_admitted\"} 0",
        concat!(
            "gateway_relay_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
    ];
    let shown = async {
        loop {
            let text = relay.metrics().await;
            // A byte is counted just after it has arrived.
            if expected
                .iter()
                .all(|line| text.lines().any(|shown| shown == *line))
            {
                return text;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let Ok(text) = timeout(PATIENCE, shown).await else {
        panic!("{}", relay.metrics().await);
    };
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    for name in [&keys, &other] {
        let fingerprint = name.statement.fingerprint().to_string();
        assert!(!text.contains(&fingerprint[3..]), "{text}");
    }
    assert!(!text.contains("127.0.0.1"), "{text}");
}

#[tokio::test]
async fn a_token_in_a_credential_opens_the_relay_to_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    // RFC 4648, 6: 'A' is five zero bits, '7' five ones.
    let text = format!("{}{}", "A".repeat(56), "7".repeat(8));
    fs::write(folder.path().join("gateway-cloud.relay-token"), text).unwrap();
    let config = "[relay]\nlisten = \"127.0.0.1:0\"\nadmit = \"token\"\ntokens = [\"credential:relay-token\"]";
    let set = format!(
        "export CREDENTIALS_DIRECTORY='{}'; ",
        folder.path().display()
    );
    let relay = Relay::start_by(&set, config);
    let (_folder, keys) = service();
    let mut registration = relay.register(&keys).await;
    let mut secret = [0; 32];
    secret[27..].fill(0xff);
    let token = |secret| Token {
        id: [0; 8],
        secret: Zeroizing::new(secret),
    };
    let (pin, wrong) = (keys.statement.fingerprint(), token([0; 32]));
    let refused = link::dial(&relay.address, &pin, Some(&wrong)).await;
    assert!(matches!(
        refused,
        Err(LinkError::RelayRefused(RelayCode::NotAdmitted))
    ));
    let token = token(secret);
    relay
        .joined(&keys, &mut registration, Some(&token))
        .await
        .unwrap();
}

/// A relay that serves everybody.
fn open(listen: &str) -> String {
    format!("[relay]\nadmit = \"open\"\nlisten = \"{listen}\"\n")
}

/// The exit code and words of a relay that does not start.
fn refused(config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let ended = command("", folder.path(), config).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    (ended.status.code(), said)
}

fn service() -> (TempDir, ServiceKeys) {
    let folder = tempfile::tempdir().unwrap();
    ServiceKeys::init(folder.path()).unwrap();
    let keys = ServiceKeys::load(folder.path()).unwrap();
    (folder, keys)
}

fn command(before: &str, folder: &Path, config: &str) -> Command {
    let file = folder.join("gateway-cloud.toml");
    fs::write(&file, config).unwrap();
    let program = env!("CARGO_BIN_EXE_gateway-cloud");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "{before}exec '{program}' --config '{}' relay",
            file.display()
        ))
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A relay that runs.
struct Relay {
    process: Child,
    address: Address,
    metrics: Option<String>,
    said: String,
    lines: Option<BufReader<ChildStderr>>,
    _folder: TempDir,
}

impl Relay {
    fn start(config: &str) -> Self {
        Self::start_by("", config)
    }

    /// After these words of a shell.
    fn start_by(before: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = command(before, folder.path(), config).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(" relaying address=") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
        }
        let after = |words: &str| {
            let (_, rest) = said.split_once(words)?;
            rest.lines().next().map(str::to_owned)
        };
        let port = after(" relaying address=").unwrap();
        let (_, port) = port.rsplit_once(':').unwrap();
        Self {
            address: format!("relay://127.0.0.1:{port}").parse().unwrap(),
            metrics: after(" metrics address="),
            process,
            said,
            lines: Some(lines),
            _folder: folder,
        }
    }

    fn port(&self) -> u16 {
        let authority = self.address.authority();
        authority.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address.authority()).await.unwrap()
    }

    async fn register(&self, keys: &ServiceKeys) -> Registration {
        let registered = link::relay::register(&self.address, &keys.statement, &keys.online);
        registered.await.unwrap()
    }

    async fn joined(
        &self,
        keys: &ServiceKeys,
        registration: &mut Registration,
        token: Option<&Token>,
    ) -> Result<(TcpStream, TcpStream), LinkError> {
        let service = keys.statement.fingerprint();
        let (client, service) = tokio::join!(link::dial(&self.address, &service, token), async {
            match registration.next().await? {
                RelayEvent::Incoming(id) => link::relay::accept(&self.address, id).await,
                other @ (RelayEvent::Drain | _) => panic!("{other:?}"),
            }
        });
        Ok((client?, service?))
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        fs::read_dir(folder).unwrap().count()
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics.as_ref().unwrap())
            .await
            .unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: relay\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until its log has these words.
    async fn until_said(&mut self, words: &str) {
        let mut lines = self.lines.take().unwrap();
        let words = words.to_owned();
        let reading = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            while !said.contains(&words) {
                assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
            }
            (said, lines)
        });
        let (said, lines) = timeout(PATIENCE, reading).await.unwrap().unwrap();
        self.said.push_str(&said);
        self.lines = Some(lines);
    }

    fn signal(&self, signal: Signal) {
        let process = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        kill(process, signal).unwrap();
    }

    fn end(&mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        self.ended()
    }

    /// Its exit code, and all that it has said.
    fn ended(&mut self) -> (Option<i32>, String) {
        let mut lines = self.lines.take().unwrap();
        while lines.read_line(&mut self.said).unwrap() > 0 {}
        (self.process.wait().unwrap().code(), self.said.clone())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
