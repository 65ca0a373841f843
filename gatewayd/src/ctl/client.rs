//! Talks to the daemon over its control socket.

use std::{fmt, io, path::PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::report::Problem;

/// A daemon that listens on a socket.
pub(super) struct Client {
    socket: PathBuf,
}

/// Why a command was not done; prints as the error that a person reads.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens on the socket, or we may not talk to it.
    NoDaemon(PathBuf, io::Error),
    /// The daemon answered with a problem.
    Refused(Box<Problem>),
    /// The daemon ended in the midst of its answer.
    Cut(hyper::Error),
    /// The answer is not understood.
    Answer(String),
    /// The configuration is wrong; every mistake, in lines.
    Config(String),
    /// A file for the service could not be written; what a person reads.
    Export(String),
    /// Standard input or output failed.
    Io(io::Error),
}

impl Failure {
    /// The exit code, after `sysexits.h`: 2 arguments, 69 no daemon, 70 a bug of ours, 75 not now,
    /// 76 the other side refused, 77 no permission, 78 configuration.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon(_, error) if error.kind() == io::ErrorKind::PermissionDenied => 77,
            Self::NoDaemon(..) | Self::Cut(_) => 69,
            Self::Refused(problem) => match (problem.status, problem.r#where.as_deref()) {
                (403, Some("service")) => 76,
                (403, _) => 77,
                (400, _) => 2,
                (503, _) => 75,
                _ => 70,
            },
            Self::Answer(_) => 70,
            Self::Config(_) => 78,
            Self::Export(_) | Self::Io(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon(socket, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "error: cannot reach the daemon: no permission for {}\ndo: use sudo, or: adduser $USER gatewayd",
                    socket.display()
                )
            }
            Self::NoDaemon(socket, error) => write!(
                f,
                "error: cannot reach the daemon: {error}\nat: {}\ndo: systemctl status gatewayd",
                socket.display()
            ),
            Self::Refused(problem) => {
                writeln!(f, "error: {}: {}", problem.what, problem.why)?;
                write!(f, "do: {}", problem.r#do)
            }
            Self::Cut(error) => write!(
                f,
                "error: the daemon ended the connection: {}\ndo: systemctl status gatewayd",
                crate::chain(error)
            ),
            Self::Answer(why) => write!(
                f,
                "error: cannot read the daemon's answer: {why}\ndo: update gatewayctl and gatewayd to the same version"
            ),
            Self::Config(text) | Self::Export(text) => f.write_str(text),
            Self::Io(error) => write!(f, "error: cannot read or print: {error}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::Cut(error)
    }
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let response = self.send("GET", path, Bytes::new()).await?;
        parse(&response.into_body().collect().await?.to_bytes())
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::Io(error.into()))?;
        let response = self.send("POST", path, body.into()).await?;
        parse(&response.into_body().collect().await?.to_bytes())
    }

    /// Asks for an answer that is taken as it comes.
    pub(super) async fn post_stream(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(HeaderMap, Incoming), Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::Io(error.into()))?;
        let response = self.send("POST", path, body.into()).await?;
        let (parts, body) = response.into_parts();
        Ok((parts.headers, body))
    }

    /// Opens an endless answer of lines.
    pub(super) async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let response = self.send("GET", path, Bytes::new()).await?;
        Ok(Lines {
            body: response.into_body(),
            rest: Vec::new(),
        })
    }

    /// Sends a request; an answer that is a problem is a failure.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| Failure::NoDaemon(self.socket.clone(), error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The connection ends with the program.
        crate::tasks::detach(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "gatewayd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Answer(error.to_string()))?;
        let response = sender.send_request(request).await?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let bytes = response.into_body().collect().await?.to_bytes();
        Err(Failure::Refused(Box::new(parse(&bytes)?)))
    }
}

/// Lines as they arrive.
pub(super) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next line, without its end; `None` when the daemon stopped.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.drain(..=end).collect::<Vec<_>>();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame?.into_data() {
                        self.rest.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::Answer(error.to_string()))
}
