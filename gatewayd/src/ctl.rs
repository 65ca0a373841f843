//! `gatewayctl`: what a person types on the gateway.
//!
//! Values go to stdout, prose to stderr.

mod check;
mod client;
mod export;
mod screen;

use std::{
    io::{BufRead, ErrorKind, IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use zeroize::Zeroizing;

use self::client::{Client, Failure};
use crate::{
    config::Config,
    report::{
        CsrAnswer, CsrRequest, EnrollAnswer, EnrollRequest, ExportRequest, InitAnswer, InitRequest,
        Status,
    },
};

/// Looks at a gateway and sets it up
#[derive(Parser)]
#[command(name = "gatewayctl", version)]
pub struct Cli {
    /// Control socket of the daemon
    #[arg(long, default_value = "/run/gatewayd/control.sock", global = true)]
    socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show identity, links, spool and every sensor
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Show it again every second
        #[arg(long, conflicts_with = "json")]
        watch: bool,
    },
    /// Look for what is wrong, and say what to do about it
    Check {
        /// Only these areas or checks: `tpm`, `tpm.keys`
        what: Vec<String>,
        /// Show what is well too
        #[arg(long)]
        all: bool,
        /// Print one JSON object, with what is well
        #[arg(long, conflicts_with = "all")]
        json: bool,
    },
    /// Show readings as they are taken, until Ctrl-C
    Tap {
        /// Only those of this sensor
        #[arg(long)]
        sensor: Option<String>,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Make the gateway's identity in the TPM; one that is there stays
    Init {
        /// Replace an identity that is there: every service has to enrol the gateway again
        #[arg(long)]
        force_new: bool,
    },
    /// Enrol with a ticket of `gateway-cloud invite`
    Enroll {
        /// The ticket; `-` reads it from standard input, out of sight of the shell's history
        ticket: String,
        /// The `[[service]]` it is for, where that is not clear
        #[arg(long)]
        service: Option<String>,
    },
    /// Print a certificate request (PKCS#10, PEM), signed by the identity in the TPM
    Csr {
        /// The common name to ask for [default: the gateway's name]
        #[arg(long, value_name = "CN")]
        subject: Option<String>,
    },
    /// What waits for the services
    Spool {
        /// What to do with it
        #[command(subcommand)]
        command: SpoolCommand,
    },
    /// Look at the configuration
    Config {
        /// What to do with it
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum SpoolCommand {
    /// Write what waits into a file, sealed, to be carried to the service: gateway-cloud open FILE
    Export {
        /// The file, which must not exist, or a folder such as a stick's
        to: PathBuf,
        /// The `[[service]]` it is for, where that is not clear
        #[arg(long)]
        service: Option<String>,
        /// Only what was not exported before
        #[arg(long)]
        new: bool,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Name every mistake in the configuration
    Validate {
        /// Configuration file; conf.d/*.toml beside it is merged
        #[arg(long, default_value = "/etc/gatewayd/gatewayd.toml")]
        config: PathBuf,
    },
}

/// Runs one command.
pub async fn run(cli: Cli) -> ExitCode {
    let mut typed = None;
    if matches!(&cli.command, Command::Enroll { ticket, .. } if ticket == "-") {
        // Before Ctrl-C is taken over: nothing but a signal ends a wait for the keyboard.
        match read_ticket() {
            Ok(ticket) => typed = Some(ticket),
            Err(failure) => return end(Err(failure)),
        }
    }
    tokio::select! {
        done = obey(cli, typed) => end(done),
        _ = tokio::signal::ctrl_c() => ExitCode::from(EX_INTERRUPTED),
    }
}

async fn obey(cli: Cli, typed: Option<Zeroizing<String>>) -> Result<ExitCode, Failure> {
    let client = Client::new(cli.socket);
    match cli.command {
        Command::Status { json, watch } => status(&client, json, watch).await?,
        Command::Check { what, all, json } => return check::run(&client, &what, all, json).await,
        Command::Tap { sensor, json } => tap(&client, sensor, json).await?,
        Command::Init { force_new } => init(&client, force_new).await?,
        Command::Enroll { ticket, service } => {
            let ticket = typed.unwrap_or(Zeroizing::new(ticket));
            enroll(&client, ticket, service).await?;
        }
        Command::Csr { subject } => csr(&client, subject).await?,
        Command::Spool {
            command: SpoolCommand::Export { to, service, new },
        } => export::run(&client, &to, &ExportRequest { service, new }).await?,
        Command::Config {
            command: ConfigCommand::Validate { config },
        } => validate(&config)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what went wrong.
fn end(done: Result<ExitCode, Failure>) -> ExitCode {
    match done {
        Ok(code) => code,
        // Whoever read our output has seen enough: `gatewayctl tap | head`.
        Err(Failure::Io(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // If even stderr is gone, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn status(client: &Client, json: bool, watch: bool) -> Result<(), Failure> {
    loop {
        let status: Status = client.get("/v1/status").await?;
        let mut out = std::io::stdout().lock();
        if json {
            return write_json(&mut out, &status);
        }
        if watch && std::io::stdout().is_terminal() {
            write!(out, "{CLEAR_SCREEN}")?;
        }
        screen::status(&mut out, &status)?;
        out.flush()?;
        drop(out);
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn tap(client: &Client, sensor: Option<String>, json: bool) -> Result<(), Failure> {
    // A sensor's name has no character that a query would have to escape.
    let path = match sensor.filter(|sensor| wire::is_name(sensor)) {
        Some(sensor) => format!("/v1/readings?sensor={sensor}"),
        None => "/v1/readings".to_owned(),
    };
    let mut lines = client.lines(&path).await?;
    while let Some(line) = lines.next().await? {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{line}")?;
        } else {
            screen::tap(&mut out, &line)?;
        }
        out.flush()?;
    }
    Ok(())
}

async fn init(client: &Client, force_new: bool) -> Result<(), Failure> {
    let answer: InitAnswer = client.post("/v1/init", &InitRequest { force_new }).await?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", screen::short(&answer.gateway))?;
    let mut prose = std::io::stderr().lock();
    writeln!(
        prose,
        "Identity made in the TPM ({}); it cannot leave it.\nNext: ask for a ticket, then: gatewayctl enroll -",
        answer.vendor
    )?;
    Ok(())
}

async fn enroll(
    client: &Client,
    ticket: Zeroizing<String>,
    service: Option<String>,
) -> Result<(), Failure> {
    let request = EnrollRequest { ticket, service };
    let answer: EnrollAnswer = client.post("/v1/enroll", &request).await?;
    let mut prose = std::io::stderr().lock();
    writeln!(prose, "{:<17} reached", answer.via)?;
    writeln!(prose, "{:<17} its key matches the ticket", answer.service)?;
    writeln!(prose, "{:<17} holds all three keys", "TPM")?;
    writeln!(
        prose,
        "Enrolled as {}. {} batches taken before now are on their way.",
        answer.name, answer.backlog_batches
    )?;
    Ok(())
}

async fn csr(client: &Client, subject: Option<String>) -> Result<(), Failure> {
    let answer: CsrAnswer = client.post("/v1/csr", &CsrRequest { subject }).await?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", answer.request.replace("\r\n", "\n"))?;
    let mut prose = std::io::stderr().lock();
    writeln!(
        prose,
        "For {}, serial number {}.\nNext: give it to your certification authority; what it says: \
         openssl req -noout -text",
        answer.subject, answer.gateway
    )?;
    Ok(())
}

/// One line from standard input; asked for only where somebody sits.
fn read_ticket() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let mut input = std::io::stdin().lock().take(TICKET_BYTES_MAX);
    if std::io::stdin().is_terminal() {
        write!(std::io::stderr(), "Ticket: ")?;
        input.read_line(&mut text)?;
    } else {
        input.read_to_string(&mut text)?;
    }
    Ok(text)
}

fn validate(path: &std::path::Path) -> Result<(), Failure> {
    match Config::load(path) {
        Ok(_) => {
            writeln!(std::io::stderr(), "{}: no mistakes", path.display())?;
            Ok(())
        }
        Err(error) => Err(Failure::Config(crate::config_complaint(&error))),
    }
}

fn write_json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(std::io::Error::other)?;
    Ok(writeln!(out, "{text}")?)
}

/// Home and clear (ECMA-48: CUP, ED).
const CLEAR_SCREEN: &str = "\u{1b}[H\u{1b}[2J";

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A ticket with four addresses has less than 1 KiB.
const TICKET_BYTES_MAX: u64 = 16 * 1024;

/// What a shell reports of a program that Ctrl-C has ended.
const EX_INTERRUPTED: u8 = 130;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        let closed = Failure::Io(ErrorKind::BrokenPipe.into());
        assert_eq!(end(Err(closed)), ExitCode::SUCCESS);
        let full = Failure::Io(ErrorKind::StorageFull.into());
        assert_eq!(end(Err(full)), ExitCode::from(1));
    }
}
