//! The moving part of a link.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use channel::{Admission, PublicKey};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::timeout;
use yamux::{Config, Connection, Mode};

use crate::control::Control;
use crate::pipe::{Pipe, Shared};
use crate::pump::{CLOSE_TIME_MAX, Pump};
use crate::renewal::{Owner, Part, Renewals};
use crate::streams::{OPENED_MAX, OpenRequest, STREAMS_MAX, name_incoming};
use crate::{LinkError, Messages, StreamName, Streams};

/// A session that is open, with nothing on it yet. It borrows what it needs to renew its keys: the own
/// channel key, and whom it asks.
pub struct Link<'a> {
    /// Names this session, the same on both sides; evidence is bound to it (protocol.md 2.3).
    pub handshake_hash: [u8; 32],
    /// The key that the peer has proved.
    pub remote_static: PublicKey,
    pump: Pump,
    owner: Owner<'a>,
}

impl<'a> Link<'a> {
    pub(crate) fn new(
        pump: Pump,
        owner: Owner<'a>,
        handshake_hash: [u8; 32],
        remote_static: PublicKey,
    ) -> Self {
        Self {
            handshake_hash,
            remote_static,
            pump,
            owner,
        }
    }

    /// Bytes received and sent on the socket since the session began, its overhead included.
    /// [`Streams::bytes`] goes on counting.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.pump.control().bytes()
    }

    /// The part that moves bytes, and the part that uses the streams.
    #[must_use]
    pub fn split(self) -> (Driver<'a>, Streams) {
        let control = Arc::clone(self.pump.control());
        let mode = match self.owner.part {
            Part::Gateway(_) => Mode::Client,
            Part::Service(..) => Mode::Server,
        };
        let pipe = Pipe::new(self.pump);
        let shared = pipe.share();
        let (opens_sender, opens) = mpsc::channel(OPENED_MAX);
        let (accepted, accepted_receiver) = mpsc::channel(STREAMS_MAX);
        let streams = Streams::new(opens_sender, accepted_receiver, Arc::clone(&control));
        let driver = Driver {
            connection: Connection::new(pipe, limits(), mode),
            shared,
            renewals: Renewals::new(self.owner),
            naming: FuturesUnordered::new(),
            opens,
            accepted,
            control,
            ended_well: false,
        };
        (driver, streams)
    }
}

/// Moves the bytes of a link: socket, session, streams, keep-alive.
///
/// Drop it to cut the link; the peer will report a truncation.
pub struct Driver<'a> {
    connection: Connection<Pipe>,
    shared: Arc<Mutex<Shared>>,
    renewals: Renewals<'a>,
    /// Streams the peer has opened, while their names arrive. As many as there are streams.
    naming: FuturesUnordered<BoxFuture<'static, Option<(StreamName, Messages)>>>,
    opens: mpsc::Receiver<OpenRequest>,
    accepted: mpsc::Sender<(StreamName, Messages)>,
    control: Arc<Control>,
    ended_well: bool,
}

impl Driver<'_> {
    /// Runs the link until it ends, and returns why one of the sides has closed it.
    ///
    /// Not to be cancelled and called again: dropping the future cuts the link.
    ///
    /// # Errors
    ///
    /// Whatever ended the link without a close. The next attempt is a new link, after a pause
    /// that grows (protocol.md 6).
    pub async fn run(mut self) -> Result<Admission, LinkError> {
        let ended = match poll_fn(|cx| self.poll_streams(cx)).await {
            Ok(Some(reason)) => {
                self.say_goodbye(reason).await;
                Ok(reason)
            }
            Ok(None) => self.hear_goodbye().await,
            Err(error) => {
                // If the peer broke the rules, there is a last record that tells it so.
                // It goes out now or never.
                let _ = poll_fn(|cx| {
                    Poll::Ready(Shared::lock(&self.shared).pump.poll_finish(cx).is_ready())
                })
                .await;
                Err(error)
            }
        };
        self.ended_well = ended.is_ok();
        ended
    }

    /// Moves whatever can move. Ready with a reason once this side wants to close, without one
    /// once the peer has closed.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Admission>, LinkError>> {
        loop {
            if let Some(reason) = self.control.poll_close(cx.waker()) {
                return Poll::Ready(Ok(Some(reason)));
            }
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    let control = Arc::clone(&self.control);
                    self.naming.push(Box::pin(name_incoming(stream, control)));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.judge(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Pending => {}
            }
            if let Poll::Ready(Some(named)) = self.naming.poll_next_unpin(cx) {
                if let Some(stream) = named {
                    // Without room nobody accepts; the stream is given up.
                    drop(self.accepted.try_send(stream));
                }
                continue;
            }
            if let Poll::Ready(Some(answer)) = self.opens.poll_recv(cx) {
                match self.connection.poll_new_outbound(cx) {
                    // If nobody waits any more, the stream is given up.
                    Poll::Ready(Ok(stream)) => drop(answer.send(stream)),
                    Poll::Ready(Err(error)) => return Poll::Ready(self.judge(error)),
                    // Only beyond 256 unacknowledged streams, of which there are 16.
                    Poll::Pending => drop(answer),
                }
                continue;
            }
            let mut shared = Shared::lock(&self.shared);
            let was_closed = shared.pump.is_closed();
            let sent = match shared.poll_send(cx) {
                Poll::Ready(sent) => sent,
                Poll::Pending => Ok(()),
            };
            let ahead = sent.and_then(|()| shared.pump.poll_ahead(cx));
            let renewed = self.renewals.poll(cx, &mut shared.pump, &self.control);
            match ahead.and_then(|ahead| Ok(ahead | renewed?)) {
                Ok(true) => {}
                // The multiplexer waits for the socket, and learns only here that there is an end.
                Ok(false) if !was_closed && shared.pump.is_closed() => {}
                Ok(false) => return Poll::Pending,
                Err(error) => {
                    // The multiplexer first hands on what arrived before, and then meets this.
                    shared.fail(error);
                    let error = shared.failure.take().unwrap_or(LinkError::Ended);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// The cause behind the multiplexer's error.
    fn judge(&self, error: yamux::ConnectionError) -> Result<Option<Admission>, LinkError> {
        let mut shared = Shared::lock(&self.shared);
        match shared.failure.take() {
            Some(cause) => Err(cause),
            // A session may be closed in the middle of a frame of the multiplexer.
            None if shared.pump.is_closed() => Ok(None),
            None => {
                self.control.set_broken();
                Err(LinkError::PeerStreams(error))
            }
        }
    }

    /// Sends what the streams hold and then `reason`, as far as the peer takes it in time.
    async fn say_goodbye(&mut self, reason: Admission) {
        Shared::lock(&self.shared).goodbye = reason;
        // Whether it was heard or not, the link is over.
        let _ = timeout(CLOSE_TIME_MAX, poll_fn(|cx| self.poll_goodbye(cx))).await;
    }

    /// What the peer still sends is dropped, so that a peer that writes cannot keep us from
    /// finishing.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let closed = self.connection.poll_close(cx);
        let pump = &mut Shared::lock(&self.shared).pump;
        if closed.is_ready() {
            return pump.poll_finish(cx);
        }
        loop {
            match pump.poll_discard(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) | Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
        }
    }

    /// Waits until the peer, whose streams have ended, has said why; then ends our side.
    async fn hear_goodbye(&mut self) -> Result<Admission, LinkError> {
        let word = poll_fn(|cx| Shared::lock(&self.shared).pump.poll_last_word(cx));
        let word = timeout(CLOSE_TIME_MAX, word).await;
        let reason = word.map_err(|_| LinkError::Ended)??;
        let _ = timeout(
            CLOSE_TIME_MAX,
            poll_fn(|cx| Shared::lock(&self.shared).pump.poll_finish(cx)),
        )
        .await;
        Ok(reason)
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if !self.ended_well {
            self.control.set_broken();
        }
    }
}

/// Protocol.md 2.4.
fn limits() -> Config {
    let mut config = Config::default();
    // In this order: the window must never be below 256 KiB for each stream.
    config.set_max_num_streams(STREAMS_MAX);
    config.set_max_connection_receive_window(Some(WINDOW_BYTES_MAX));
    config
}

/// Protocol.md 2.4: 16 streams of 256 KiB. So no stream grows beyond its first window.
const WINDOW_BYTES_MAX: usize = 4 * 1024 * 1024;
