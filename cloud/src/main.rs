//! `gateway-cloud`: receives from gateways, relays for them, and enrols them.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use channel::RecordKey;
use clap::{Parser, Subcommand};
use cloud::{
    by_hand::{self, Desk},
    config::{self, Config},
    invite,
    keys::{self, ServiceKeys, Which},
    list, listen,
    registry::Registry,
    relay::{self, Limits, RelayConfig, RelayMetrics},
    roots::EndorsementRoots,
    serve::{self, Service},
    sink::sqlite::SqliteSink,
    tasks,
};

/// Receives from gateways, relays for them, and enrols them
#[derive(Parser)]
#[command(name = "gateway-cloud", version)]
struct Cli {
    /// Configuration file
    #[arg(
        long,
        default_value = "/etc/gateway-cloud/gateway-cloud.toml",
        global = true
    )]
    config: PathBuf,
    /// State folder
    #[arg(
        long,
        env = "STATE_DIRECTORY",
        default_value = "/var/lib/gateway-cloud",
        global = true
    )]
    state: PathBuf,
    /// What to do
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the service's keys; keys that are there stay
    Init,
    /// Receive from gateways until SIGTERM
    Serve,
    /// Join gateways and services that cannot reach each other, until SIGTERM
    Relay,
    /// Print a one-time ticket for a gateway
    Invite {
        /// The gateway's name
        name: String,
        /// KEY=VALUE, as often as wanted
        #[arg(long = "label")]
        labels: Vec<String>,
        /// How long it is good for [default: attestation.ticket_ttl, 10min]
        #[arg(long)]
        ttl: Option<String>,
    },
    /// Store what was carried here by hand
    Open {
        /// Files that `gatewayctl spool export` wrote
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Replace the service's keys
    Keys {
        /// What to do with them
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// List the gateways
    Ls {
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a new key and sign a statement that names it; the one before stays valid for a while
    Rotate {
        /// Which key
        #[arg(value_enum, default_value = "record")]
        which: WhichKey,
        /// The service's identity, where it is not in the state folder
        #[arg(long)]
        identity: Option<PathBuf>,
        /// Leave the one before out of the statement at once: it was stolen
        #[arg(long)]
        at_once: bool,
    },
}

/// A key that can be replaced.
#[derive(Clone, Copy, clap::ValueEnum)]
enum WhichKey {
    /// The one that opens the seals
    Record,
    /// The one that opens sessions
    Channel,
    /// The one that registers at relays
    Online,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match Config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => return complain(&error, EX_CONFIG),
    };
    match run(cli, config) {
        Ok(code) => code,
        Err(error) if error.is::<config::Mistake>() => complain(&error, EX_CONFIG),
        Err(error) => complain(&error, EX_FAILED),
    }
}

fn run(cli: Cli, config: Config) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match cli.command {
        Command::Init => init(&cli.state)?,
        Command::Serve => block_on(serve(cli.state, config))?,
        Command::Relay => block_on(run_relay(config))?,
        Command::Invite { name, labels, ttl } => {
            let ttl = match ttl {
                Some(text) => config::duration("--ttl", &text)?,
                None => config.ticket_ttl,
            };
            print_ticket(&cli.state, &config, (&name, &labels), ttl)?;
        }
        Command::Open { files } => return open(&cli.state, &config, &files),
        Command::Keys {
            command:
                KeysCommand::Rotate {
                    which,
                    identity,
                    at_once,
                },
        } => {
            let overlap = if at_once {
                Duration::ZERO
            } else {
                config.record_key.overlap
            };
            rotate(&cli.state, which, identity.as_deref(), overlap)?;
        }
        Command::Ls { json } => {
            let gateways = Registry::open(&cli.state)?.gateways()?;
            let mut out = std::io::stdout();
            if json {
                list::json(&mut out, &gateways)?;
            } else {
                list::table(&mut out, &gateways)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn init(state: &Path) -> anyhow::Result<()> {
    let fingerprint = ServiceKeys::init(state)?;
    writeln!(std::io::stdout(), "{fingerprint}")?;
    writeln!(
        std::io::stderr(),
        "Gateways pin this fingerprint. The identity key is needed for new statements only:\n\
         move it to an offline medium: {}",
        keys::identity_path(state).display()
    )?;
    Ok(())
}

fn print_ticket(
    state: &Path,
    config: &Config,
    (name, labels): (&str, &[String]),
    ttl: Duration,
) -> anyhow::Result<()> {
    let service = ServiceKeys::load_with(state, record_keys(config)?)?;
    let service = service.statement.fingerprint();
    let registry = Registry::open(state)?;
    let who = (name, labels);
    let invited = invite::invite(&registry, *service.bytes(), &config.advertise, who, ttl)?;
    writeln!(std::io::stdout(), "{}", *invited.ticket)?;
    let until = jiff::Timestamp::from_millisecond(invited.expires_ms)?;
    writeln!(
        std::io::stderr(),
        "For {name}, one use, until {}. On the gateway: gatewayctl enroll -",
        until.strftime("%H:%M:%S")
    )?;
    Ok(())
}

/// Opens every file, whatever the others are.
fn open(state: &Path, config: &Config, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let readings = readings(state, config);
    let sink = SqliteSink::open(&readings)
        .with_context(|| format!("cannot open {}", readings.display()))?;
    let desk = Desk {
        keys: &ServiceKeys::load_with(state, record_keys(config)?)?,
        registry: &Registry::open(state)?,
        sink: &sink,
    };
    let (mut out, mut prose) = (std::io::stdout(), std::io::stderr());
    let mut clean = true;
    for file in files {
        match by_hand::open(file, &desk) {
            Ok(report) => {
                report.print(file, &mut out, &mut prose)?;
                clean &= report.is_clean();
            }
            Err(error) => {
                clean = false;
                writeln!(prose, "error: cannot open {}: {error:#}", file.display())?;
            }
        }
    }
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EX_FAILED)
    })
}

fn rotate(
    state: &Path,
    which: WhichKey,
    identity: Option<&Path>,
    overlap: Duration,
) -> anyhow::Result<()> {
    let which = match which {
        WhichKey::Record => Which::Record,
        WhichKey::Channel => Which::Channel,
        WhichKey::Online => Which::Online,
    };
    let rotation = keys::rotate(state, which, identity, overlap)?;
    if let Some(key) = rotation.key {
        writeln!(std::io::stdout(), "{key}")?;
    }
    let mut prose = std::io::stderr();
    writeln!(
        prose,
        "Statement {} names it first; its private half is {}.\n\
         Next: copy it to where the others are kept, and restart gateway-cloud serve. Gateways take the\n\
         statement with their next session.",
        rotation.serial,
        rotation.path.display()
    )?;
    for path in rotation.retired {
        writeln!(
            prose,
            "No statement names {} any more. What is late and sealed to it opens as long as it is kept;\n\
             deleted, it opens nothing, for anybody.",
            path.display()
        )?;
    }
    Ok(())
}

fn record_keys(config: &Config) -> anyhow::Result<Vec<RecordKey>> {
    let secrets = config.record_key.elsewhere.iter();
    let keys = secrets.map(|secret| {
        let bytes = secret.read().context("record_key")?;
        RecordKey::from_bytes(&bytes).with_context(|| format!("record_key: {secret:?}"))
    });
    keys.collect()
}

fn readings(state: &Path, config: &Config) -> PathBuf {
    let readings = config.readings.clone();
    readings.unwrap_or_else(|| state.join("readings.db"))
}

async fn serve(state: PathBuf, config: Config) -> anyhow::Result<()> {
    let readings = readings(&state, &config);
    let sink = SqliteSink::open(&readings)
        .with_context(|| format!("cannot open {}", readings.display()))?;
    let service = Service {
        keys: Arc::new(ServiceKeys::load_with(&state, record_keys(&config)?)?),
        registry: Arc::new(Registry::open(&state)?),
        sink: Arc::new(sink),
        sessions_max: config.sessions_max,
        endorsement_roots: endorsement_roots(config.ek_roots.as_deref())?,
    };
    let listener = match config.listen {
        Some(address) => Some(listen::bind("listen", address).await?),
        None => None,
    };
    tracing::info!(service = %service.keys.statement.fingerprint().short(), "serving");
    tasks::run(|stop| serve::serve(service, listener, config.relays, stop)).await
}

/// Whose TPMs may enrol, which is said once.
fn endorsement_roots(folder: Option<&Path>) -> anyhow::Result<Option<Arc<EndorsementRoots>>> {
    let Some(folder) = folder else {
        tracing::info!(
            "attestation.ek_roots is not set: a ticket enrols any TPM, also one in software"
        );
        return Ok(None);
    };
    let roots = EndorsementRoots::load(folder).context("attestation.ek_roots")?;
    let (roots_count, issuers) = roots.counts();
    tracing::info!(
        roots = roots_count,
        issuers,
        "only TPMs with a certificate of their vendor enrol"
    );
    Ok(Some(Arc::new(roots)))
}

async fn run_relay(config: Config) -> anyhow::Result<()> {
    let settings = config.relay;
    let (services, admit) = settings.admission()?;
    let address = settings.listen;
    let listener = listen::bind("relay.listen", address).await?;
    let relay = RelayConfig {
        names: settings.names(listener.local_addr()?)?,
        services,
        admit,
        max_clients: settings.max_clients,
        limits: Limits {
            bytes_per_second: settings.bytes_per_second,
            ..Limits::default()
        },
        metrics: RelayMetrics::default(),
    };
    let clients = ("relay.max_clients", relay.max_clients);
    listen::raise_descriptors(relay.descriptors(), clients)?;
    let mut registry = metrics::registry(RELAY_METRICS, env!("CARGO_PKG_VERSION"));
    relay
        .metrics
        .register(registry.sub_registry_with_prefix(RELAY_METRICS));
    let metrics = match config.metrics {
        Some(address) => {
            let metrics = listen::bind("metrics.listen", address).await?;
            tracing::info!(address = %metrics.local_addr()?, "metrics");
            Some(metrics)
        }
        None => None,
    };
    tracing::info!(address = %listener.local_addr()?, "relaying");
    tasks::run(async |stop| {
        let shown = async {
            match metrics {
                Some(metrics) => metrics::serve(metrics, &registry, stop.clone()).await,
                None => Ok(()),
            }
        };
        let relaying = relay::serve(listener, relay, stop.clone());
        let (relayed, shown) = tokio::join!(relaying, shown);
        relayed.and(shown.map_err(Into::into))
    })
    .await
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// Prints the error with its causes; if even stderr is gone, the exit code still tells.
fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: gateway-cloud: {error:#}");
    ExitCode::from(code)
}

/// What the names of a relay's metrics begin with.
const RELAY_METRICS: &str = "gateway_relay";

/// Something is not as it should be; the message says what.
const EX_FAILED: u8 = 1;

/// `sysexits.h`: configured wrongly; the unit has `RestartPreventExitStatus=78`.
const EX_CONFIG: u8 = 78;
