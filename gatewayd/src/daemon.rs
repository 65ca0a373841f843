//! The daemon: configuration, then every task and queue, then ready, then the end.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use channel::Fingerprint;
use hsm::{Hsm, HsmConfig};
use spool::Spool;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    board::Board,
    clock::Clock,
    collect::Collector,
    config::Config,
    control::{self, Control},
    enrolment::EnrolmentFile,
    identity::{self, IdentitySlot},
    sealer::{Outlet, Run, Sealer},
    service::Service,
    signer,
    tasks::Tasks,
    uplink::Uplink,
    watchdog::{self, Progress},
};

/// Where the daemon keeps and shows things.
#[derive(Clone, Debug)]
pub struct Places {
    /// The state folder.
    pub state: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

/// Runs the daemon until `stop`.
///
/// # Errors
///
/// The first task that failed, or what could not be opened at the start.
pub async fn run(config: Config, places: Places, stop: CancellationToken) -> anyhow::Result<()> {
    let clock = Clock::new()?;
    let spool = Spool::open(&places.state.join("spool"), config.spool.clone())
        .context("cannot open the spool")?;
    let hsm = Hsm::start(HsmConfig {
        tpm: config.tpm.device.clone(),
        keys: places.state.join("keys"),
        timeout: config.tpm.timeout,
    });
    let enrolment = EnrolmentFile::in_folder(&places.state);
    let services = services(&config, &enrolment, &spool).await?;
    let run_id = begin_run(&spool, &clock, &services).await?;

    let board = Arc::new(Board::new(&config.sensors));
    let progress = Progress::new(clock.clone());
    let identity = Arc::new(IdentitySlot::new(None));
    let gateway = watch::Sender::new(gateway_of(&enrolment)?);
    let control = Control {
        config: Arc::new(config.clone()),
        clock: clock.clone(),
        board: Arc::clone(&board),
        spool: spool.clone(),
        hsm: hsm.clone(),
        identity: Arc::clone(&identity),
        services: services.clone(),
        enrolment,
        progress: progress.clone(),
    };
    let listener = control::listen(&places.socket)?;

    let mut tasks = Tasks::new(stop.clone());
    // Events of a second of a busy site; beyond it the sensors wait, or radio events are counted
    // as dropped.
    let (events_in, events) = mpsc::channel(1024);
    // Two cuts: one being sealed, one waiting.
    let (cuts_in, cuts) = mpsc::channel(2);
    let run = Run {
        id: run_id,
        sensors: config
            .sensors
            .iter()
            .map(|sensor| sensor.name.clone())
            .collect(),
        clock: clock.clone(),
        spool: spool.clone(),
        gateway: gateway.subscribe(),
    };
    let outlets = services
        .iter()
        .map(|service| Outlet::new(Arc::clone(service), run.clone(), config.batch.readings_max))
        .collect();
    let collector = Collector::new(
        &config.sensors,
        config.batch.clone(),
        clock.clone(),
        board,
        progress.clone(),
    );

    tasks.spawn("collect", collector.run(events, cuts_in, stop.clone()));
    tasks.spawn(
        "seal",
        seal(Sealer::new(outlets, progress.clone()), cuts, spool.clone()),
    );
    tasks.spawn(
        "identity",
        identity::run(hsm, Arc::clone(&identity), stop.clone()),
    );
    tasks.spawn(
        "gateway",
        follow(identity.subscribe(), gateway, stop.clone()),
    );
    tasks.spawn(
        "sign",
        signer::run(spool.clone(), run_id, identity.subscribe(), stop.clone()),
    );
    for service in &services {
        let uplink = Uplink::new(
            Arc::clone(service),
            spool.clone(),
            clock.clone(),
            identity.subscribe(),
            progress.clone(),
        );
        tasks.spawn(format!("uplink {}", service.name), uplink.run(stop.clone()));
    }
    spawn_sources(&mut tasks, config, &events_in, &stop);
    drop(events_in);
    tasks.spawn("control", control::serve(listener, control, stop.clone()));
    tasks.spawn("watchdog", watchdog::run(progress, stop.clone()));

    watchdog::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running and recording");
    let end = tasks.run().await;
    watchdog::stopping();
    end
}

/// One task for each bus and one for the radio.
fn spawn_sources(
    tasks: &mut Tasks,
    config: Config,
    events: &drivers::Events,
    stop: &CancellationToken,
) {
    for (bus, devices) in config.buses {
        let name = format!("bus {}", bus.name);
        let run = drivers::modbus::Bus::new(bus, devices).run(events.clone());
        tasks.spawn(name, until(stop.clone(), run));
    }
    if let Some(ble) = config.ble {
        let run = drivers::ble::Scanner::new(ble).run(events.clone());
        tasks.spawn("ble", until(stop.clone(), run));
    }
    // Keeps the collector's queue open when there is no sensor at all.
    let events = events.clone();
    tasks.spawn(
        "sources",
        until(stop.clone(), async move { events.closed().await }),
    );
}

/// Ends a source when the daemon stops; a source does not end by itself, whatever its sensor does.
async fn until<T>(stop: CancellationToken, source: impl Future<Output = T>) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => {}
        _ = source => {}
    }
    Ok(())
}

/// Seals until the collector is gone, then writes down that the run ended cleanly.
async fn seal(
    sealer: Sealer,
    cuts: mpsc::Receiver<Vec<crate::collect::Taken>>,
    spool: Spool,
) -> anyhow::Result<()> {
    sealer.run(cuts).await?;
    spool.put(RUN_KEY, Vec::new()).await?;
    Ok(())
}

/// Tells the sealer who this gateway is, as soon as the TPM or an earlier run said so.
async fn follow(
    mut identity: watch::Receiver<Option<Arc<identity::Identity>>>,
    gateway: watch::Sender<Option<Fingerprint>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let fingerprint = identity
            .borrow_and_update()
            .as_ref()
            .map(|found| found.fingerprint());
        if let Some(fingerprint) = fingerprint {
            gateway.send_replace(Some(fingerprint));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = identity.changed() => changed?,
        }
    }
}

/// The services of the configuration, with the peers that enrolment or configuration named.
async fn services(
    config: &Config,
    enrolment: &EnrolmentFile,
    spool: &Spool,
) -> anyhow::Result<Vec<Arc<Service>>> {
    let enrolled = enrolment.read()?.services;
    let mut services = Vec::new();
    for config in &config.services {
        let service = Service::new(config.clone(), spool.clone());
        let kept = enrolled.get(&config.name);
        let key = match (config.key, kept) {
            (Some(key), _) => Some(key),
            (None, Some(kept)) => Some(kept.key.parse().context("key in enrolment.json")?),
            (None, None) => None,
        };
        if let Some(key) = key {
            let same = kept.filter(|kept| kept.key == key.to_string());
            let addresses = same
                .map(|kept| kept.addresses.as_slice())
                .unwrap_or_default();
            let addresses = addresses.iter().map(|address| address.parse());
            let addresses = addresses
                .collect::<Result<_, _>>()
                .context("address in enrolment.json")?;
            service.set_peer(key, addresses, same.is_some()).await?;
        }
        services.push(Arc::new(service));
    }
    Ok(services)
}

/// Who this gateway was in earlier runs, so that it records although the TPM is slow or absent.
fn gateway_of(enrolment: &EnrolmentFile) -> anyhow::Result<Option<Fingerprint>> {
    let gateway = enrolment.read()?.gateway;
    let parsed = gateway.map(|gateway| gateway.parse().context("gateway in enrolment.json"));
    parsed.transpose()
}

/// Draws the id of this run. If the run before did not end cleanly, readings that were only in its
/// memory are gone: the ledger says so to each service, with the time between.
async fn begin_run(
    spool: &Spool,
    clock: &Clock,
    services: &[Arc<Service>],
) -> anyhow::Result<[u8; 16]> {
    let now = clock.now();
    let before = spool.get(RUN_KEY).await?.unwrap_or_default();
    if let Some((_, started)) = before.split_at_checked(16)
        && let Ok(started) = started.try_into()
    {
        tracing::warn!("the run before did not end cleanly; its last second may be missing");
        for peer in services.iter().filter_map(|service| service.peer()) {
            spool
                .record_loss(spool::Loss {
                    lane: spool::Lane {
                        service: *peer.key.bytes(),
                        class: wire::Class::Normal,
                    },
                    reason: wire::batch::LossReason::UncleanStop,
                    // How many, and of which sensors, nobody knows any more.
                    tallies: Vec::new(),
                    batches: Vec::new(),
                    from_ms: i64::from_be_bytes(started),
                    until_ms: now.wall_ms,
                })
                .await?;
        }
    }
    let mut run_id = [0; 16];
    getrandom::fill(&mut run_id).context("no randomness")?;
    let mut record = run_id.to_vec();
    record.extend(now.wall_ms.to_be_bytes());
    spool.put(RUN_KEY, record).await?;
    Ok(run_id)
}

/// Under which name the spool keeps the run in progress: its id and start; empty after a clean end.
const RUN_KEY: &str = "run";
