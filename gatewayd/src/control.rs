//! The control socket: HTTP and JSON over `/run/gatewayd/control.sock`.
//!
//! Whoever may open the socket may look; only root and the daemon's own user may change anything.

mod look;

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::{Context, bail};
use axum::{
    Json, Router,
    extract::{ConnectInfo, State, connect_info::Connected},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use hsm::Hsm;
use spool::Spool;
use tokio::net::{UnixListener, unix::UCred};
use tokio_util::sync::CancellationToken;

use crate::{
    board::Board,
    chain,
    clock::Clock,
    config::Config,
    enroll,
    enrolment::EnrolmentFile,
    identity::{Identity, IdentitySlot},
    report::{EnrollAnswer, EnrollRequest, InitAnswer, InitRequest, Problem},
    service::Service,
    watchdog::Progress,
};

/// What the control socket shows and may change.
#[derive(Clone)]
pub struct Control {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The clocks.
    pub clock: Clock,
    /// What sensors said.
    pub board: Arc<Board>,
    /// The spool.
    pub spool: Spool,
    /// The TPM.
    pub hsm: Hsm,
    /// Who this gateway is.
    pub identity: Arc<IdentitySlot>,
    /// The services.
    pub services: Vec<Arc<Service>>,
    /// What enrolment leaves.
    pub enrolment: EnrolmentFile,
    /// When the daemon started, and its tasks' progress.
    pub progress: Progress,
}

/// Makes the socket, for its owner and group only.
///
/// # Errors
///
/// If another daemon answers on it, or the folder does not take it.
pub fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let shown = socket.display();
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        bail!("another gatewayd answers on {shown}; stop it first: systemctl stop gatewayd");
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {shown}"));
        }
        Ok(()) | Err(_) => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen on {shown}"))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    Ok(listener)
}

/// Answers until `stop`.
///
/// # Errors
///
/// If the socket fails.
pub async fn serve(
    listener: UnixListener,
    control: Control,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/v1/status", get(look::status))
        .route("/v1/readings", get(look::readings))
        .route("/v1/init", post(init))
        .route("/v1/enroll", post(enroll))
        .fallback(not_found)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control);
    let service = router.into_make_service_with_connect_info::<Caller>();
    // A reader of the endless stream does not hold up the end.
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        end = async { axum::serve(listener, service).await } => Ok(end?),
    }
}

/// Who is on the other side of the socket, as the kernel says.
#[derive(Clone, Copy)]
struct Caller(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

impl Caller {
    fn check(self) -> Result<(), Refusal> {
        let own = nix::unistd::geteuid().as_raw();
        match self.0 {
            Some(caller) if caller.uid() == 0 || caller.uid() == own => Ok(()),
            Some(_) | None => Err(Refusal(Problem {
                status: StatusCode::FORBIDDEN.as_u16(),
                title: "not allowed".into(),
                what: "not allowed".into(),
                r#where: None,
                why: "only root and the user gatewayd may change the gateway".into(),
                r#do: "use sudo".into(),
            })),
        }
    }
}

/// Makes the identity in the TPM; an identity that is there stays, unless asked otherwise.
async fn init(
    State(control): State<Control>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(request): Json<InitRequest>,
) -> Result<Json<InitAnswer>, Refusal> {
    caller.check()?;
    let keys = control
        .hsm
        .provision(request.force_new)
        .await
        .map_err(|error| refuse("cannot make the identity", &error, error.advice()))?;
    let vendor = keys.vendor.clone();
    let identity = Identity::new(control.hsm.clone(), keys)
        .map_err(|error| broken("cannot make the identity", &error))?;
    let gateway = identity.fingerprint().to_string();
    let kept = control.enrolment.change(|content| {
        if content.gateway.as_ref() != Some(&gateway) {
            // Services know another identity.
            content.services.clear();
            content.name = None;
        }
        content.gateway = Some(gateway.clone());
    });
    kept.map_err(|error| broken("cannot keep the identity's name", &error))?;
    if request.force_new {
        for service in &control.services {
            service.forget_enrolment();
        }
    }
    control.identity.send_replace(Some(Arc::new(identity)));
    Ok(Json(InitAnswer {
        schema: "init/1".into(),
        gateway,
        vendor,
    }))
}

/// Enrols with a ticket.
async fn enroll(
    State(control): State<Control>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(request): Json<EnrollRequest>,
) -> Result<Json<EnrollAnswer>, Refusal> {
    caller.check()?;
    let identity = control.identity.borrow().clone();
    let identity = identity.ok_or(enroll::EnrollError::NoIdentity)?;
    let enrolled = enroll::enroll(
        &request.ticket,
        request.service.as_deref(),
        &identity,
        &control.services,
        &control.enrolment,
    )
    .await?;
    let status = control.spool.status().await;
    Ok(Json(EnrollAnswer {
        schema: "enroll/1".into(),
        name: enrolled.name,
        service: enrolled.service,
        via: enrolled.via,
        backlog_batches: status.map_or(0, |status| look::backlog(&status)),
    }))
}

async fn not_found() -> Refusal {
    Refusal(Problem {
        status: StatusCode::NOT_FOUND.as_u16(),
        title: "no such path".into(),
        what: "no such path".into(),
        r#where: None,
        why: "this version has /v1/status, /v1/readings, /v1/init and /v1/enroll".into(),
        r#do: "update gatewayctl and gatewayd to the same version".into(),
    })
}

/// An error on its way to the caller.
struct Refusal(Problem);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(self.0)).into_response()
    }
}

impl From<enroll::EnrollError> for Refusal {
    fn from(error: enroll::EnrollError) -> Self {
        use enroll::EnrollError as E;
        let mut refusal = refuse("cannot enrol", &error, error.advice());
        match error {
            E::Refused { .. } => {
                refusal.0.status = StatusCode::FORBIDDEN.as_u16();
                refusal.0.r#where = Some("service".into());
            }
            E::Ticket(_) | E::OtherService { .. } | E::WhichService(_) => {
                refusal.0.status = StatusCode::BAD_REQUEST.as_u16();
            }
            E::NoIdentity
            | E::NoAddress
            | E::Link(_)
            | E::Protocol(_)
            | E::Tpm(_)
            | E::Late
            | E::State(_) => {}
        }
        refusal
    }
}

/// Something outside is in the way.
fn refuse(what: &str, error: &dyn std::error::Error, advice: &str) -> Refusal {
    Refusal(Problem {
        status: StatusCode::SERVICE_UNAVAILABLE.as_u16(),
        title: what.into(),
        what: what.into(),
        r#where: None,
        why: chain(error),
        r#do: advice.into(),
    })
}

/// Something of ours is broken.
fn broken(what: &str, error: &anyhow::Error) -> Refusal {
    Refusal(Problem {
        status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
        title: what.into(),
        what: what.into(),
        r#where: None,
        why: format!("{error:#}"),
        r#do: "check the disk that holds the state".into(),
    })
}

/// Owner and group; the unit gives the group to those who may look.
const SOCKET_MODE: u32 = 0o660;

/// The longest request, a ticket with four addresses, is far shorter.
const BODY_BYTES_MAX: usize = 16 * 1024;
