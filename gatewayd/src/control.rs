//! The control socket: HTTP and JSON over `/run/gatewayd/control.sock`.
//!
//! Whoever may open the socket may look; only root and the daemon's own user may change anything.

mod check;
mod csr;
mod export;
mod look;

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use axum::{
    Json, Router,
    extract::{ConnectInfo, State, connect_info::Connected, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use hsm::Hsm;
use spool::Spool;
use tokio::{
    net::{UnixListener, unix::UCred},
    sync::Mutex,
};
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
    /// One change at a time.
    pub changing: Arc<Mutex<()>>,
    /// One check at a time: whoever may look must not keep the TPM busy.
    pub checking: Arc<Mutex<()>>,
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
    match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} is in the way: it is no socket");
        }
        Ok(_) => {
            fs::remove_file(socket).with_context(|| format!("cannot replace {shown}"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
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
    let service = router(control).into_make_service_with_connect_info::<Caller>();
    // A reader of the endless stream does not hold up the end.
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        end = async { axum::serve(listener, service).await } => Ok(end?),
    }
}

fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/status", get(look::status))
        .route("/v1/readings", get(look::readings))
        .route("/v1/check", get(check::check))
        .route("/v1/init", post(init))
        .route("/v1/enroll", post(enroll))
        .route("/v1/csr", post(csr::csr))
        .route("/v1/spool/export", post(export::export))
        .route("/v1/spool/exported", post(export::exported))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control)
}

/// The user on the other side of the socket, as the kernel says.
#[derive(Clone, Copy)]
struct Caller(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let known = stream.io().peer_cred().ok();
        Self(known.as_ref().map(UCred::uid))
    }
}

impl Caller {
    fn check(self, own_uid: u32) -> Result<(), Refusal> {
        match self.0 {
            Some(uid) if uid == 0 || uid == own_uid => Ok(()),
            Some(_) | None => Err(refuse(
                StatusCode::FORBIDDEN,
                "not allowed",
                "only root and the user gatewayd may change the gateway",
                "use sudo",
            )),
        }
    }
}

/// Makes the identity in the TPM; an identity that is there stays, unless asked otherwise.
async fn init(
    State(control): State<Control>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Result<Json<InitRequest>, JsonRejection>,
) -> Result<Json<InitAnswer>, Refusal> {
    caller.check(own_uid())?;
    let Json(request) = request?;
    finish(async move {
        let _alone = control.changing.lock().await;
        make_identity(&control, request.force_new).await
    })
    .await
}

async fn make_identity(control: &Control, force_new: bool) -> Result<Json<InitAnswer>, Refusal> {
    let what = "cannot make the identity";
    let keys = control
        .hsm
        .provision(force_new)
        .await
        .map_err(|error| unavailable(what, &error, error.advice()))?;
    let vendor = keys.vendor.clone();
    let identity =
        Identity::new(control.hsm.clone(), keys).map_err(|error| broken(what, &error))?;
    let gateway = identity.fingerprint().to_string();
    let mut is_new = false;
    let kept = control.enrolment.change(|content| {
        is_new = content.gateway.as_ref() != Some(&gateway);
        if is_new {
            // Services know another identity.
            content.services.clear();
            content.name = None;
        }
        content.gateway = Some(gateway.clone());
    });
    kept.map_err(|error| broken("cannot keep the identity's name", &error))?;
    if is_new {
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
    request: Result<Json<EnrollRequest>, JsonRejection>,
) -> Result<Json<EnrollAnswer>, Refusal> {
    caller.check(own_uid())?;
    let Json(request) = request?;
    finish(async move {
        let _alone = control.changing.lock().await;
        enroll_at_service(&control, &request).await
    })
    .await
}

async fn enroll_at_service(
    control: &Control,
    request: &EnrollRequest,
) -> Result<Json<EnrollAnswer>, Refusal> {
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

/// A change is done to its end, although its caller may have hung up.
async fn finish<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let done = crate::tasks::finish(change).await;
    done.unwrap_or_else(|error| Err(broken("cannot make the change", &error.into())))
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

async fn not_found() -> Refusal {
    refuse(
        StatusCode::NOT_FOUND,
        "no such path",
        "this version has /v1/status, /v1/readings, /v1/check, /v1/init, /v1/enroll, /v1/csr, /v1/spool/export and /v1/spool/exported",
        SAME_VERSION,
    )
}

async fn wrong_method() -> Refusal {
    refuse(
        StatusCode::METHOD_NOT_ALLOWED,
        "not done that way",
        "GET looks, POST changes",
        SAME_VERSION,
    )
}

/// An error on its way to the caller.
#[derive(Debug)]
struct Refusal(Box<Problem>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(self.0)).into_response()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(error: JsonRejection) -> Self {
        refuse(
            error.status(),
            "the request is not understood",
            &error.body_text(),
            SAME_VERSION,
        )
    }
}

impl From<enroll::EnrollError> for Refusal {
    fn from(error: enroll::EnrollError) -> Self {
        use enroll::EnrollError as E;
        let mut refusal = unavailable("cannot enrol", &error, error.advice());
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
            | E::Token(_)
            | E::Link(_)
            | E::Protocol(_)
            | E::Tpm(_)
            | E::Late
            | E::State(_) => {}
        }
        refusal
    }
}

fn refuse(status: StatusCode, what: &str, why: &str, advice: &str) -> Refusal {
    Refusal(Box::new(Problem {
        status: status.as_u16(),
        title: what.into(),
        what: what.into(),
        r#where: None,
        why: why.into(),
        r#do: advice.into(),
    }))
}

/// Something outside is in the way.
fn unavailable(what: &str, error: &dyn std::error::Error, advice: &str) -> Refusal {
    refuse(StatusCode::SERVICE_UNAVAILABLE, what, &chain(error), advice)
}

/// Something of ours is broken.
fn broken(what: &str, error: &anyhow::Error) -> Refusal {
    let why = format!("{error:#}");
    let advice = "check the disk that holds the state";
    refuse(StatusCode::INTERNAL_SERVER_ERROR, what, &why, advice)
}

const SAME_VERSION: &str = "update gatewayctl and gatewayd to the same version";

/// Owner and group; the unit gives the group to those who may look.
const SOCKET_MODE: u32 = 0o660;

/// The longest request names 128 epochs: 10 KiB.
const BODY_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener as Listener, time::Duration};

    use hsm::{HsmConfig, Tpm};
    use http_body_util::{BodyExt, Full};
    use hyper::{Request, body::Bytes, client::conn::http1};
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixStream;

    use super::*;
    use crate::fixture::{open_spool, service};

    #[test]
    fn only_root_and_the_own_user_may_change_anything() {
        assert!(Caller(Some(0)).check(120).is_ok());
        assert!(Caller(Some(120)).check(120).is_ok());
        for stranger in [Some(121), Some(u32::MAX), None] {
            let refusal = Caller(stranger).check(120).unwrap_err();
            assert_eq!(refusal.0.status, 403);
        }
    }

    #[tokio::test]
    async fn whatever_changes_or_signs_asks_who_calls() {
        let folder = tempfile::tempdir().unwrap();
        let control = control(folder.path());
        let stranger = || ConnectInfo(Caller(Some(own_uid() + 1)));
        let ticket = EnrollRequest {
            ticket: "gwt1-x".to_owned().into(),
            service: None,
        };
        let refused = [
            init(State(control.clone()), stranger(), Ok(Json::default()))
                .await
                .map(drop),
            enroll(State(control.clone()), stranger(), Ok(Json(ticket)))
                .await
                .map(drop),
            csr::csr(State(control.clone()), stranger(), Ok(Json::default()))
                .await
                .map(drop),
            export::export(State(control.clone()), stranger(), Ok(Json::default()))
                .await
                .map(drop),
            export::exported(State(control), stranger(), Ok(Json::default()))
                .await
                .map(drop),
        ];
        for refusal in refused {
            assert_eq!(refusal.unwrap_err().0.status, 403);
        }
    }

    #[tokio::test]
    async fn a_socket_where_a_daemon_answers_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let _first = listen(&socket).unwrap();
        let refused = listen(&socket).unwrap_err().to_string();
        assert!(refused.contains("another gatewayd"), "{refused}");
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_daemon_left_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        drop(Listener::bind(&socket).unwrap());
        let _listener = listen(&socket).unwrap();
        let mode = fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);

        let file = folder.path().join("precious");
        fs::write(&file, "data").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    }

    #[tokio::test]
    async fn what_is_not_understood_is_answered_with_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = listen(&socket).unwrap();
        let stop = CancellationToken::new();
        let serving = serve(listener, control(folder.path()), stop.clone());
        let asking = async {
            for (method, path, body, status) in [
                ("GET", "/v2/status", "", 404),
                ("GET", "/v1/init", "", 405),
                ("POST", "/v1/init", "{\"force\":true}", 422),
                ("POST", "/v1/init", "{", 400),
                ("POST", "/v1/enroll", "{\"ticket\":\"gwt1-x\"}", 503),
                ("POST", "/v1/csr", "{\"subject\":\"\"}", 400),
                ("POST", "/v1/csr", "{}", 503),
                ("POST", "/v1/spool/export", "{}", 400),
                (
                    "POST",
                    "/v1/spool/exported",
                    "{\"epochs\":[[\"0g\",1]]}",
                    400,
                ),
                ("GET", "/v1/check?only=tmp", "", 400),
                ("GET", "/v1/check?skip=tpm", "", 400),
            ] {
                let (kind, problem) = ask(&socket, method, path, body).await;
                assert_eq!(kind, "application/problem+json", "{path}");
                assert_eq!(problem.status, status, "{path}");
                assert!(!problem.r#do.is_empty() && !problem.why.is_empty());
            }
            stop.cancel();
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.unwrap();
    }

    async fn ask(socket: &Path, method: &str, path: &str, body: &'static str) -> (String, Problem) {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "gatewayd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        let kind = kind.to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (kind, serde_json::from_slice(&body).unwrap())
    }

    fn control(folder: &Path) -> Control {
        let file = folder.join("gatewayd.toml");
        fs::write(&file, "").unwrap();
        let config = Config::load(&file).unwrap();
        let clock = Clock::new().unwrap();
        let spool = open_spool(&folder.join("spool"));
        Control {
            board: Arc::new(Board::new(&config.sensors)),
            hsm: Hsm::start(HsmConfig {
                tpm: Tpm::Device(folder.join("none")),
                keys: folder.join("keys"),
                timeout: Duration::from_secs(1),
            }),
            identity: Arc::new(IdentitySlot::new(None)),
            services: vec![Arc::new(service(&spool))],
            enrolment: EnrolmentFile::in_folder(folder),
            progress: Progress::new(clock.clone()),
            changing: Arc::default(),
            checking: Arc::default(),
            config: Arc::new(config),
            clock,
            spool,
        }
    }
}
