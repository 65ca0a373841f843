//! What may be looked at: status and live readings.

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio_stream::{
    StreamExt, wrappers::BroadcastStream, wrappers::errors::BroadcastStreamRecvError,
};
use wire::Reading;

use super::{Control, Refusal, refuse};
use crate::{
    board::SensorNote,
    report::{
        ChannelStatus, SensorStatus, ServiceStatus, Skipped, SpoolStatus, Status, TapReading,
        TpmStatus, clock_word, time,
    },
    service::Service,
};

/// `GET /v1/status`.
pub(super) async fn status(State(control): State<Control>) -> Result<Json<Status>, Refusal> {
    let now = control.clock.now();
    let spool = control
        .spool
        .status()
        .await
        .map_err(|error| refuse("cannot read the spool", &error, error.advice()))?;
    let services = control.services.iter().map(|service| {
        let lanes = spool.lanes.iter().filter(|lane| {
            service
                .peer()
                .is_some_and(|peer| *peer.key.bytes() == lane.lane.service)
        });
        service_status(
            service,
            lanes.map(|lane| lane.batches).sum(),
            now.boottime_ms,
        )
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
    let health = control.hsm.health().await;
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

fn service_status(service: &Service, batches: u64, now_ms: u64) -> ServiceStatus {
    let peer = service.peer();
    let link = service.link();
    ServiceStatus {
        name: service.name.clone(),
        key: peer.as_ref().map(|peer| peer.key.to_string()),
        enrolled: peer.is_some_and(|peer| peer.enrolled),
        uplink: link.state.word().into(),
        via: link.via,
        last_ack_seconds: link.last_ack_ms.map(|at| now_ms.saturating_sub(at) / 1000),
        backlog_batches: batches,
        problem: link.problem,
        r#do: link.advice,
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
