//! Opening and accepting the streams of a link.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use channel::Admission;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

use crate::control::Control;
use crate::{LinkError, Messages};

/// What a stream is for. Its first bytes say so: `u8 length ‖ ASCII`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamName {
    /// Batches and their acks (protocol.md 4); opened by the gateway.
    Upload,
    /// Enrolment (protocol.md 5.2); opened by the gateway.
    Enroll,
    /// Commands (protocol.md 7); opened by the service.
    Command,
    /// A tunnel that a command has opened (protocol.md 7).
    Tunnel,
}

impl StreamName {
    const ALL: [Self; 4] = [Self::Upload, Self::Enroll, Self::Command, Self::Tunnel];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Enroll => "enroll",
            Self::Command => "command",
            Self::Tunnel => "tunnel",
        }
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StreamName {
    type Err = UnknownStream;

    fn from_str(text: &str) -> Result<Self, UnknownStream> {
        let known = Self::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or(UnknownStream)
    }
}

/// The text is no stream's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no stream has this name")]
pub struct UnknownStream;

/// Opens and accepts streams. Clones are handles to the same link.
///
/// Nothing happens unless the link's [`Driver`](crate::Driver) runs.
#[derive(Clone)]
pub struct Streams {
    opens: mpsc::Sender<OpenRequest>,
    accepted: Arc<Mutex<mpsc::Receiver<(StreamName, Messages)>>>,
    permits: Arc<Semaphore>,
    control: Arc<Control>,
}

impl Streams {
    pub(crate) fn new(
        opens: mpsc::Sender<OpenRequest>,
        accepted: mpsc::Receiver<(StreamName, Messages)>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            opens,
            accepted: Arc::new(Mutex::new(accepted)),
            permits: Arc::new(Semaphore::new(OPENED_MAX)),
            control,
        }
    }

    /// Opens a stream. Waits while this side has eight of its own open.
    ///
    /// # Errors
    ///
    /// [`LinkError::Ended`] or [`LinkError::Cut`] if the link has ended.
    pub async fn open(&self, name: StreamName) -> Result<Messages, LinkError> {
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await;
        let permit = permit.map_err(|_| LinkError::Ended)?;
        let (answer, opened) = oneshot::channel();
        let asked = self.opens.send(answer).await;
        asked.map_err(|_| LinkError::Ended)?;
        let stream = opened.await.map_err(|_| LinkError::Ended)?;
        name_outgoing(stream.compat(), name, &self.control, permit).await
    }

    /// Waits for the next stream that the peer opens; `None` once the link has ended.
    ///
    /// Cancel-safe. Streams wait here, sixteen at most, so whoever drives a link also accepts.
    pub async fn accept(&self) -> Option<(StreamName, Messages)> {
        self.accepted.lock().await.recv().await
    }

    /// Closes the link: the driver sends what streams have been given, tells the peer `reason`,
    /// and ends. Only the first reason counts.
    pub fn close(&self, reason: Admission) {
        self.control.close(reason);
    }

    /// Bytes received and sent on the socket since the session began, its overhead included.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.control.bytes()
    }
}

/// Where the driver puts the stream that it opens.
pub(crate) type OpenRequest = oneshot::Sender<yamux::Stream>;

/// Reads the name of a stream that the peer has opened. `None`: the peer did not say a name that
/// is known, or not in time; the stream is given up.
pub(crate) async fn name_incoming(
    stream: yamux::Stream,
    control: Arc<Control>,
) -> Option<(StreamName, Messages)> {
    let mut stream = stream.compat();
    let named = timeout(NAME_TIME_MAX, async {
        let length = stream.read_u8().await.ok()?;
        let mut name = vec![0; usize::from(length)];
        stream.read_exact(&mut name).await.ok()?;
        std::str::from_utf8(&name).ok()?.parse().ok()
    });
    let Ok(Some(name)) = named.await else {
        tracing::debug!("the peer opened a stream without a known name");
        return None;
    };
    Some((name, Messages::new(stream, control, None)))
}

async fn name_outgoing(
    mut stream: Compat<yamux::Stream>,
    name: StreamName,
    control: &Arc<Control>,
    permit: OwnedSemaphorePermit,
) -> Result<Messages, LinkError> {
    let text = name.as_str().as_bytes();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let header = [&[length], text].concat();
    let named = stream.write_all(&header).await;
    named.map_err(|_| LinkError::Cut)?;
    stream.flush().await.map_err(|_| LinkError::Cut)?;
    Ok(Messages::new(stream, Arc::clone(control), Some(permit)))
}

/// Half of what a session carries, so that neither side can take the other's.
pub(crate) const OPENED_MAX: usize = STREAMS_MAX / 2;

/// Protocol.md 2.4. An upload, an enrolment, a command stream, and tunnels.
pub(crate) const STREAMS_MAX: usize = 16;

/// A name of a few bytes follows the opening at once; slower than this is no network, but a peer
/// that holds a stream for nothing.
const NAME_TIME_MAX: Duration = Duration::from_secs(10);
