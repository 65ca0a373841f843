//! What is wrong, and what to do about it.

use std::time::Duration;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Deserialize;

use super::{Control, Refusal, SAME_VERSION, refuse};
use crate::{
    check::{self, Wanted},
    report::{CheckReport, time},
};

/// Which checks to make.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    /// Areas and ids, with commas between; nothing stands for all.
    #[serde(default)]
    only: String,
}

/// `GET /v1/check?only=`.
pub(super) async fn check(
    State(control): State<Control>,
    ask: Result<Query<Ask>, QueryRejection>,
) -> Result<Json<CheckReport>, Refusal> {
    let Query(ask) = ask?;
    let wanted = Wanted::parse(&ask.only).map_err(|error| {
        let advice = format!("gatewayctl check {}", error.nearest);
        refuse(
            StatusCode::BAD_REQUEST,
            "cannot check",
            &error.to_string(),
            &advice,
        )
    })?;
    let site = site(&control);
    let checks = check::look_at_tpm(&control.hsm, site, &control.checking).await;
    Ok(Json(CheckReport {
        schema: "check/1".into(),
        checks: wanted.select(checks),
    }))
}

fn site(control: &Control) -> check::Site {
    // A file that is damaged says nothing here; enrolment tells.
    let enrolment = control.enrolment.read().unwrap_or_default();
    let loaded = control.identity.borrow().clone();
    let gateway = loaded
        .map(|identity| identity.fingerprint())
        .or_else(|| enrolment.gateway?.parse().ok());
    let now = control.clock.now();
    let up_ms = now
        .boottime_ms
        .saturating_sub(control.progress.started_ms());
    let started_ms = now.wall_ms.saturating_sub_unsigned(up_ms);
    check::Site {
        tpm: control.config.tpm.device.clone(),
        name: control.config.name.clone(),
        enrolled_as: enrolment.name,
        gateway,
        since: moment(started_ms, Duration::from_millis(up_ms)),
    }
}

/// `09:01`, and with its date where that is not clear.
fn moment(wall_ms: i64, ago: Duration) -> String {
    let whole = time(wall_ms);
    let clock = whole.get(11..16);
    match (whole.get(..10), clock) {
        (_, Some(clock)) if ago < DAY => clock.to_owned(),
        (Some(date), Some(clock)) => format!("{date} {clock}"),
        _ => whole,
    }
}

impl From<QueryRejection> for Refusal {
    fn from(error: QueryRejection) -> Self {
        refuse(
            error.status(),
            "the question is not understood",
            &error.body_text(),
            SAME_VERSION,
        )
    }
}

/// A time of day within it is clear.
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_of_long_ago_is_told_with_its_date() {
        let start_ms = 1_795_442_549_104;
        assert_eq!(moment(start_ms, DAY / 2), "14:02");
        assert_eq!(moment(start_ms, DAY), "2026-11-23 14:02");
    }
}
