//! A service at the relay: its proof, and what it is told afterwards.

use std::sync::Arc;

use channel::{OnlineKey, Statement};
use futures::{SinkExt, StreamExt};
use link::relay::ConnectionId;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use wire::relay::{RelayCode, ToRegistered, register_message};

use super::Relay;

/// Verifies a registration: the statement against its own service, and the signature, for one of
/// our names, by a key that the statement lists for relays.
pub(super) fn verify(
    relay: &Relay,
    nonce: &[u8; 32],
    statement: &[u8],
    signature: &[u8; 64],
) -> Result<Statement, RelayCode> {
    let service = Statement::service_of(statement).map_err(|_| RelayCode::BadProof)?;
    // Before the signatures, whose verification a stranger could ask for without end.
    if !relay.lists(service.bytes()) {
        return Err(RelayCode::NotAdmitted);
    }
    let statement = Statement::verify(statement, &service).map_err(|_| RelayCode::BadProof)?;
    let signed = relay.config.names.iter().any(|name| {
        let message = register_message(nonce, name, service.bytes());
        let online = statement.online_keys().iter();
        let mut online = online.filter(|online| online.bits & OnlineKey::RELAY != 0);
        online.any(|online| channel::verify(&online.key, &message, signature).is_ok())
    });
    signed.then_some(statement).ok_or(RelayCode::BadProof)
}

/// Tells a registered service what it has to know, until it leaves or does not answer.
pub(super) async fn run(
    relay: Arc<Relay>,
    stream: TcpStream,
    mut called: mpsc::Receiver<ConnectionId>,
) {
    let mut line = Line {
        frames: LengthDelimitedCodec::builder()
            .length_field_type::<u16>()
            .max_frame_length(relay.config.limits.hello_bytes)
            .new_framed(stream),
        relay,
    };
    let limits = &line.relay.config.limits.clone();
    let mut told_to_leave = false;
    let mut pinged = false;
    let mut deadline = Instant::now() + limits.ping_interval;
    loop {
        let alive = tokio::select! {
            Some(id) = called.recv() => line.say(ToRegistered::Incoming { id }).await,
            () = line.relay.draining.cancelled(), if !told_to_leave => {
                told_to_leave = true;
                line.say(ToRegistered::Drain).await
            }
            () = sleep_until(deadline) => {
                deadline = Instant::now() + limits.pong_time;
                // The second time, the first ping has had no answer.
                !std::mem::replace(&mut pinged, true) && line.say(ToRegistered::Ping).await
            }
            frame = line.frames.next() => {
                pinged = false;
                deadline = Instant::now() + limits.ping_interval;
                match frame.and_then(|frame| ToRegistered::decode(&frame.ok()?).ok()) {
                    Some(ToRegistered::Ping) => line.say(ToRegistered::Pong).await,
                    Some(ToRegistered::Pong) => true,
                    // Gone, or it says what only a relay says.
                    Some(ToRegistered::Incoming { .. } | ToRegistered::Drain) | None => false,
                }
            }
        };
        if !alive {
            return;
        }
    }
}

/// The connection on which a service has registered.
struct Line {
    frames: Framed<TcpStream, LengthDelimitedCodec>,
    relay: Arc<Relay>,
}

impl Line {
    /// Returns whether the service has taken it; one that does not read is as good as gone.
    async fn say(&mut self, message: ToRegistered) -> bool {
        let message = message.encode();
        let said = self.frames.send(message.as_slice());
        matches!(
            timeout(self.relay.config.limits.pong_time, said).await,
            Ok(Ok(()))
        )
    }
}
