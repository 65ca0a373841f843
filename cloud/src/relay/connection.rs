//! One connection, from the greeting to its role.

use std::io;
use std::sync::Arc;

use link::relay::ConnectionId;
use rand_core::{Rng, UnwrapErr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::relay::{Answer, ClientMessage, Greeting, RelayCode, Token};

use super::services::{self, Client, Registered, ServiceId};
use super::sources::{Home, Pending};
use super::splice::{Carrier, splice};
use super::{Admit, Relay, registered};
use crate::source::Source;

/// Serves one connection to its end. Whatever goes wrong ends this connection only.
///
/// The task of a connection is as large as its largest part, and most of them are silent splices:
/// so the other parts are boxed, and given back when they are done.
pub(super) async fn run(relay: Arc<Relay>, stream: TcpStream, source: Source) {
    match Box::pin(enter(&relay, stream, source)).await {
        Ok(Role::Registered(service, stream, called)) => {
            Box::pin(registered::run(Arc::clone(&relay), stream, called)).await;
            drop(service);
        }
        Ok(Role::Joined(client, stream, peer)) => {
            let carrier = Carrier {
                limits: &relay.config.limits,
                pipes: &relay.pipes,
                metrics: &relay.config.metrics,
            };
            if let Err(error) = splice(stream, peer, carrier).await {
                tracing::debug!(%error, "a splice has ended");
            }
            drop(client);
        }
        Ok(Role::Done) => {}
        Err((stream, code)) => Box::pin(refuse(&relay, stream, code)).await,
    }
}

/// What a connection is for, once it has said so and proved it.
enum Role {
    Registered((Registered, Home), TcpStream, mpsc::Receiver<ConnectionId>),
    Joined(Client, TcpStream, TcpStream),
    /// It has been given to the one who waits for it, or has ended.
    Done,
}

/// Hears what a connection is for. The error is the refusal that it has yet to hear.
async fn enter(
    relay: &Arc<Relay>,
    mut stream: TcpStream,
    source: Source,
) -> Result<Role, (TcpStream, RelayCode)> {
    let mut nonce = [0; 32];
    UnwrapErr(getrandom::SysRng).fill_bytes(&mut nonce);
    let greeting = Greeting { nonce }.encode();
    let pending = match Pending::enter(relay, source) {
        Ok(pending) => pending,
        Err(code) => {
            relay.config.metrics.refuse(code);
            // A flood costs us no waiting: this fits an empty socket, or is not said.
            let _ = stream.try_write(&[greeting.as_slice(), &frame(code)].concat());
            return Ok(Role::Done);
        }
    };
    // Records of a session go on as they come.
    if stream.set_nodelay(true).is_err() {
        return Ok(Role::Done);
    }
    let said = timeout(
        relay.config.limits.hello_time,
        introduce(relay, &mut stream, &greeting),
    );
    match said.await.unwrap_or(Err(Some(RelayCode::Limit))) {
        Ok(message) => take_role(relay, stream, &nonce, message, pending).await,
        Err(Some(code)) => Err((stream, code)),
        Err(None) => Ok(Role::Done),
    }
}

/// Greets, and reads the one message. `Err(None)`: the connection broke.
async fn introduce(
    relay: &Relay,
    stream: &mut TcpStream,
    greeting: &[u8],
) -> Result<ClientMessage, Option<RelayCode>> {
    let limits = &relay.config.limits;
    stream.write_all(greeting).await.map_err(|_| None)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await.map_err(|_| None)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > limits.register_bytes.max(limits.hello_bytes) {
        return Err(Some(RelayCode::Limit));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.map_err(|_| None)?;
    let message = ClientMessage::decode(&message).map_err(|_| Some(RelayCode::Version))?;
    let bytes_max = match message {
        ClientMessage::Register { .. } => limits.register_bytes,
        ClientMessage::Hello { .. } | ClientMessage::Accept { .. } => limits.hello_bytes,
    };
    if length > bytes_max {
        return Err(Some(RelayCode::Limit));
    }
    Ok(message)
}

async fn take_role(
    relay: &Arc<Relay>,
    mut stream: TcpStream,
    nonce: &[u8; 32],
    message: ClientMessage,
    pending: Pending,
) -> Result<Role, (TcpStream, RelayCode)> {
    let draining = relay.draining.is_cancelled();
    match message {
        ClientMessage::Accept { id } => match services::take(relay, id) {
            Some(give) => {
                // The gateway's side says yes to both. If it has just left, this stream ends.
                drop(give.send(stream));
                Ok(Role::Done)
            }
            None => Err((stream, RelayCode::BadProof)),
        },
        _ if draining => Err((stream, RelayCode::Draining)),
        ClientMessage::Register {
            statement,
            signature,
        } => {
            let entered = registered::verify(relay, nonce, &statement, &signature)
                .and_then(|statement| Registered::enter(relay, &statement));
            match entered {
                Ok((registered, called)) => match say(&mut stream, RelayCode::Ok).await {
                    Ok(()) => {
                        let service = (registered, pending.registered());
                        Ok(Role::Registered(service, stream, called))
                    }
                    Err(_) => Ok(Role::Done),
                },
                Err(code) => Err((stream, code)),
            }
        }
        ClientMessage::Hello { service, token } => match join(relay, nonce, service, token).await {
            Ok((client, mut peer)) => {
                drop(pending);
                let joined = async {
                    say(&mut peer, RelayCode::Ok).await?;
                    say(&mut stream, RelayCode::Ok).await
                };
                match joined.await {
                    Ok(()) => Ok(Role::Joined(client, stream, peer)),
                    Err(_) => Ok(Role::Done),
                }
            }
            Err(code) => Err((stream, code)),
        },
    }
}

/// Finds the service, calls it, and waits until it has come.
async fn join(
    relay: &Arc<Relay>,
    nonce: &[u8; 32],
    service: ServiceId,
    token: Option<Token>,
) -> Result<(Client, TcpStream), RelayCode> {
    if !relay.lists(&service) || !admits(&relay.config.admit, nonce, &service, token) {
        return Err(RelayCode::NotAdmitted);
    }
    let client = Client::enter(relay)?;
    let (_call, given) = client.call(service)?;
    match timeout(relay.config.limits.accept_time, given).await {
        Ok(Ok(peer)) => Ok((client, peer)),
        Ok(Err(_)) | Err(_) => Err(RelayCode::ServiceSilent),
    }
}

/// Whether a gateway may use this relay. Its proof is for this connection and this service only.
fn admits(admit: &Admit, nonce: &[u8; 32], service: &ServiceId, shown: Option<Token>) -> bool {
    let known = match admit {
        Admit::Open => return true,
        Admit::Tokens(known) => known,
    };
    let Some(shown) = shown else {
        return false;
    };
    known.iter().any(|token| {
        let proof = wire::relay::admit(&*token.secret, nonce, service);
        token.id == shown.id && wire::same_mac(&proof, &shown.admit)
    })
}

async fn say(stream: &mut TcpStream, code: RelayCode) -> io::Result<()> {
    stream.write_all(&frame(code)).await
}

/// Says no, and waits a little for the client to hear it: closing a socket with bytes unread
/// would reset the connection, and the answer could be lost with it.
async fn refuse(relay: &Relay, mut stream: TcpStream, code: RelayCode) {
    tracing::debug!(%code, "a client is refused");
    relay.config.metrics.refuse(code);
    let refused = async {
        say(&mut stream, code).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(REFUSED_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Heard or not, the connection ends.
    let _ = timeout(REFUSAL_TIME_MAX, refused).await;
}

/// An answer as it travels.
fn frame(code: RelayCode) -> Vec<u8> {
    let answer = Answer { code }.encode();
    // `{1: code}` has 3 bytes.
    let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), answer.as_slice()].concat()
}

/// One slow round trip.
const REFUSAL_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// What a client may have sent after its first message without knowing that it is refused: the
/// beginning of a session, or the rest of a registration that is too long.
const REFUSED_BYTES_MAX: u64 = 128 * 1024;
