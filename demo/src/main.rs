//! `make demo`: the main job, on nothing but this machine, judged by what arrives.
//!
//! A software TPM, two Modbus slaves of pymodbus on a serial cable, two Bluetooth sensors behind a
//! stand-in for BlueZ, a gateway, a relay and a service. The gateway enrols with a ticket; readings
//! arrive; the service is stopped for a while and the gateway is killed once. At the end every
//! reading is accounted for, and nothing readable passed the relay or lies on the gateway's disk.

mod story;
mod table;

use std::{future::pending, io::Write, path::Path, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("run");
    let told = tokio::select! {
        told = story::tell(&folder) => told,
        () = asked_to_stop() => {
            // Dropping the story ends every process of it.
            let _ = writeln!(std::io::stderr(), "demo: stopped");
            return ExitCode::from(130);
        }
    };
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "error: demo: {error:#}\ndo: read the logs in {}",
                folder.display()
            );
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C, a closed terminal, or SIGTERM.
async fn asked_to_stop() {
    let asked = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => pending().await,
        }
    };
    tokio::select! {
        () = asked(SignalKind::interrupt()) => {}
        () = asked(SignalKind::hangup()) => {}
        () = asked(SignalKind::terminate()) => {}
    }
}
