//! From a connection to an open session.

use std::future::poll_fn;
use std::io;

use channel::{
    Admission, Event, InitiatorConfig, PublicKey, Purpose, ResponderConfig, Session, SessionError,
    Statement, StaticKey,
};
use futures::future::BoxFuture;
use getrandom::SysRng;
use rand_core::UnwrapErr;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pump::{CLOSE_TIME_MAX, Pump, now};
use crate::renewal::{Owner, Part};
use crate::{Address, Link, LinkError, dial};

/// Where a gateway keeps the newest statement of its service.
pub trait KeepStatement: Send + Sync {
    /// Stores the statement durably. Until it has, the gateway does not show its own key
    /// (protocol.md 2.3).
    ///
    /// # Errors
    ///
    /// Whatever the disk says; the handshake ends with [`LinkError::LocalStatement`].
    fn keep<'a>(&'a self, statement: &'a Statement) -> BoxFuture<'a, io::Result<()>>;
}

/// Who may come in.
pub trait Registry: Send + Sync {
    /// Looks up a gateway that has proved its key, by exactly this key, and decides. Asked again
    /// whenever the session has renewed its keys (protocol.md 2.5).
    fn admit<'a>(&'a self, peer: &'a PeerHello) -> BoxFuture<'a, Admission>;
}

/// What a service knows of a gateway once it has proved its key.
#[derive(Clone, Debug)]
pub struct PeerHello {
    /// The gateway's channel key.
    pub static_key: PublicKey,
    /// What it has come for.
    pub purpose: Purpose,
    /// Its software version, 64 bytes at most; the peer's own word.
    pub version: String,
    /// Names this session.
    pub handshake_hash: [u8; 32],
}

/// Reaches the service and opens a session: what a gateway does.
///
/// Waits 10 s for the connection, 15 s for a relay, and 30 s for the handshake, of which the own
/// key may take 10 s. `key` is used once, after the service has proved to be the pinned one, and
/// once more whenever the session renews its keys.
///
/// # Errors
///
/// See [`LinkError`]; nothing is left behind. Try again after a pause that grows, at the next
/// address first (protocol.md 6).
pub async fn connect<'a>(
    address: &Address,
    config: InitiatorConfig,
    key: &'a dyn StaticKey,
    keep: &'a dyn KeepStatement,
) -> Result<Link<'a>, LinkError> {
    let stream = dial(address, &config.pin, None).await?;
    connect_over(stream, config, key, keep).await
}

/// Opens a session on a connection from [`dial`](dial()).
///
/// # Errors
///
/// As [`connect`].
pub async fn connect_over<'a>(
    stream: TcpStream,
    config: InitiatorConfig,
    key: &'a dyn StaticKey,
    keep: &'a dyn KeepStatement,
) -> Result<Link<'a>, LinkError> {
    let session = Session::initiate(config, Box::new(UnwrapErr(SysRng)), now())?;
    let mut pump = Pump::new(stream, session);
    loop {
        match pump.next_event().await? {
            Event::NewStatement(statement) => {
                let kept = pump.meanwhile(keep.keep(&statement)).await?;
                kept.map_err(LinkError::LocalStatement)?;
                pump.session().handle_statement_stored(now())?;
            }
            Event::KeyOperation { peer } => run_key(&mut pump, key, peer).await?,
            Event::Open {
                handshake_hash,
                remote_static,
            } => {
                let part = Part::Gateway(keep);
                let owner = Owner { key, part };
                return Ok(Link::new(pump, owner, handshake_hash, remote_static));
            }
            Event::Closed(reason) => return Err(LinkError::Refused(reason)),
            // Events of the other role, or of a later stage.
            Event::Peer { .. } | Event::Data(_) | Event::Renewed | Event::RenewalFailed(_) => {
                return Err(out_of_turn());
            }
        }
    }
}

/// Opens a session on an incoming connection: what a service does.
///
/// Who is not admitted is told why, which takes up to 5 s more.
///
/// # Errors
///
/// [`LinkError::NotAdmitted`] as the registry decided; [`LinkError::LocalKey`] and the like if
/// the service itself is at fault; the rest is the peer's. Message 3 must have come within 15 s
/// (protocol.md 2.4).
pub async fn accept<'a>(
    stream: TcpStream,
    config: ResponderConfig,
    key: &'a dyn StaticKey,
    registry: &'a dyn Registry,
) -> Result<(Link<'a>, PeerHello), LinkError> {
    // Records go out when they are ready; waiting to fill a segment would only add delay.
    stream.set_nodelay(true).map_err(LinkError::Transport)?;
    let session = Session::respond(config, Box::new(UnwrapErr(SysRng)), now())?;
    let mut pump = Pump::new(stream, session);
    let hello = loop {
        match pump.next_event().await? {
            Event::KeyOperation { peer } => run_key(&mut pump, key, peer).await?,
            Event::Peer {
                static_key,
                purpose,
                version,
                handshake_hash,
            } => {
                break PeerHello {
                    static_key,
                    purpose,
                    version,
                    handshake_hash,
                };
            }
            // Events of the other role, or of a later stage.
            Event::NewStatement(_)
            | Event::Open { .. }
            | Event::Data(_)
            | Event::Renewed
            | Event::RenewalFailed(_)
            | Event::Closed(_) => return Err(out_of_turn()),
        }
    };
    let admission = pump.meanwhile(registry.admit(&hello)).await?;
    pump.session().handle_admission(now(), admission)?;
    if admission != Admission::Ok {
        // Whether it was heard or not, the gateway is not let in.
        let _ = timeout(CLOSE_TIME_MAX, poll_fn(|cx| pump.poll_finish(cx))).await;
        return Err(LinkError::NotAdmitted(admission));
    }
    match pump.next_event().await? {
        Event::Open {
            handshake_hash,
            remote_static,
        } => {
            let part = Part::Service(registry, hello.clone());
            let owner = Owner { key, part };
            let link = Link::new(pump, owner, handshake_hash, remote_static);
            Ok((link, hello))
        }
        Event::Closed(reason) => Err(LinkError::NotAdmitted(reason)),
        Event::NewStatement(_)
        | Event::KeyOperation { .. }
        | Event::Peer { .. }
        | Event::Renewed
        | Event::RenewalFailed(_)
        | Event::Data(_) => Err(out_of_turn()),
    }
}

/// Runs the one operation of the own key. If it fails, the handshake is over and nothing that
/// depends on it was sent.
async fn run_key(pump: &mut Pump, key: &dyn StaticKey, peer: PublicKey) -> Result<(), LinkError> {
    let secret = pump.meanwhile(key.ecdh(peer)).await?;
    pump.session().handle_shared_secret(now(), secret)?;
    Ok(())
}

/// The session said what it does not say at this point: a mistake of ours.
fn out_of_turn() -> LinkError {
    LinkError::LocalSession(SessionError::LocalOutOfTurn)
}
