//! What the protection of the bus costs: time and this process's CPU for a key agreement, a
//! signature, a quote and an unsealing through `hsm`, beside the same TPM command bare, that is
//! with an empty password on a key that is loaded already, in the same run against the same swtpm.
//!
//! *Burst*: calls that follow each other within the 200 ms for which session and key stay in the
//! TPM. *Cold*: each call starts its session and loads its key, and both are flushed after it.
//!
//! What would worry us: more than one TPM command for a signature or a key agreement in a burst,
//! since a chip takes 25 to 250 ms for each; more than 20 ms of CPU for a cold one, since a
//! Cortex-A53 takes some five to eight times as long, and a handshake should stay below its quarter
//! of a second; any figure that grows from release to release.
//!
//! swtpm answers faster than any chip, so the ratios of *time* are the worst there are: what we add
//! in milliseconds stays, what it is added to grows. `docs/benches.md` keeps the figures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench reports by panicking, and on standard output"
)]

mod bare;
mod meter;
mod protected;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use hsm::Tpm;

use bare::Bare;
use meter::Figures;
use protected::{Commands, Protected};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let counted = protected::count_commands().await;
    let tpm = Software::start();
    let protected = Protected::provision(tpm.address(), tpm.folder.join("keys")).await;
    let mut bare = Bare::open(tpm.port);

    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "operation",
            "bare\nms (p95)",
            "hsm in a burst\nms (p95) ratio",
            "hsm cold\nms (p95) ratio",
            "bare\nCPU ms",
            "hsm in a burst\nCPU ms ratio",
            "hsm cold\nCPU ms ratio",
            "TPM commands, in a session\nin a burst; cold",
        ]);
    for (operation, commands) in Operation::ALL.into_iter().zip(counted) {
        let [bare, burst, cold] = measure(operation, &mut bare, &protected).await;
        table.add_row(row(operation, [&bare, &burst, &cold], commands));
    }
    println!("{table}");
}

/// Bare, in a burst, cold; in rounds, so that what else the machine does meets all three.
async fn measure(operation: Operation, bare: &mut Bare, protected: &Protected) -> [Figures; 3] {
    let mut figures = [const { Figures::new() }; 3];
    for _ in 0..ROUNDS {
        let [alone, burst, cold] = &mut figures;
        bare.load(operation);
        bare.call(operation);
        alone.calls(CALLS, async || bare.call(operation)).await;
        bare.flush();

        protected.call(operation).await;
        burst
            .calls(CALLS, async || protected.call(operation).await)
            .await;
        tokio::time::sleep(REST).await;

        cold.calls_apart(COLD_CALLS, REST, async || protected.call(operation).await)
            .await;
    }
    figures
}

fn row(operation: Operation, figures: [&Figures; 3], commands: Commands) -> [String; 8] {
    let [bare, burst, cold] = figures;
    let time = |figures: &Figures| {
        format!(
            "{:.2} ({:.2})",
            figures.median_ms(),
            figures.percentile_ms(95)
        )
    };
    let beside = |shown: String, ours: f64, bare: f64| format!("{shown} ×{:.1}", ours / bare);
    let cpu = |figures: &Figures| format!("{:.2}", figures.cpu_ms());
    [
        operation.name().to_owned(),
        time(bare),
        beside(time(burst), burst.median_ms(), bare.median_ms()),
        beside(time(cold), cold.median_ms(), bare.median_ms()),
        format!("{:.3}", bare.cpu_ms()),
        beside(cpu(burst), burst.cpu_ms(), bare.cpu_ms()),
        beside(cpu(cold), cold.cpu_ms(), bare.cpu_ms()),
        commands.to_string(),
    ]
}

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operation {
    Agree,
    Sign,
    /// A signature and a key agreement, which is two keys in turn.
    InTurn,
    Quote,
    Unseal,
}

impl Operation {
    const ALL: [Self; 5] = [
        Self::Agree,
        Self::Sign,
        Self::InTurn,
        Self::Quote,
        Self::Unseal,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Agree => "ECDH",
            Self::Sign => "sign",
            Self::InTurn => "sign and ECDH",
            Self::Quote => "quote",
            Self::Unseal => "unseal",
        }
    }
}

/// A swtpm on TCP ports of its own: `hsm::swtpm` would carry the frames in this process, and its
/// CPU would count as ours.
struct Software {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Software {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("bench-tpm-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let port = port();
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .args(["--tpmstate", &format!("dir={}", folder.display())])
            .args(["--server", &format!("type=tcp,port={port}")])
            .args(["--ctrl", &format!("type=tcp,port={}", port + 1)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm is not installed: make setup");
        let give_up = Instant::now() + START_TIME_MAX;
        while TcpStream::connect(("127.0.0.1", port + 1)).is_err() {
            assert!(Instant::now() < give_up, "swtpm did not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            process,
            folder,
            port,
        }
    }

    fn address(&self) -> Tpm {
        Tpm::Swtpm {
            host: "127.0.0.1".to_owned(),
            port: self.port,
        }
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A port that was free a moment ago, like the one above it; below the range from which the kernel
/// gives ports to connections, of which this bench makes one for each command.
fn port() -> u16 {
    let begin = std::process::id() as usize % 10_000;
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut pairs = (12_000..32_000).step_by(2).cycle().skip(begin);
    pairs
        .find(|port| is_free(*port) && is_free(port + 1))
        .unwrap()
}

const ROUNDS: u32 = 5;

/// In a row; 200 in all make a 95th percentile of the ten slowest.
const CALLS: u32 = 40;

/// Each costs a pause.
const COLD_CALLS: u32 = 8;

/// Session and key leave the TPM 200 ms after the last call.
const REST: Duration = Duration::from_millis(260);

const START_TIME_MAX: Duration = Duration::from_secs(20);
