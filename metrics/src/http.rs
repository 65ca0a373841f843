//! `GET /metrics`, and nothing else.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Shows the metrics to whoever asks, until `stop`. There is no password: listen where only those
/// connect who may know how much is going on.
///
/// # Errors
///
/// None at present: a listener that fails for want of file descriptors is tried again.
pub async fn serve(
    listener: TcpListener,
    registry: &Registry,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => connections.push(answer(stream, registry)),
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection for metrics");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(()) = connections.next() => {}
        }
    }
}

/// One request, one answer.
async fn answer(stream: TcpStream, registry: &Registry) {
    let service = service_fn(async |request| Ok::<_, Infallible>(show(&request, registry)));
    let mut server = http1::Builder::new();
    let served = server
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // However it ended, it costs this connection only.
    let _ = timeout(CONNECTION_TIME_MAX, served).await;
}

fn show(request: &Request<Incoming>, registry: &Registry) -> Response<String> {
    let refuse = |status, why: &str| {
        let mut response = Response::new(format!("{why}\n"));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return refuse(StatusCode::NOT_FOUND, "there is only /metrics");
    }
    if request.method() != Method::GET {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "there is only GET");
        let get = hyper::header::HeaderValue::from_static("GET");
        response.headers_mut().insert(ALLOW, get);
        return response;
    }
    let mut text = String::new();
    if encode(&mut text, registry).is_err() {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "cannot be shown");
    }
    let mut response = Response::new(text);
    let format = hyper::header::HeaderValue::from_static(OPEN_METRICS);
    response.headers_mut().insert(CONTENT_TYPE, format);
    response
}

/// A Prometheus or two, and somebody with curl. Who connects and says nothing keeps others from
/// the metrics for a while, not the process from its work.
const CONNECTIONS_MAX: usize = 16;

/// Prometheus' own default for a scrape.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);

/// When the process is out of file descriptors, others have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// OpenMetrics 1.0, 4.1.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn metrics_are_shown_to_a_get_and_nothing_else_is_there() {
        let (address, stop, serving) = start().await;
        let get = ask(address, "GET /metrics").await;
        let (head, body) = get.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("content-type: application/openmetrics-text;"),
            "{head}"
        );
        assert!(
            body.contains("\ntest_build_info{version=\"1.2.3\"} 1\n"),
            "{body}"
        );
        assert!(body.contains("\nprocess_open_fds "), "{body}");
        assert!(body.ends_with("# EOF\n"), "{body}");
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(
            ask(address, "POST /metrics")
                .await
                .starts_with("HTTP/1.1 405 ")
        );
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn who_connects_and_says_nothing_is_bounded() {
        let (address, ..) = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let asking = ask(address, "GET /metrics");
        tokio::pin!(asking);
        let early = timeout(Duration::from_millis(100), &mut asking).await;
        assert!(early.is_err(), "one more than there may be was answered");
        silent.pop();
        assert!(asking.await.starts_with("HTTP/1.1 200 OK"));
    }

    async fn start() -> (
        std::net::SocketAddr,
        CancellationToken,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let serving = tokio::spawn(async move {
            let registry = crate::registry("test", "1.2.3");
            serve(listener, &registry, stopping).await.unwrap();
        });
        (address, stop, serving)
    }

    async fn ask(address: std::net::SocketAddr, what: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{what} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}
