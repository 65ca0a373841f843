//! The client's side of a relay (protocol.md 6): services register and accept, gateways ask for a
//! service.
//!
//! The relay learns who talks to whom, and can cut. What it splices is a session, in which it can
//! neither read nor write.

use std::time::Duration;

use channel::{Fingerprint, SoftwareSigningKey, Statement};
use data_encoding::BASE32;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use wire::relay::{Answer, ClientMessage, GREETING_BYTES, Greeting, RelayCode, ToRegistered};
use zeroize::Zeroizing;

use crate::dial::dial_tcp;
use crate::{Address, LinkError, Stage};

/// What a relay that does not serve everybody wants to see from a gateway.
pub struct Token {
    /// Names the token; sent in the clear.
    pub id: [u8; 8],
    /// The shared secret, 32 random bytes; never sent.
    pub secret: Zeroizing<[u8; 32]>,
}

impl Token {
    /// Reads a token as people keep it: 40 random bytes in base32 (RFC 4648), of which the first
    /// eight are its name. Space around it does not count. `None` if it is something else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let decoded = BASE32.decode(text.trim_ascii()).map(Zeroizing::new).ok()?;
        let (id, secret) = decoded.split_first_chunk::<8>()?;
        Some(Self {
            id: *id,
            secret: Zeroizing::new(secret.try_into().ok()?),
        })
    }
}

/// Names one gateway that waits at the relay, for one [`accept`].
pub type ConnectionId = [u8; 16];

/// What the relay tells a registered service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A gateway asks for the service: [`accept`] it within 10 s.
    Incoming(ConnectionId),
    /// The relay is about to stop: register with another. Sessions under way go on for a while.
    Drain,
}

/// Registers a service with the relay at `address`.
///
/// `online` is a key that `statement` lists with bit 0 (relay). The relay gets a signature that is
/// good for this relay, under this name, and this connection only.
///
/// # Errors
///
/// [`LinkError::LocalNotRelay`]; the errors of [`dial`](crate::dial()); and
/// [`LinkError::RelayRefused`], with [`RelayCode::BadProof`] also when the relay does not know the
/// name it was dialled by.
pub async fn register(
    address: &Address,
    statement: &Statement,
    online: &SoftwareSigningKey,
) -> Result<Registration, LinkError> {
    let stream = dial_relay(address).await?;
    let stream = ask(stream, |greeting| {
        let signed = wire::relay::register_message(
            &greeting.nonce,
            &address.authority(),
            statement.fingerprint().bytes(),
        );
        ClientMessage::Register {
            statement: statement.bytes().to_vec(),
            signature: online.sign_now(&signed),
        }
    })
    .await?;
    Ok(Registration {
        frames: LengthDelimitedCodec::builder()
            .length_field_type::<u16>()
            .max_frame_length(CONTROL_BYTES_MAX)
            .new_framed(stream),
    })
}

/// A service's place at a relay. Dropping it gives up the place.
pub struct Registration {
    frames: Framed<TcpStream, LengthDelimitedCodec>,
}

impl Registration {
    /// Waits for what the relay has to say. Pings are answered in here, so wait all the time.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`LinkError::RelayEnded`], [`LinkError::RelayMessage`], [`LinkError::Transport`], and
    /// [`LinkError::Timeout`] when the relay was silent for 5 min. Register anew.
    pub async fn next(&mut self) -> Result<RelayEvent, LinkError> {
        loop {
            // A pong may have been left over by a dropped future.
            let flushed = SinkExt::<&[u8]>::flush(&mut self.frames).await;
            flushed.map_err(LinkError::Transport)?;
            let frame = timeout(SILENCE_MAX, self.frames.next()).await;
            let frame = frame.map_err(|_| LinkError::Timeout {
                stage: Stage::Relay,
                limit: SILENCE_MAX,
            })?;
            let frame = frame.ok_or(LinkError::RelayEnded)?;
            let frame = frame.map_err(LinkError::Transport)?;
            match ToRegistered::decode(&frame).map_err(LinkError::RelayMessage)? {
                ToRegistered::Incoming { id } => return Ok(RelayEvent::Incoming(id)),
                ToRegistered::Drain => return Ok(RelayEvent::Drain),
                ToRegistered::Ping => {
                    let pong = ToRegistered::Pong.encode();
                    let fed = self.frames.feed(pong.as_slice()).await;
                    fed.map_err(LinkError::Transport)?;
                }
                ToRegistered::Pong => {}
            }
        }
    }
}

/// Takes a gateway that waits at the relay: the stream that [`accept`](crate::accept()) takes.
///
/// # Errors
///
/// As [`register`]; [`LinkError::RelayRefused`] if the gateway does not wait (any more).
pub async fn accept(address: &Address, id: ConnectionId) -> Result<TcpStream, LinkError> {
    let stream = dial_relay(address).await?;
    ask(stream, |_| ClientMessage::Accept { id }).await
}

/// Asks the relay on `stream` for `service`.
pub(crate) async fn hello(
    stream: TcpStream,
    service: &Fingerprint,
    token: Option<&Token>,
) -> Result<TcpStream, LinkError> {
    ask(stream, |greeting| ClientMessage::Hello {
        service: *service.bytes(),
        token: token.map(|token| wire::relay::Token {
            id: token.id,
            admit: wire::relay::admit(&*token.secret, &greeting.nonce, service.bytes()),
        }),
    })
    .await
}

async fn dial_relay(address: &Address) -> Result<TcpStream, LinkError> {
    match address {
        Address::Relay { .. } => dial_tcp(address).await,
        Address::Tcp { .. } => Err(LinkError::LocalNotRelay),
    }
}

/// Hears the relay's greeting, says one thing, and returns the stream if the answer is yes.
async fn ask(
    mut stream: TcpStream,
    message: impl FnOnce(&Greeting) -> ClientMessage,
) -> Result<TcpStream, LinkError> {
    let asked = timeout(ANSWER_TIME_MAX, async {
        let mut greeting = [0; GREETING_BYTES];
        read_exact(&mut stream, &mut greeting).await?;
        let greeting = Greeting::decode(&greeting).map_err(|_| LinkError::NotARelay)?;
        let message = message(&greeting).encode();
        write_frame(&mut stream, &message).await?;
        let code = read_answer(&mut stream).await?;
        if code == RelayCode::Ok {
            Ok(())
        } else {
            Err(LinkError::RelayRefused(code))
        }
    });
    asked.await.map_err(|_| LinkError::Timeout {
        stage: Stage::Relay,
        limit: ANSWER_TIME_MAX,
    })??;
    Ok(stream)
}

async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> Result<(), LinkError> {
    // A statement has 10 KiB at most, and with it a registration.
    let length = u16::try_from(message.len()).map_err(|_| LinkError::LocalOversized {
        bytes: message.len(),
    })?;
    let frame = [&length.to_be_bytes(), message].concat();
    stream.write_all(&frame).await.map_err(LinkError::Transport)
}

/// Reads the answer and no byte more: what follows is the peer's.
async fn read_answer(stream: &mut TcpStream) -> Result<RelayCode, LinkError> {
    let mut length = [0; 2];
    read_exact(stream, &mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > CONTROL_BYTES_MAX {
        return Err(LinkError::NotARelay);
    }
    let mut answer = vec![0; length];
    read_exact(stream, &mut answer).await?;
    let answer = Answer::decode(&answer).map_err(LinkError::RelayMessage)?;
    Ok(answer.code)
}

async fn read_exact(stream: &mut TcpStream, bytes: &mut [u8]) -> Result<(), LinkError> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(LinkError::RelayEnded)
        }
        Err(error) => Err(LinkError::Transport(error)),
    }
}

/// The largest message of a relay, `incoming`, has 24 bytes; later versions may say more.
const CONTROL_BYTES_MAX: usize = 512;

/// Above the 10 s that a relay gives a service to accept (protocol.md 6), and a round trip.
pub(crate) const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// A relay pings every 240 s (protocol.md 6); one minute for the way.
const SILENCE_MAX: Duration = Duration::from_secs(300);
