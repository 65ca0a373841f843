//! One stream as plain bytes, for what has frames of its own: a tunnel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::compat::Compat;

/// One stream of a link, as bytes in both directions. Made by
/// [`Messages::into_bytes`](crate::Messages::into_bytes).
///
/// Shutting it down ends this side's direction; dropping it gives the stream up. Its errors are
/// those of the link: the driver knows why.
pub struct ByteStream {
    /// What had arrived before the stream became one of bytes.
    pub(crate) head: BytesMut,
    pub(crate) stream: Compat<yamux::Stream>,
    pub(crate) _permit: Option<std::sync::Arc<OwnedSemaphorePermit>>,
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let count = self.head.len().min(out.remaining());
        out.put_slice(self.head.get(..count).unwrap_or_default());
        self.head.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
