//! One connection, from the greeting to its role.

use std::io;
use std::sync::Arc;

use rand_core::{Rng, UnwrapErr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::relay::{Answer, ClientMessage, Greeting, RelayCode, Token};

use super::services::{self, Client, Registered, ServiceId};
use super::sources::Pending;
use super::splice::splice;
use super::{Admit, Relay, registered};
use crate::source::Source;

/// Serves one connection to its end. Whatever goes wrong ends this connection only.
pub(super) async fn run(relay: Arc<Relay>, mut stream: TcpStream, source: Source) {
    let mut nonce = [0; 32];
    UnwrapErr(getrandom::SysRng).fill_bytes(&mut nonce);
    let greeting = Greeting { nonce }.encode();
    let pending = match Pending::enter(&relay, source) {
        Ok(pending) => pending,
        Err(code) => {
            // A flood costs us no waiting: this fits an empty socket, or is not said.
            let _ = stream.try_write(&[greeting.as_slice(), &frame(code)].concat());
            return;
        }
    };
    let served = async {
        // Records of a session go on as they come.
        stream.set_nodelay(true).map_err(|_| None)?;
        let said = timeout(
            relay.config.limits.hello_time,
            introduce(&relay, &mut stream, &greeting),
        );
        let said = said.await.unwrap_or(Err(Some(RelayCode::Limit)))?;
        Ok(said)
    };
    match served.await {
        Ok(message) => take_role(relay, stream, &nonce, message, pending).await,
        Err(Some(code)) => refuse(stream, code).await,
        Err(None) => {}
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
    relay: Arc<Relay>,
    mut stream: TcpStream,
    nonce: &[u8; 32],
    message: ClientMessage,
    pending: Pending,
) {
    let draining = relay.draining.is_cancelled();
    match message {
        ClientMessage::Accept { id } => match services::take(&relay, id) {
            // The gateway's side says yes to both. If it has just left, this stream ends.
            Some(give) => drop(give.send(stream)),
            None => refuse(stream, RelayCode::BadProof).await,
        },
        _ if draining => refuse(stream, RelayCode::Draining).await,
        ClientMessage::Register {
            statement,
            signature,
        } => {
            let entered = registered::verify(&relay, nonce, &statement, &signature)
                .and_then(|statement| Registered::enter(&relay, &statement));
            match entered {
                Ok((_registered, called)) => {
                    drop(pending);
                    if say(&mut stream, RelayCode::Ok).await.is_ok() {
                        registered::run(relay, stream, called).await;
                    }
                }
                Err(code) => refuse(stream, code).await,
            }
        }
        ClientMessage::Hello { service, token } => {
            let joined = join(&relay, nonce, service, token).await;
            match joined {
                Ok((_client, peer)) => {
                    drop(pending);
                    talk(&relay, stream, peer).await;
                }
                Err(code) => refuse(stream, code).await,
            }
        }
    }
}

/// Finds the service, calls it, and waits until it has come.
async fn join(
    relay: &Arc<Relay>,
    nonce: &[u8; 32],
    service: ServiceId,
    token: Option<Token>,
) -> Result<(Client, TcpStream), RelayCode> {
    if !admits(&relay.config.admit, nonce, &service, token) {
        return Err(RelayCode::NotAdmitted);
    }
    let client = Client::enter(relay)?;
    let (_call, given) = client.call(service)?;
    match timeout(relay.config.limits.accept_time, given).await {
        Ok(Ok(peer)) => Ok((client, peer)),
        Ok(Err(_)) | Err(_) => Err(RelayCode::ServiceSilent),
    }
}

/// Says yes to both, and joins them.
async fn talk(relay: &Relay, mut stream: TcpStream, mut peer: TcpStream) {
    let limits = &relay.config.limits;
    let spliced = async {
        say(&mut peer, RelayCode::Ok).await?;
        say(&mut stream, RelayCode::Ok).await?;
        splice(stream, peer, limits).await
    };
    if let Err(error) = spliced.await {
        tracing::debug!(%error, "a splice has ended");
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
async fn refuse(mut stream: TcpStream, code: RelayCode) {
    tracing::debug!(%code, "a client is refused");
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
