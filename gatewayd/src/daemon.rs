//! The daemon: configuration, then every task and queue, then ready, then the end.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use channel::Fingerprint;
use hsm::{Hsm, HsmConfig};
use spool::{Lane, Loss, Spool, SpoolError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::{Class, batch::LossReason};

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
    let spool =
        Spool::open(&places.state.join("spool"), config.spool).context("cannot open the spool")?;
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
    let run = Run {
        id: run_id,
        sensors: names(&config),
        clock: clock.clone(),
        spool: spool.clone(),
        gateway: gateway.subscribe(),
        progress: progress.clone(),
    };
    let control = Control {
        config: Arc::new(config.clone()),
        clock,
        board,
        spool,
        hsm,
        identity,
        services,
        enrolment,
        progress,
        changing: Arc::default(),
        checking: Arc::default(),
    };
    let listener = control::listen(&places.socket)?;

    let mut tasks = Tasks::new(stop.clone());
    let events = spawn_recorder(&mut tasks, &control, run, &stop);
    spawn_identity(&mut tasks, &control, run_id, gateway, &stop);
    spawn_uplinks(&mut tasks, &control, &stop);
    spawn_sources(&mut tasks, config, &events, &stop);
    drop(events);
    let progress = control.progress.clone();
    tasks.spawn("control", control::serve(listener, control, stop.clone()));
    tasks.spawn("watchdog", watchdog::run(progress, stop.clone()));

    watchdog::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running and recording");
    let end = tasks.run().await;
    watchdog::stopping();
    end
}

/// The way of a reading up to the medium; returns where it begins.
fn spawn_recorder(
    tasks: &mut Tasks,
    control: &Control,
    run: Run,
    stop: &CancellationToken,
) -> drivers::Events {
    let config = &control.config;
    // Events of a second of a busy site; beyond it the sensors wait, or radio events are counted
    // as dropped.
    let (events_in, events) = mpsc::channel(1024);
    // Two cuts: one being sealed, one waiting.
    let (cuts_in, cuts) = mpsc::channel(2);
    let collector = Collector::new(
        &config.sensors,
        config.batch.clone(),
        control.clock.clone(),
        Arc::clone(&control.board),
        control.progress.clone(),
    );
    let outlets = control
        .services
        .iter()
        .map(|service| Outlet::new(Arc::clone(service), run.clone(), config.batch.readings_max))
        .collect();
    let sealer = Sealer::new(outlets, control.progress.clone());
    tasks.spawn("collect", collector.run(events, cuts_in, stop.clone()));
    tasks.spawn("seal", seal(sealer, cuts, control.spool.clone()));
    events_in
}

/// The TPM's part: who the gateway is, and its signature under what was recorded.
fn spawn_identity(
    tasks: &mut Tasks,
    control: &Control,
    run_id: [u8; 16],
    gateway: watch::Sender<Option<Fingerprint>>,
    stop: &CancellationToken,
) {
    let identity = &control.identity;
    let loading = identity::run(control.hsm.clone(), Arc::clone(identity), stop.clone());
    tasks.spawn("identity", loading);
    let following = follow(identity.subscribe(), gateway, stop.clone());
    tasks.spawn("gateway", following);
    let spool = control.spool.clone();
    let signing = signer::run(spool, run_id, identity.subscribe(), stop.clone());
    tasks.spawn("sign", signing);
}

/// One task for each service.
fn spawn_uplinks(tasks: &mut Tasks, control: &Control, stop: &CancellationToken) {
    for service in &control.services {
        let uplink = Uplink::new(
            Arc::clone(service),
            control.spool.clone(),
            control.clock.clone(),
            control.identity.subscribe(),
            control.progress.clone(),
        );
        tasks.spawn(format!("uplink {}", service.name), uplink.run(stop.clone()));
    }
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

/// Seals until the collector is gone, then writes down that the run ended cleanly, if it did.
async fn seal(
    sealer: Sealer,
    cuts: mpsc::Receiver<Vec<crate::collect::Taken>>,
    spool: Spool,
) -> anyhow::Result<()> {
    if !sealer.run(cuts).await? {
        tracing::error!(
            "not all could be stored; the next start writes down that the end was not clean"
        );
        return Ok(());
    }
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
            // First: whoever stops too may be gone already, which is no failure then.
            biased;
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

/// The sensors' names in the order of their numbers.
fn names(config: &Config) -> Arc<[String]> {
    let names = config.sensors.iter().map(|sensor| sensor.name.clone());
    names.collect()
}

/// Draws the id of this run. If the run before did not end cleanly, readings that were only in its
/// memory are gone: the ledger says so to each service, with the time between.
///
/// A disk that is full does not keep the gateway from recording: then the note of the run before
/// stays, and the next start counts from there.
async fn begin_run(
    spool: &Spool,
    clock: &Clock,
    services: &[Arc<Service>],
) -> anyhow::Result<[u8; 16]> {
    let mut run_id = [0; 16];
    getrandom::fill(&mut run_id).context("no randomness")?;
    match note_run(spool, run_id, clock.now().wall_ms, services).await {
        Err(error) if crate::passes(&error) => {
            tracing::error!(
                advice = error.advice(),
                "cannot write down that the run began: {error}"
            );
        }
        noted => noted?,
    }
    Ok(run_id)
}

async fn note_run(
    spool: &Spool,
    run_id: [u8; 16],
    now_ms: i64,
    services: &[Arc<Service>],
) -> Result<(), SpoolError> {
    let before = spool.get(RUN_KEY).await?.unwrap_or_default();
    if let Some((_, started)) = before.split_at_checked(16)
        && let Ok(started) = started.try_into()
    {
        tracing::warn!("the run before did not end cleanly; its last second may be missing");
        for peer in services.iter().filter_map(|service| service.peer()) {
            let loss = Loss {
                lane: Lane {
                    service: *peer.key.bytes(),
                    class: Class::Normal,
                },
                reason: LossReason::UncleanStop,
                // How many, and of which sensors, nobody knows any more.
                tallies: Vec::new(),
                batches: Vec::new(),
                from_ms: i64::from_be_bytes(started),
                until_ms: now_ms,
            };
            spool.record_loss(loss).await?;
        }
    }
    let mut record = run_id.to_vec();
    record.extend(now_ms.to_be_bytes());
    spool.put(RUN_KEY, record).await
}

/// Under which name the spool keeps the run in progress: its id and start; empty after a clean end.
const RUN_KEY: &str = "run";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Keys, open_spool, service};

    #[tokio::test]
    async fn an_unclean_stop_is_told_to_each_service_and_a_clean_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open_spool(folder.path());
        let (service, keys) = (Arc::new(service(&spool)), Keys::new());
        keys.become_peer_of(&service).await;
        let clock = Clock::new().unwrap();
        let services = [service];

        let first = begin_run(&spool, &clock, &services).await.unwrap();
        let open = spool.ledger_open(*keys.pin().bytes()).await.unwrap();
        assert_eq!(open, []);

        let second = begin_run(&spool, &clock, &services).await.unwrap();
        assert_ne!(first, second);
        let open = spool.ledger_open(*keys.pin().bytes()).await.unwrap();
        assert_eq!(open.len(), 1);
        assert_eq!(open[0].reason, LossReason::UncleanStop);
        assert!(open[0].from_ms <= open[0].until_ms && 0 < open[0].from_ms);

        // As the sealing task does at a clean end.
        spool.put(RUN_KEY, Vec::new()).await.unwrap();
        begin_run(&spool, &clock, &services).await.unwrap();
        let open = spool.ledger_open(*keys.pin().bytes()).await.unwrap();
        assert_eq!(open.len(), 1, "the same entry, handed out again");
    }
}
