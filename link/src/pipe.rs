//! The byte stream under the multiplexer: a pump behind the traits of `futures`.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use channel::Admission;
use futures::io::{AsyncRead, AsyncWrite};

use crate::LinkError;
use crate::pump::Pump;

/// The pump as the multiplexer sees it.
///
/// Writes gather here until a record is full or the driver has nothing else to do, so that headers
/// and bodies share records, and records share system calls. The first failure is kept for the
/// driver; the multiplexer gets a stand-in.
pub(crate) struct Pipe {
    shared: Arc<Mutex<Shared>>,
}

/// What driver and multiplexer share. They run in one task, so the lock is never waited for.
pub(crate) struct Shared {
    pub(crate) pump: Pump,
    pub(crate) failure: Option<LinkError>,
    /// What is said to the peer when the multiplexer closes.
    pub(crate) goodbye: Admission,
    outbox: Vec<u8>,
    /// How much of a frame's body the multiplexer has yet to write.
    body: usize,
}

impl Pipe {
    pub(crate) fn new(pump: Pump) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                pump,
                failure: None,
                goodbye: Admission::Ok,
                outbox: Vec::new(),
                body: 0,
            })),
        }
    }

    /// The driver's view.
    pub(crate) fn share(&self) -> Arc<Mutex<Shared>> {
        Arc::clone(&self.shared)
    }
}

impl Shared {
    pub(crate) fn lock(shared: &Mutex<Self>) -> MutexGuard<'_, Self> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first failure. Readers of streams see the mark before they see an end.
    pub(crate) fn fail(&mut self, error: LinkError) {
        self.pump.control().set_broken();
        self.failure.get_or_insert(error);
    }

    /// Takes the header of a frame: `version ‖ type ‖ u16 flags ‖ u32 stream ‖ u32 length` (yamux
    /// specification, "Framing"). Pings of the multiplexer stay here: it sends one every ten seconds
    /// to measure the round trip, which would be megabytes a day, and no more until it is answered.
    /// The session has pings of its own.
    fn begin_frame(&mut self, header: &[u8; HEADER_BYTES]) {
        let [_, kind, _, flags, _, _, _, _, length @ ..] = header;
        if *kind == TYPE_PING && flags & FLAG_SYN != 0 {
            return;
        }
        if *kind == TYPE_DATA {
            self.body = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        }
        self.outbox.extend_from_slice(header);
    }

    fn poll_outbox(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if !self.outbox.is_empty() {
            ready!(self.pump.poll_seal(cx, &self.outbox))?;
            self.outbox.clear();
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what the multiplexer has written, as far as the socket takes it.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        ready!(self.poll_outbox(cx))?;
        ready!(self.pump.poll_transmit(cx))?;
        // An idle link keeps no buffer.
        self.outbox = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Turns our error into one that the multiplexer can carry.
    fn guard<T>(&mut self, polled: Poll<Result<T, LinkError>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| {
            self.fail(error);
            io::Error::from(io::ErrorKind::ConnectionAborted)
        })
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = Shared::lock(&self.shared);
        let polled = shared.pump.poll_inbox(cx, out);
        shared.guard(polled)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = Shared::lock(&self.shared);
        if shared.outbox.len() >= OUTBOX_BYTES_MAX {
            let polled = shared.poll_outbox(cx);
            ready!(shared.guard(polled))?;
        }
        if shared.body == 0
            && let Some(header) = bytes.first_chunk()
        {
            shared.begin_frame(header);
            return Poll::Ready(Ok(HEADER_BYTES));
        }
        let room = OUTBOX_BYTES_MAX.saturating_sub(shared.outbox.len());
        let taken = bytes.get(..room.max(1)).unwrap_or(bytes);
        shared.outbox.extend_from_slice(taken);
        shared.body = shared.body.saturating_sub(taken.len());
        Poll::Ready(Ok(taken.len()))
    }

    /// The driver sends whatever is here before it waits for anything.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = Shared::lock(&self.shared);
        let polled = shared.poll_outbox(cx);
        ready!(shared.guard(polled))?;
        let goodbye = shared.goodbye;
        shared.pump.session().close(goodbye);
        let polled = shared.pump.poll_transmit(cx);
        shared.guard(polled)
    }
}

/// The multiplexer writes a header at once, since it is always taken at once.
const HEADER_BYTES: usize = 12;
const TYPE_DATA: u8 = 0;
const TYPE_PING: u8 = 2;
/// Of a ping: it asks; an answer has ACK instead.
const FLAG_SYN: u8 = 1;

/// One record: a frame of yamux, 16 KiB and its header of 12 bytes.
const OUTBOX_BYTES_MAX: usize = 16 * 1024 + 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// The pump is not used: what is written stays in the outbox.
    async fn written(writes: &[&[u8]]) -> Vec<u8> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut pipe = Pipe::new(Pump::new(socket, session()));
        for bytes in writes {
            futures::io::AsyncWriteExt::write_all(&mut pipe, bytes)
                .await
                .unwrap();
        }
        std::mem::take(&mut Shared::lock(&pipe.shared).outbox)
    }

    fn session() -> channel::Session {
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let key = channel::SoftwareStaticKey::generate(&mut rng);
        let config = channel::InitiatorConfig {
            suite: channel::Suite::AesGcm,
            pin: channel::Fingerprint::new(channel::KeyKind::ServiceIdentity, [0; 32]),
            held: None,
            static_key: channel::StaticKey::public(&key),
            purpose: channel::Purpose::Deliver,
            version: String::new(),
        };
        channel::Session::initiate(config, Box::new(rng), crate::pump::now()).unwrap()
    }

    const PING: [u8; 12] = [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7];
    const ANSWER: [u8; 12] = [0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7];
    const WINDOW: [u8; 12] = [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0];

    #[tokio::test]
    async fn pings_of_the_multiplexer_stay_here_and_its_answers_do_not() {
        let sent = written(&[&WINDOW, &PING, &ANSWER, &PING]).await;
        assert_eq!(sent, [WINDOW, ANSWER].concat());
    }

    #[tokio::test]
    async fn a_body_that_looks_like_a_ping_is_sent() {
        let header = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 36];
        let body = [PING, WINDOW, PING].concat();
        let sent = written(&[&header, &body[..12], &body[12..], &PING, &WINDOW]).await;
        assert_eq!(sent, [&header[..], &body, &WINDOW].concat());
    }
}
