//! Plays `bluetoothd` with two sensors on the air, for tests and demonstrations without a radio.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use demo::bluez::StandIn;
use tokio::signal::unix::{SignalKind, signal};

/// Plays bluetoothd on the bus at $DBUS_SYSTEM_BUS_ADDRESS: an adapter, a BTHome thermometer
/// (54:48:E6:8F:80:A5) and a RuuviTag (CB:B8:33:4C:88:4F).
///
/// Prints READY once it can be scanned.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Milliseconds from one advertisement of a sensor to its next
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    interval_ms: u64,

    /// End after so many seconds; without, at SIGTERM
    #[arg(long)]
    seconds: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // Asked for by name: the machine's own bus may have a real bluetoothd.
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS")
        .context("DBUS_SYSTEM_BUS_ADDRESS does not name a bus")?;
    let mut terminated = signal(SignalKind::terminate())?;
    let stand_in = StandIn::start(&address)
        .await
        .with_context(|| format!("cannot be org.bluez at {address}"))?;
    writeln!(std::io::stdout(), "READY")?;

    let interval = Duration::from_millis(cli.interval_ms);
    tokio::select! {
        result = stand_in.advertise(interval) => result.context("the bus was lost"),
        () = end(cli.seconds) => Ok(()),
        _ = terminated.recv() => Ok(()),
    }
}

/// Waits for the chosen time, or for ever.
async fn end(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}
