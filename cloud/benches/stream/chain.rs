//! The processes that bytes go through.

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use channel::Suite;

use super::ends;

/// Processes in a row, from a TCP port to one of our listeners.
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) links: Vec<Link>,
    entry: u16,
    target: TcpListener,
}

/// One of the processes.
pub(crate) struct Link {
    pub(crate) name: &'static str,
    process: Child,
}

impl Chain {
    /// Two socat that pass TCP on.
    pub(crate) fn socat(buffer: Option<&str>) -> Self {
        let target = listen();
        let [entry, middle] = [free_port(), free_port()];
        let hop = |name, from, to| {
            let mut command = Command::new("socat");
            if let Some(bytes) = buffer {
                command.args(["-b", bytes]);
            }
            command
                .arg(format!("TCP-LISTEN:{from},bind=127.0.0.1,reuseaddr,fork"))
                .arg(format!("TCP:127.0.0.1:{to}"));
            Link::start(name, &mut command)
        };
        let exit = hop("second", middle, port(&target));
        let links = vec![hop("first", entry, middle), exit];
        for port in [entry, middle] {
            await_listener(port);
        }
        Self {
            name: SOCAT.to_owned(),
            links,
            entry,
            target,
        }
        .settle()
    }

    /// Inlet, relay and outlet.
    pub(crate) fn tunnel(suite: Suite) -> Self {
        let target = listen();
        let (relay, relay_port) = Link::announced("relay", &["relay"]);
        let (outlet, service) = Link::announced(
            "outlet",
            &["outlet", &relay_port, &port(&target).to_string()],
        );
        let suite = ends::suite_name(suite);
        let (inlet, entry) = Link::announced("inlet", &["inlet", &relay_port, &service, suite]);
        Self {
            name: suite.to_owned(),
            links: vec![inlet, relay, outlet],
            entry: entry.parse().unwrap(),
            target,
        }
    }

    /// A connection through all of them: the near end, and the far.
    pub(crate) fn connect(&self) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(("127.0.0.1", self.entry)).unwrap();
        let (far, _) = self.target.accept().unwrap();
        for end in [&near, &far] {
            end.set_nodelay(true).unwrap();
        }
        (near, far)
    }

    /// Takes the connection that came of asking whether somebody listens.
    fn settle(self) -> Self {
        self.target.set_nonblocking(true).unwrap();
        let give_up = Instant::now() + SETTLE_TIME;
        while Instant::now() < give_up {
            if self.target.accept().is_err() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.target.set_nonblocking(false).unwrap();
        self
    }
}

impl Link {
    /// This program in another role, which says one word when it is ready.
    fn announced(name: &'static str, role: &[&str]) -> (Self, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut link = Self::start(name, command.args(role).stdout(Stdio::piped()));
        let mut word = String::new();
        let out = link.process.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut word).unwrap();
        assert!(!word.is_empty(), "{name} did not start");
        (link, word.trim().to_owned())
    }

    fn start(name: &'static str, command: &mut Command) -> Self {
        let process = command.stdin(Stdio::null()).spawn();
        let process = process.expect("a program is not installed: make setup");
        Self { name, process }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    port(&listen())
}

fn await_listener(port: u16) {
    let give_up = Instant::now() + START_TIME_MAX;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < give_up, "socat does not listen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The chain to compare with.
pub(crate) const SOCAT: &str = "socat";

const START_TIME_MAX: Duration = Duration::from_secs(20);

/// For connections that were closed at once to come through two socat.
const SETTLE_TIME: Duration = Duration::from_millis(300);
