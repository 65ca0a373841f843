//! What may be looked at: status and live readings.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use spool::LaneStatus;
use tokio_stream::{
    StreamExt, wrappers::BroadcastStream, wrappers::errors::BroadcastStreamRecvError,
};
use wire::{Reading, Time};

use super::{Control, Refusal, unavailable};
use crate::{
    board::SensorNote,
    report::{
        AddressStatus, ChannelStatus, SensorStatus, ServiceStatus, Skipped, SpoolStatus, Status,
        TapReading, TpmStatus, clock_word, time,
    },
    service::Service,
    uplink::{addresses::Health, cause::Cause},
};

/// `GET /v1/status`.
pub(super) async fn status(State(control): State<Control>) -> Result<Json<Status>, Refusal> {
    let now = control.clock.now();
    let spool = control
        .spool
        .status()
        .await
        .map_err(|error| unavailable("cannot read the spool", &error, error.advice()))?;
    let services = control.services.iter().map(|service| {
        let lanes = spool.lanes.iter().filter(|lane| {
            service
                .peer()
                .is_some_and(|peer| *peer.key.bytes() == lane.lane.service)
        });
        service_status(service, lanes, now)
    });
    let identity = control.identity.borrow().clone();
    Ok(Json(Status {
        schema: "status/1".into(),
        name: control.config.name.clone(),
        gateway: identity.map(|identity| identity.fingerprint().to_string()),
        version: env!("CARGO_PKG_VERSION").into(),
        up_seconds: now
            .boottime_ms
            .saturating_sub(control.progress.started_ms())
            / 1000,
        time: time(now.wall_ms),
        tpm: tpm_status(&control).await,
        clock: clock_word(now.clock).into(),
        services: services.collect(),
        sensors: control
            .board
            .sensors(now.boottime_ms)
            .into_iter()
            .map(|note| sensor_status(note, now.boottime_ms))
            .collect(),
        spool: SpoolStatus {
            state: spool.state.to_string(),
            size_bytes: spool.bytes,
            max_bytes: spool.max_bytes,
            batches: backlog(&spool),
            held_readings: spool.lanes.iter().map(|lane| lane.readings).sum(),
            stored_readings: spool.appended_readings,
            acked_readings: spool.acked_readings,
            lost_readings: spool.lost_readings,
        },
    }))
}

/// Which readings to show.
#[derive(Deserialize)]
pub(super) struct Filter {
    sensor: Option<String>,
}

/// `GET /v1/readings`: one JSON object a line, for as long as the caller listens.
pub(super) async fn readings(
    State(control): State<Control>,
    Query(filter): Query<Filter>,
) -> Response {
    let lines = BroadcastStream::new(control.board.tap()).filter_map(move |item| {
        let line = match item {
            Ok(reading) if !filter.shows(&reading) => return None,
            Ok(reading) => serde_json::to_string(&TapReading::of(&reading)),
            Err(BroadcastStreamRecvError::Lagged(skipped)) => {
                serde_json::to_string(&Skipped { skipped })
            }
        };
        Some(line.map(|line| line + "\n"))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

impl Filter {
    fn shows(&self, reading: &Reading) -> bool {
        self.sensor
            .as_ref()
            .is_none_or(|sensor| *sensor == reading.sensor)
    }
}

/// Batches that wait, over all lanes.
pub(super) fn backlog(status: &spool::Status) -> u64 {
    status.lanes.iter().map(|lane| lane.batches).sum()
}

async fn tpm_status(control: &Control) -> TpmStatus {
    // Whoever looks does not wait for a TPM that hangs.
    let Ok(health) = tokio::time::timeout(TPM_TIME_MAX, control.hsm.health()).await else {
        return TpmStatus {
            state: hsm::TpmState::Busy.to_string(),
            lockout_count: None,
            lockout_max: None,
            vendor: None,
            problem: Some(format!("it did not answer within {TPM_TIME_MAX:?}")),
            r#do: Some("look again; if it stays so, restart the machine".into()),
        };
    };
    // A TPM that could not be asked says nothing of itself.
    let asked = !health.vendor.is_empty();
    let problem = health.problem.as_ref();
    TpmStatus {
        state: health.state.to_string(),
        lockout_count: asked.then_some(health.lockout_count),
        lockout_max: asked.then_some(health.lockout_max),
        vendor: asked.then(|| health.vendor.clone()),
        problem: problem.map(|error| crate::chain(error)),
        r#do: problem.map(|error| error.advice().to_owned()),
    }
}

fn service_status<'a>(
    service: &Service,
    lanes: impl Iterator<Item = &'a LaneStatus>,
    now: Time,
) -> ServiceStatus {
    let (mut batches, mut oldest_age_ms) = (0, 0);
    for lane in lanes {
        batches += lane.batches;
        let age_ms = lane
            .oldest_ms
            .map_or(0, |at| now.wall_ms.saturating_sub(at));
        oldest_age_ms = oldest_age_ms.max(u64::try_from(age_ms).unwrap_or(0));
    }
    let peer = service.peer();
    let link = service.link();
    let state = link.state_at(now.boottime_ms, oldest_age_ms);
    let since = |at: u64| now.boottime_ms.saturating_sub(at) / 1000;
    let addresses = service.health().all().into_iter();
    let addresses = addresses.map(|health| AddressStatus {
        in_use: link.address.as_ref() == Some(&health.address),
        ..address_status(health, now.boottime_ms)
    });
    ServiceStatus {
        name: service.name.clone(),
        addresses: addresses.collect(),
        key: peer.as_ref().map(|peer| peer.key.to_string()),
        enrolled: peer.is_some_and(|peer| peer.enrolled),
        uplink: state.word().into(),
        via: link.via,
        last_ack_seconds: link.last_ack_ms.map(since),
        backlog_batches: batches,
        problem: link.problem,
        r#do: link.advice,
    }
}

fn address_status(health: Health, now_ms: u64) -> AddressStatus {
    let count = |word| health.failures.get(word).copied().unwrap_or(0);
    AddressStatus {
        address: health.address.to_string(),
        in_use: false,
        sessions: health.sessions,
        handshake_seconds: health.handshake.map(|time| time.as_secs_f64()),
        failures: Cause::WORDS
            .map(|word| (word.to_owned(), count(word)))
            .into(),
        last_failure_seconds: health
            .last_failed_ms()
            .map(|at| now_ms.saturating_sub(at) / 1000),
        refusals: health.refusals,
        last_failure: health.last_failure,
    }
}

fn sensor_status(note: SensorNote, now_ms: u64) -> SensorStatus {
    SensorStatus {
        name: note.name,
        state: note.state.word().into(),
        error: note.error.map(str::to_owned),
        age_seconds: note.heard_ms.map(|at| now_ms.saturating_sub(at) / 1000),
        last: note
            .last
            .values()
            .map(|(measurement, _)| ChannelStatus::of(measurement))
            .collect(),
        problem: note.problem,
    }
}

/// The slowest TPMs answer such a question within 600 ms.
const TPM_TIME_MAX: Duration = Duration::from_secs(2);
