//! Moves bytes between a socket and a session, and runs the session's clock.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use channel::{Admission, Event, Session};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};

use crate::LinkError;
use crate::control::Control;
use crate::inbox::Inbox;

/// A socket, the session on it, and the few bytes between them.
///
/// Nothing moves unless a method is called; every `poll_*` leaves the caller's waker wherever it
/// returns [`Poll::Pending`].
pub(crate) struct Pump {
    socket: TcpStream,
    session: Session,
    /// A record is sealed while less than this waits for the socket.
    ahead: usize,
    /// Stream bytes that arrived and were not taken yet.
    inbox: Inbox,
    /// What a renewal asks of the owner.
    asked: VecDeque<Event>,
    /// Why the session was closed, once either side has closed it.
    closed: Option<Admission>,
    clock: Option<Pin<Box<Sleep>>>,
    control: Arc<Control>,
}

impl Pump {
    pub(crate) fn new(socket: TcpStream, session: Session) -> Self {
        Self {
            socket,
            session,
            ahead: AHEAD_BYTES_MIN,
            inbox: Inbox::default(),
            asked: VecDeque::new(),
            closed: None,
            clock: None,
            control: Arc::default(),
        }
    }

    /// Whether either side has closed the session.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(crate) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// What the session asks of its owner to renew its keys: all of it, so that no older answer is
    /// given to a newer question.
    pub(crate) fn take_asked(&mut self) -> VecDeque<Event> {
        self.take_events();
        std::mem::take(&mut self.asked)
    }

    /// Waits for the session's next event. For the handshake; afterwards
    /// [`poll_inbox`](Self::poll_inbox) takes the events.
    pub(crate) async fn next_event(&mut self) -> Result<Event, LinkError> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Does something else while only the session's clock runs.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, LinkError> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            error = self.deadline() => Err(error),
        }
    }

    /// Sends what is queued, ends our direction, and waits for the peer to end its own. Without
    /// the wait, bytes of the peer that nobody reads would make the kernel reset the connection,
    /// and our last record could be lost with it.
    ///
    /// Bound it with [`CLOSE_TIME_MAX`].
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Errors mean that the peer is gone, which is what we wait for.
        let sent = ready!(self.poll_transmit(cx));
        if sent.is_err() || ready!(Pin::new(&mut self.socket).poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        while let Ok(true) = ready!(self.poll_discard(cx)) {}
        Poll::Ready(())
    }

    /// Waits until it is known why the session was closed. Bound it with [`CLOSE_TIME_MAX`].
    pub(crate) fn poll_last_word(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Admission, LinkError>> {
        loop {
            self.take_events();
            self.inbox.clear();
            if let Some(reason) = self.closed {
                return Poll::Ready(Ok(reason));
            }
            ready!(self.poll_receive(cx))?;
        }
    }

    /// Reads once from the socket, for nobody; `false` at the end of the stream.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, LinkError>> {
        let mut chunk = [MaybeUninit::uninit(); DISCARD_BYTES];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut chunk))
            .map_err(LinkError::Transport)?;
        Poll::Ready(Ok(!chunk.filled().is_empty()))
    }

    /// Runs the clock, sends what is queued, and reads ahead of whoever takes the stream bytes.
    /// Returns whether stream bytes may have come.
    ///
    /// Reading goes on even while the multiplexer waits for room to write. Otherwise two peers
    /// that both write would wait for each other for ever.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        while self.poll_clock(cx)?.is_ready() {}
        self.take_events();
        if let Poll::Ready(sent) = self.poll_transmit(cx) {
            sent?;
        }
        if self.closed.is_some() || self.inbox.len() >= INBOX_BYTES_MAX {
            return Ok(false);
        }
        match self.poll_receive(cx) {
            Poll::Ready(received) => received.map(|()| true),
            Poll::Pending => Ok(false),
        }
    }

    /// Waits for stream bytes; none means that the session was closed.
    pub(crate) fn poll_inbox(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<Result<usize, LinkError>> {
        loop {
            self.take_events();
            let count = self.inbox.read(out);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            if self.closed.is_some() {
                return Poll::Ready(Ok(0));
            }
            ready!(self.poll_receive(cx))?;
        }
    }

    /// Seals stream bytes once little of what was sealed before waits for the socket. After a proper
    /// close, also one because the keys are at their limit, the bytes have nowhere to go.
    pub(crate) fn poll_seal(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<(), LinkError>> {
        if self.session.transmit().len() >= self.ahead {
            ready!(self.poll_transmit(cx))?;
        }
        let sent = self.session.send(now(), bytes);
        self.take_events();
        if self.closed.is_none() {
            sent?;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives everything queued to the socket.
    pub(crate) fn poll_transmit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        while !self.session.transmit().is_empty() {
            let bytes = self.session.transmit();
            let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
            let all = matches!(&written, Poll::Ready(Ok(count)) if *count == bytes.len());
            self.ahead = if all {
                (self.ahead * 2).min(AHEAD_BYTES_MAX)
            } else {
                AHEAD_BYTES_MIN
            };
            let count = ready!(written).map_err(LinkError::Transport)?;
            if count == 0 {
                let error = io::Error::from(io::ErrorKind::WriteZero);
                return Poll::Ready(Err(LinkError::Transport(error)));
            }
            self.session.transmitted(count);
            self.control.count_out(count);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, LinkError>> {
        loop {
            // First, since nobody may ask again: the last event of a handshake comes with a record.
            if let Poll::Ready(sent) = self.poll_transmit(cx) {
                sent?;
            }
            if let Some(event) = self.session.poll_event() {
                return Poll::Ready(Ok(event));
            }
            if self.poll_clock(cx)?.is_pending() {
                ready!(self.poll_receive(cx))?;
            }
        }
    }

    /// Reads once from the socket into the session.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        // Answers to pings wait here too; who floods with pings and reads no answer is not heard.
        if self.session.transmit().len() >= ANSWERS_BYTES_MAX {
            ready!(self.poll_transmit(cx))?;
        }
        let count = ready!(self.poll_read(cx)).map_err(LinkError::Transport)?;
        if count == 0 {
            let (received, _) = self.control.bytes();
            let ended = self.session.handle_end(now());
            // After a proper close there is nothing more to read, whoever has closed.
            self.closed.get_or_insert(Admission::Ok);
            return Poll::Ready(match ended {
                Err(_) if received == 0 => Err(LinkError::NotAnswered),
                ended => ended.map_err(LinkError::from),
            });
        }
        self.control.count_in(count);
        self.session.handle_received(now())?;
        Poll::Ready(Ok(()))
    }

    /// Reads once into the session's own buffer, which has room only once there is something to
    /// read: an idle link keeps none.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let buffer = self.session.receive_buffer();
            buffer.reserve(READ_BYTES);
            match self.socket.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    /// Ready when the session's deadline was reached, and handled.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, LinkError> {
        let Some(deadline) = self.session.poll_timeout() else {
            self.clock = None;
            return Ok(Poll::Pending);
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let clock = self
            .clock
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if clock.deadline() != deadline {
            clock.as_mut().reset(deadline);
        }
        if clock.as_mut().poll(cx).is_pending() {
            return Ok(Poll::Pending);
        }
        self.session.handle_timeout(now())?;
        Ok(Poll::Ready(()))
    }

    /// Waits until a deadline of the session ends it.
    async fn deadline(&mut self) -> LinkError {
        loop {
            match poll_fn(|cx| match self.poll_clock(cx) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
                Err(error) => Poll::Ready(Err(error)),
            })
            .await
            {
                Ok(()) => {}
                Err(error) => return error,
            }
        }
    }

    /// Moves what the session has for the streams to the inbox.
    fn take_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Data(bytes) => self.inbox.push(bytes),
                Event::Closed(reason) => self.closed = Some(reason),
                Event::NewStatement(_)
                | Event::KeyOperation { .. }
                | Event::Renewed
                | Event::RenewalFailed(_) => self.asked.push_back(event),
                // Of the handshake, which is over.
                Event::Peer { .. } | Event::Open { .. } => {}
            }
        }
    }
}

/// The clock of sessions. That of tokio, so that tests may stop it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One read of the socket: four records of a busy link.
const READ_BYTES: usize = 64 * 1024;

/// One read for nobody, on the stack.
const DISCARD_BYTES: usize = 16 * 1024;

/// Once the socket was full: no record is sealed while a byte of another waits. So a ping is behind
/// no more than two frames of yamux and what the kernel holds, also on a link of 20 kbit/s, where
/// 64 KiB would take 26 of the 30 s that the peer has to answer. Doubles with each write that the
/// socket takes whole.
const AHEAD_BYTES_MIN: usize = 1;

/// After sixteen such writes in a row: enough to make system calls cheap beside what they carry.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// What a peer may send before anything is taken: the windows of its streams (protocol.md 2.4,
/// 4 MiB per session), and the headers of yamux around it.
const INBOX_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Half of a large record: far more than the pongs that an honest peer is owed.
const ANSWERS_BYTES_MAX: usize = 32 * 1024;

/// How long a goodbye may take. Above one retransmission on a slow link, below the 8 s after
/// which a process that stops gives up its tasks.
pub(crate) const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);
