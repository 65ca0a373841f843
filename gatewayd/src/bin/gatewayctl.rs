//! `gatewayctl`: see `gatewayd::ctl`.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    gatewayd::ctl::run(gatewayd::ctl::Cli::parse()).await
}
