//! A certificate request for the identity.

use axum::{
    Json,
    extract::{ConnectInfo, State, rejection::JsonRejection},
    http::StatusCode,
};

use super::{Caller, Control, Refusal, broken, finish, own_uid, refuse, unavailable};
use crate::{
    csr::{self, CsrError, Subject},
    report::{CsrAnswer, CsrRequest},
    tasks,
};

/// `POST /v1/csr`: what the identity key signs, only those may ask for who may change it.
pub(super) async fn csr(
    State(control): State<Control>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Result<Json<CsrRequest>, JsonRejection>,
) -> Result<Json<CsrAnswer>, Refusal> {
    caller.check(own_uid())?;
    let Json(request) = request?;
    let text = request.subject.as_ref().unwrap_or(&control.config.name);
    let subject = Subject::parse(text).map_err(|error| {
        refuse(
            StatusCode::BAD_REQUEST,
            WHAT,
            &error.to_string(),
            "gatewayctl csr --subject NAME, with another name",
        )
    })?;
    finish(async move {
        // One at a time, and not while the identity is replaced.
        let _alone = control.changing.lock().await;
        sign(&control, subject).await
    })
    .await
}

async fn sign(control: &Control, subject: Subject) -> Result<Json<CsrAnswer>, Refusal> {
    let identity = control.identity.borrow().clone();
    let Some(identity) = identity else {
        return Err(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            WHAT,
            "the gateway has no identity, or its TPM does not answer",
            "gatewayctl check tpm; if there are no keys yet: gatewayctl init",
        ));
    };
    let gateway = identity.fingerprint();
    let signer = identity.hsm().signer(identity.keys());
    let name = subject.as_str().to_owned();
    let made = tasks::blocking("csr", move || csr::request(signer, &subject, &gateway)).await;
    let request =
        made.map_err(|error| broken(WHAT, &error.into()))?
            .map_err(|error| match &error {
                CsrError::Tpm(cause) => unavailable(WHAT, &error, cause.advice()),
                CsrError::Encoding(_) => unavailable(WHAT, &error, "report it with this message"),
            })?;
    Ok(Json(CsrAnswer {
        schema: "csr/1".into(),
        request,
        subject: name,
        gateway: gateway.to_string(),
    }))
}

const WHAT: &str = "cannot make a certificate request";
