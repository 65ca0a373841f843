//! `gateway-cloud serve`: lets gateways in, directly or through relays, and receives from them.

mod half_open;
mod registration;
mod retry;
mod standing;

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::Context;
use channel::{Admission, Purpose, ResponderConfig};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use link::{Address, LinkError, PeerHello, StreamName, Streams, relay, relay::ConnectionId};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::block_in_place,
};
use tokio_util::sync::CancellationToken;

use self::{
    half_open::{HalfOpen, Handshaking, Origin},
    registration::stay_registered,
    standing::{Dismissed, until_dismissed},
};
use crate::{
    enrol,
    keys::ServiceKeys,
    listen,
    receive::{ReceiveError, Receiver},
    registry::{GatewayState, Registry},
    roots::EndorsementRoots,
    sink::sqlite::SqliteSink,
    source::Source,
    tasks::Sessions,
};

/// What every session needs.
#[derive(Clone)]
pub struct Service {
    /// Our keys.
    pub keys: Arc<ServiceKeys>,
    /// Who may come in.
    pub registry: Arc<Registry>,
    /// Where readings go.
    pub sink: Arc<SqliteSink>,
    /// Sessions at once; more are turned away before their handshake.
    pub sessions_max: usize,
    /// Whose TPMs may enrol; `None`: a ticket enrols any.
    pub endorsement_roots: Option<Arc<EndorsementRoots>>,
}

/// A gateway at the door.
enum Incoming {
    Direct(TcpStream, Source),
    /// It waits at this relay for 10 s.
    Relayed(Address, ConnectionId),
}

/// Serves until `stop`, then tells every gateway that it is going away.
///
/// # Errors
///
/// If a listener fails.
pub async fn serve(
    service: Service,
    listener: Option<TcpListener>,
    relays: Vec<Address>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Connections wait here while sessions_max are open; then the listener's own queue fills.
    let (incoming, mut connections) = mpsc::channel(16);
    let mut sources: FuturesUnordered<BoxFuture<'_, anyhow::Result<()>>> = FuturesUnordered::new();
    if let Some(listener) = listener {
        sources.push(Box::pin(listen(listener, incoming.clone())));
    }
    // Each on its own: a relay that is away costs the others nothing.
    for address in &relays {
        let keys = &service.keys;
        sources.push(Box::pin(stay_registered(keys, address, incoming.clone())));
    }
    drop(incoming);

    let half_open = HalfOpen::default();
    let mut sessions = Sessions::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(end) = sources.next() => end?,
            Some(gateway) = connections.recv(), if sessions.len() < service.sessions_max => {
                let origin = match &gateway {
                    Incoming::Direct(_, source) => Origin::Direct(*source),
                    Incoming::Relayed(relay, _) => Origin::Relay(relay.clone()),
                };
                match half_open.enter(origin) {
                    Some(handshaking) => {
                        sessions.start(session(service.clone(), gateway, handshaking, stop.clone()));
                    }
                    // It is hung up on: a word would cost more than it is worth.
                    None => tracing::debug!("too many half-open sessions of one origin"),
                }
            }
            Some(()) = sessions.ended() => {}
        }
    }
    let farewell = async { while sessions.ended().await.is_some() {} };
    if tokio::time::timeout(FAREWELL_TIME_MAX, farewell)
        .await
        .is_err()
    {
        tracing::warn!("some gateways did not take the farewell");
    }
    Ok(())
}

async fn listen(listener: TcpListener, incoming: mpsc::Sender<Incoming>) -> anyhow::Result<()> {
    let mut connections = pin!(listen::connections(listener));
    while let Some((stream, address)) = connections.next().await {
        let source = Source::of(address.ip());
        incoming.send(Incoming::Direct(stream, source)).await?;
    }
    Ok(())
}

/// One session, from its first byte to its last; whatever goes wrong ends only it.
async fn session(
    service: Service,
    gateway: Incoming,
    handshaking: Handshaking,
    stop: CancellationToken,
) {
    let (stream, via) = match gateway {
        Incoming::Direct(stream, _) => (stream, "direct".to_owned()),
        Incoming::Relayed(relay, id) => match relay::accept(&relay, id).await {
            Ok(stream) => (stream, relay.host().to_owned()),
            Err(error) => {
                tracing::debug!(relay = relay.host(), %error, "a gateway did not wait");
                return;
            }
        },
    };
    if let Err(error) = try_session(&service, (stream, handshaking), &via, stop).await {
        tracing::info!(via, "session ended: {error:#}");
    }
}

async fn try_session(
    service: &Service,
    (stream, handshaking): (TcpStream, Handshaking),
    via: &str,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = ResponderConfig {
        statement: service.keys.statement.clone(),
        static_key: channel::StaticKey::public(&service.keys.channel),
    };
    let door = Door(&service.registry);
    let (link, hello) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        accepted = link::accept(stream, config, &service.keys.channel, &door) => accepted?,
    };
    drop(handshaking);
    let h = link.handshake_hash;
    let (driver, streams) = link.split();
    let mut driving = pin!(driver.run());
    let work = async {
        match hello.purpose {
            Purpose::Enrol => enrol_stream(service, &streams, &hello, &h).await,
            Purpose::Deliver => deliver_streams(service, &streams, &hello, via).await,
        }
    };
    let (end, farewell) = tokio::select! {
        end = &mut driving => {
            end.context("link")?;
            return Ok(());
        }
        () = stop.cancelled() => (Ok(()), Admission::GoingAway),
        end = work => {
            let farewell = farewell(&end);
            (end, farewell)
        }
    };
    // What the streams still hold goes out first; whether it was heard changes nothing here.
    streams.close(farewell);
    drop(driving.await);
    end
}

/// What a gateway is told when its session ends on our side.
fn farewell(end: &anyhow::Result<()>) -> Admission {
    let Err(error) = end else {
        return Admission::Ok;
    };
    if let Some(Dismissed(admission)) = error.downcast_ref() {
        return *admission;
    }
    match error.downcast_ref() {
        Some(ReceiveError::Peer(_) | ReceiveError::Link(LinkError::PeerOversized)) => {
            Admission::ProtocolError
        }
        // Our own trouble; the gateway comes back later.
        Some(ReceiveError::Local(_) | ReceiveError::Link(_)) | None => Admission::Busy,
    }
}

/// An unknown gateway may open exactly one stream, and has a minute.
async fn enrol_stream(
    service: &Service,
    streams: &Streams,
    hello: &PeerHello,
    h: &[u8; 32],
) -> anyhow::Result<()> {
    let conversation = async {
        match streams.accept().await {
            Some((StreamName::Enroll, messages)) => {
                enrol::converse(service, messages, hello, h).await
            }
            Some((name, _)) => Err(unexpected(name)),
            None => Ok(()),
        }
    };
    tokio::time::timeout(ENROL_TIME_MAX, conversation)
        .await
        .context("enrolment took too long")?
}

fn unexpected(name: StreamName) -> anyhow::Error {
    ReceiveError::Peer(format!("a second or unexpected stream: {name}")).into()
}

async fn deliver_streams(
    service: &Service,
    streams: &Streams,
    hello: &PeerHello,
    via: &str,
) -> anyhow::Result<()> {
    let found = block_in_place(|| service.registry.by_channel_key(&hello.static_key))?;
    let gateway = found.context("the gateway was removed meanwhile")?;
    tracing::info!(
        gateway = gateway.name,
        via,
        version = hello.version,
        "session open"
    );
    let noted = block_in_place(|| service.registry.note_session(&gateway.fingerprint, via));
    if let Err(error) = noted {
        tracing::warn!("cannot note a session in the registry: {error:#}");
    }
    let mut uploads = FuturesUnordered::new();
    let mut dismissed = pin!(until_dismissed(&service.registry, &hello.static_key));
    loop {
        tokio::select! {
            dismissal = &mut dismissed => return Err(dismissal.into()),
            stream = streams.accept() => match stream {
                Some((StreamName::Upload, messages)) if uploads.is_empty() => {
                    let receiver = Receiver::new(
                        gateway.clone(),
                        Arc::clone(&service.keys),
                        Arc::clone(&service.sink),
                        Arc::clone(&service.registry),
                    );
                    uploads.push(receiver.run(messages));
                }
                Some((name, _)) => return Err(unexpected(name)),
                None => return Ok(()),
            },
            Some(end) = uploads.next() => {
                end?;
                return Ok(());
            }
        }
    }
}

/// Decides who may come in.
struct Door<'a>(&'a Registry);

impl link::Registry for Door<'_> {
    fn admit<'a>(&'a self, peer: &'a PeerHello) -> BoxFuture<'a, Admission> {
        Box::pin(async move {
            match block_in_place(|| self.0.by_channel_key(&peer.static_key)) {
                Ok(found) => decide(found.map(|gateway| gateway.state), peer.purpose),
                Err(error) => {
                    tracing::error!("cannot read the registry: {error:#}");
                    Admission::Busy
                }
            }
        })
    }
}

/// protocol.md 2.3 and 2.6.
fn decide(state: Option<GatewayState>, purpose: Purpose) -> Admission {
    match (state, purpose) {
        (None, Purpose::Enrol) | (Some(GatewayState::Enrolled), _) => Admission::Ok,
        (None, Purpose::Deliver) => Admission::UnknownGateway,
        (Some(GatewayState::Suspended), _) => Admission::Suspended,
        (Some(GatewayState::Revoked), _) => Admission::Revoked,
        (Some(GatewayState::Retired), _) => Admission::Retired,
    }
}

/// protocol.md 5.2.
const ENROL_TIME_MAX: Duration = Duration::from_secs(60);

/// Below systemd's `TimeoutStopSec=10s`.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_enrolled_gateway_delivers_and_only_an_unknown_one_enrols() {
        use Admission as A;
        use GatewayState as S;
        let deliver = |state| decide(state, Purpose::Deliver);
        assert_eq!(deliver(Some(S::Enrolled)), A::Ok);
        assert_eq!(deliver(None), A::UnknownGateway);
        assert_eq!(deliver(Some(S::Suspended)), A::Suspended);
        assert_eq!(deliver(Some(S::Revoked)), A::Revoked);
        assert_eq!(deliver(Some(S::Retired)), A::Retired);
        assert_eq!(decide(None, Purpose::Enrol), A::Ok);
        assert_eq!(decide(Some(S::Revoked), Purpose::Enrol), A::Revoked);
    }
}
