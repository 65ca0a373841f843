//! Messages on one stream: `u32 length ‖ bytes` (protocol.md 4).

use std::io;
use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tokio_util::compat::Compat;

use crate::control::Control;
use crate::{ByteStream, LinkError};

pub use wire::upload::MESSAGE_BYTES_MAX;

/// One stream of a link, as messages in both directions.
///
/// Dropping it without [`finish`](Self::finish) tells the peer that the stream was given up; what
/// was sent before still arrives.
pub struct Messages {
    sender: Sender,
    receiver: Receiver,
}

impl Messages {
    pub(crate) fn new(
        stream: Compat<yamux::Stream>,
        control: Arc<Control>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let permit = permit.map(Arc::new);
        let (reader, writer) = tokio::io::split(stream);
        Self {
            sender: Sender {
                frames: codec().new_write(writer),
                control: Arc::clone(&control),
                _permit: permit.clone(),
            },
            receiver: Receiver {
                frames: codec().new_read(reader),
                control,
                _permit: permit,
            },
        }
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    ///
    /// As [`Sender::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.sender.send(message).await
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        self.receiver.recv().await
    }

    /// See [`Sender::finish`].
    ///
    /// # Errors
    ///
    /// As [`Sender::finish`].
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        self.sender.finish().await
    }

    /// The stream as bytes, from the first one on that was not taken as a message. For a stream on
    /// which this side has sent no message, or whose last was sent to its end.
    #[must_use]
    pub fn into_bytes(self) -> ByteStream {
        let Self { sender, receiver } = self;
        let parts = receiver.frames.into_parts();
        ByteStream {
            head: parts.read_buf,
            stream: parts.io.unsplit(sender.frames.into_inner()),
            _permit: sender._permit,
        }
    }

    /// Separates the directions, so that two tasks may hold them. The stream ends with the last.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

/// The sending direction of a stream.
pub struct Sender {
    frames: FramedWrite<WriteHalf<Compat<yamux::Stream>>, LengthDelimitedCodec>,
    control: Arc<Control>,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Sender {
    /// Sends one message; returns when the link has taken it, which may wait for the peer to read.
    ///
    /// If the future is dropped, the message may still be sent, whole, with the next one.
    ///
    /// # Errors
    ///
    /// [`LinkError::LocalOversized`], without harm; [`LinkError::Cut`] if the peer or the link has
    /// ended the stream.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(LinkError::LocalOversized {
                bytes: message.len(),
            });
        }
        let sent = self.frames.send(message).await;
        sent.map_err(|_| ended(&self.control))
    }

    /// Says that nothing more will be sent. The peer's [`Receiver::recv`] then returns `None`.
    ///
    /// # Errors
    ///
    /// [`LinkError::Cut`] if the peer or the link has ended the stream.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        let flushed = SinkExt::<&[u8]>::flush(&mut self.frames).await;
        flushed.map_err(|_| ended(&self.control))?;
        let finished = self.frames.get_mut().shutdown().await;
        finished.map_err(|_| ended(&self.control))
    }
}

/// The receiving direction of a stream.
pub struct Receiver {
    frames: FramedRead<ReadHalf<Compat<yamux::Stream>>, LengthDelimitedCodec>,
    control: Arc<Control>,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Receiver {
    /// Waits for the next message; `None` if the peer has finished, given up, or closed the link
    /// properly.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`LinkError::PeerOversized`]: close the link with
    /// [`Admission::ProtocolError`](channel::Admission::ProtocolError). [`LinkError::Cut`] if the
    /// stream ended inside a message, [`LinkError::Ended`] if the link broke.
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        match self.frames.next().await {
            Some(Ok(message)) => Ok(Some(message.into())),
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(LinkError::PeerOversized)
            }
            Some(Err(_)) => Err(ended(&self.control)),
            None if self.control.is_broken() => Err(LinkError::Ended),
            None => Ok(None),
        }
    }
}

/// The stream's end, as the driver knows better: a broken link, or only this stream.
fn ended(control: &Control) -> LinkError {
    if control.is_broken() {
        LinkError::Ended
    } else {
        LinkError::Cut
    }
}

fn codec() -> tokio_util::codec::length_delimited::Builder {
    let mut codec = LengthDelimitedCodec::builder();
    codec
        .length_field_type::<u32>()
        .max_frame_length(MESSAGE_BYTES_MAX);
    codec
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::io::AsyncWriteExt as _;
    use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
    use yamux::{Config, Connection, Mode};

    use super::*;
    use crate::StreamName;
    use crate::streams::name_incoming;

    /// A stream below the level of messages, its first byte sent and read: the peer's end, ours.
    async fn raw_pair() -> (yamux::Stream, yamux::Stream) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let mut client = Connection::new(client.compat(), Config::default(), Mode::Client);
        let mut server = Connection::new(server.compat(), Config::default(), Mode::Server);
        let mut theirs = poll_fn(|cx| client.poll_new_outbound(cx)).await.unwrap();
        tokio::spawn(async move { poll_fn(|cx| client.poll_next_inbound(cx)).await });
        let (opened, ours) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let stream = poll_fn(|cx| server.poll_next_inbound(cx)).await;
            drop(opened.send(stream));
            poll_fn(|cx| server.poll_next_inbound(cx)).await
        });
        theirs.write_all(b"!").await.unwrap();
        let mut ours = ours.await.unwrap().unwrap().unwrap();
        let mut first = [0];
        futures::io::AsyncReadExt::read_exact(&mut ours, &mut first)
            .await
            .unwrap();
        (theirs, ours)
    }

    fn messages(stream: yamux::Stream) -> Messages {
        Messages::new(stream.compat(), Arc::default(), None)
    }

    #[tokio::test]
    async fn an_announced_length_beyond_the_limit_is_refused_before_it_comes() {
        let over = u32::try_from(MESSAGE_BYTES_MAX).unwrap() + 1;
        for length in [over, u32::MAX] {
            let (mut peer, ours) = raw_pair().await;
            let mut messages = messages(ours);
            for _ in 0..1000 {
                peer.write_all(&length.to_be_bytes()).await.unwrap();
            }
            assert!(matches!(
                messages.recv().await,
                Err(LinkError::PeerOversized)
            ));
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_message_is_cut() {
        let (mut peer, ours) = raw_pair().await;
        let mut messages = messages(ours);
        peer.write_all(&[0, 0, 0, 5, b'h', b'a']).await.unwrap();
        peer.close().await.unwrap();
        assert!(matches!(messages.recv().await, Err(LinkError::Cut)));
    }

    #[tokio::test]
    async fn a_stream_is_taken_by_its_name() {
        let (mut peer, ours) = raw_pair().await;
        peer.write_all(b"\x07command\0\0\0\x02hi").await.unwrap();
        let (name, mut messages) = name_incoming(ours, Arc::default()).await.unwrap();
        assert_eq!(name, StreamName::Command);
        assert_eq!(messages.recv().await.unwrap().unwrap(), b"hi");
    }

    #[tokio::test]
    async fn a_stream_without_a_known_name_is_given_up() {
        for name in [&b"\x06upl0ad"[..], b"\0", b"\x02\xff\xff", b"\x06UPLOAD"] {
            let (mut peer, ours) = raw_pair().await;
            peer.write_all(name).await.unwrap();
            assert!(name_incoming(ours, Arc::default()).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_stream_whose_name_does_not_come_is_given_up() {
        let (mut peer, ours) = raw_pair().await;
        peer.write_all(b"\x06upl").await.unwrap();
        tokio::time::pause();
        assert!(name_incoming(ours, Arc::default()).await.is_none());
    }
}
