//! `gatewayd`: bridges BLE and serial sensors and delivers every reading, end to end encrypted.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use gatewayd::{
    config::Config,
    daemon::{self, Places},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Reads sensors and delivers every reading to its services, end to end encrypted
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Configuration file; conf.d/*.toml beside it is merged
    #[arg(long, default_value = "/etc/gatewayd/gatewayd.toml")]
    config: PathBuf,
    /// State folder
    #[arg(long, env = "STATE_DIRECTORY", default_value = "/var/lib/gatewayd")]
    state: PathBuf,
    /// Control socket
    #[arg(long, default_value = "/run/gatewayd/control.sock")]
    socket: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match Config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            let complaint = gatewayd::config_complaint(&error);
            let _ = writeln!(std::io::stderr(), "{complaint}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    let result = run(config, cli);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If even stderr is gone, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "error: gatewayd stopped: {error:#}");
            ExitCode::from(EX_SOFTWARE)
        }
    }
}

fn run(config: Config, cli: Cli) -> anyhow::Result<()> {
    // tpm2-tss' wrapper tells each opening and closing as news.
    let shown = Targets::new()
        .with_default(config.log)
        .with_target("tss_esapi", tracing::Level::WARN);
    tracing_subscriber::registry()
        .with(shown)
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false),
        )
        .init();
    // Before there is any key.
    gatewayd::memory::protect();
    let places = Places {
        state: cli.state,
        socket: cli.socket,
    };
    make_folder(&places.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // A gateway has few cores, and the work is waiting.
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signals = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            asked.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = daemon::run(config, places, stop) => end,
            () = signals => Ok(()),
        }
    })
}

/// The state folder is the daemon's alone: it holds key blobs and sealed readings.
fn make_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// `sysexits.h`: something went wrong inside.
const EX_SOFTWARE: u8 = 70;

/// `sysexits.h`: configured wrongly; the unit has `RestartPreventExitStatus=78`.
const EX_CONFIG: u8 = 78;
