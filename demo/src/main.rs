//! `make demo`: the main job, on nothing but this machine, judged by what arrives.
//!
//! A software TPM, two Modbus slaves of pymodbus on a serial cable, two Bluetooth sensors behind a
//! stand-in for BlueZ, a gateway, a relay and a service. The gateway enrols with a ticket; readings
//! arrive; the service is stopped for a while and the gateway is killed once. At the end every
//! reading is accounted for, and nothing readable passed the relay or lies on the gateway's disk.

mod story;
mod table;

use std::{io::Write, path::Path, process::ExitCode};

#[tokio::main]
async fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("run");
    let told = tokio::select! {
        told = story::tell(&folder) => told,
        _ = tokio::signal::ctrl_c() => {
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
