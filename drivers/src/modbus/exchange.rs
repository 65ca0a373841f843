//! One request and its answer, on a line that may be late, noisy, or gone.
//!
//! An RTU answer does not say which request it answers. Three rules keep a late one from being
//! taken for the next:
//!
//! 1. Before each request the line has to be silent, and what it said until then is thrown away.
//! 2. An answer of another device is thrown away while waiting for the right one.
//! 3. A device that failed to answer is left alone for a while (see `bus`), so that its late
//!    answer falls under rule 1 or 2.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::frame::{AnswerError, FRAME_BYTES_MAX, FrameError, REQUEST_BYTES, Request};
use crate::SensorError;
use crate::serial::BusConfig;

/// An open port, and what its settings mean in time.
pub(super) struct Line<P> {
    port: P,
    character: Duration,
    silence: Duration,
    babble: Duration,
}

/// Why a request brought no registers.
#[derive(Debug)]
pub(super) enum AskError {
    /// The device is at fault; the line can be used on.
    Device(SensorError),
    /// The port is at fault; close it and open it anew.
    Port(io::Error),
}

impl<P: AsyncRead + AsyncWrite + Unpin> Line<P> {
    /// Takes over a port that was opened for `bus`.
    pub(super) fn new(port: P, bus: &BusConfig) -> Self {
        let silence = (bus.time_of(7) / 2).max(SILENCE_MIN);
        let silence = silence.max(bus.pause_between_requests);
        Self {
            port,
            character: bus.time_of(1),
            silence,
            babble: silence + BABBLE_MIN.max(bus.time_of(BABBLE_CHARACTERS)),
        }
    }

    /// Throws away what arrives until `until`, and so notices when the port goes.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// The port's, or [`io::ErrorKind::UnexpectedEof`] if it was unplugged.
    pub(super) async fn listen(&mut self, until: Instant) -> io::Result<()> {
        let mut scrap = [0; FRAME_BYTES_MAX];
        while let Ok(read) = timeout_at(until, self.port.read(&mut scrap)).await {
            arrived(read)?;
        }
        Ok(())
    }

    /// Sends `request` and returns the registers of its answer.
    ///
    /// The device may think for `timeout`; the time the bytes take on the wire comes on top.
    pub(super) async fn ask(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<Vec<u16>, AskError> {
        self.settle().await?;
        let characters = u32::try_from(REQUEST_BYTES + request.answer_bytes()).unwrap_or(u32::MAX);
        let deadline = Instant::now() + timeout + self.character * characters;
        // No flush: it would block the thread until the last bit is on the wire.
        match timeout_at(deadline, self.port.write_all(&request.encode())).await {
            Ok(written) => written.map_err(AskError::Port)?,
            Err(_) => return Err(AskError::Device(SensorError::Timeout)),
        }
        self.answer(request, deadline).await
    }

    async fn answer(&mut self, request: &Request, deadline: Instant) -> Result<Vec<u16>, AskError> {
        let mut bytes = Vec::with_capacity(FRAME_BYTES_MAX);
        let mut silence = SensorError::Timeout;
        loop {
            match request.answer(&bytes) {
                Ok(registers) => return Ok(registers),
                Err(AnswerError::Refused(error)) => return Err(AskError::Device(error)),
                Err(AnswerError::OtherDevice {
                    slave_id,
                    bytes: late,
                }) => {
                    bytes.drain(..late.min(bytes.len()));
                    silence = SensorError::Format(FrameError::WrongDevice {
                        answered: slave_id,
                        asked: request.slave_id,
                    });
                    continue;
                }
                Err(AnswerError::Incomplete) => {}
            }
            match timeout_at(deadline, self.port.read_buf(&mut bytes)).await {
                Ok(read) => arrived(read).map_err(AskError::Port)?,
                Err(_) if bytes.is_empty() => return Err(AskError::Device(silence)),
                Err(_) => {
                    let bytes = bytes.len();
                    return Err(AskError::Device(FrameError::Short { bytes }.into()));
                }
            }
        }
    }

    /// Waits until the line is silent, throwing away what it says until then.
    async fn settle(&mut self) -> Result<(), AskError> {
        let mut scrap = [0; FRAME_BYTES_MAX];
        let give_up = Instant::now() + self.babble;
        loop {
            let quiet = Instant::now() + self.silence;
            match timeout_at(quiet, self.port.read(&mut scrap)).await {
                Err(_) => return Ok(()),
                Ok(read) => arrived(read).map_err(AskError::Port)?,
            }
            if give_up < Instant::now() {
                return Err(AskError::Device(FrameError::Babble.into()));
            }
        }
    }
}

/// Tells bytes from the end: an unplugged port reads as empty, at once and for ever.
fn arrived(read: io::Result<usize>) -> io::Result<()> {
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Silence between frames above 19 200 Bd, where 3.5 characters would be shorter than timers are
/// exact (Serial Line V1.02, section 2.5.1.1).
const SILENCE_MIN: Duration = Duration::from_micros(1_750);

/// Who speaks for longer than two of the longest frames is not answering.
const BABBLE_CHARACTERS: u32 = 512;

/// Above 5 000 Bd, where adapters' own delays outweigh the time of frames.
const BABBLE_MIN: Duration = Duration::from_secs(1);
