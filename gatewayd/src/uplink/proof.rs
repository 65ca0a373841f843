//! Opening a session without waiting long for a service that does not show itself.

use std::time::Duration;

use channel::{InitiatorConfig, KeyFuture, PublicKey, SessionError, SharedSecret, StaticKey};
use link::{KeepStatement, Link, LinkError};
use tokio::{net::TcpStream, sync::Notify};

/// Opens a session on a connection; gives up if the service has not proved its key within `limit`.
///
/// The own key is asked once the service has (protocol.md 2.3), and a TPM may take its time: from
/// there on the limits of the session rule.
///
/// # Errors
///
/// As [`link::connect_over`]; [`SessionError::PeerSilent`] after `limit`.
pub(super) async fn connect_over<'a>(
    stream: TcpStream,
    config: InitiatorConfig,
    key: &'a Watched<'a>,
    keep: &'a dyn KeepStatement,
    limit: Duration,
) -> Result<Link<'a>, LinkError> {
    let mut connecting = std::pin::pin!(link::connect_over(stream, config, key, keep));
    tokio::select! {
        // First: what has come may not be called late.
        biased;
        ended = &mut connecting => return ended,
        () = key.asked.notified() => {}
        () = tokio::time::sleep(limit) => {
            return Err(LinkError::Peer(SessionError::PeerSilent(limit)));
        }
    }
    connecting.await
}

/// A key that tells when it is asked.
pub(super) struct Watched<'a> {
    key: &'a dyn StaticKey,
    asked: Notify,
}

impl<'a> Watched<'a> {
    pub(super) fn new(key: &'a dyn StaticKey) -> Self {
        Self {
            key,
            asked: Notify::new(),
        }
    }
}

impl StaticKey for Watched<'_> {
    fn public(&self) -> PublicKey {
        self.key.public()
    }

    fn ecdh(&self, peer: PublicKey) -> KeyFuture<'_, SharedSecret> {
        self.asked.notify_one();
        self.key.ecdh(peer)
    }
}
