//! Why a session ended.

use std::time::Duration;

use crate::{KeyError, StatementError};

/// Why a [`Session`](crate::Session) ended, or refused a call.
///
/// Grouped by who must act. After any `Peer*` variant the session is over: connect anew, with
/// backoff, and count it against the relay that was used. [`LocalOutOfTurn`](Self::LocalOutOfTurn),
/// [`LocalBacklog`](Self::LocalBacklog) and [`LocalConfig`](Self::LocalConfig) refuse a call
/// without harm; the other `Local*` variants end the session, and this program or its keys are at
/// fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The first 72 bytes are not a preamble of this version for this service.
    #[error("peer's preamble is not for this service, or of another version")]
    PeerPreamble,

    /// The peer's bytes did not authenticate: wrong key, replay, corruption or attack.
    ///
    /// One variant for all four: the difference would help only the attacker.
    #[error("peer's bytes were rejected")]
    PeerRejected,

    /// The peer announced a frame that is shorter or longer than this point of the session allows.
    #[error("peer's frame has {bytes} bytes, which is not possible here")]
    PeerLength {
        /// The announced length.
        bytes: usize,
    },

    /// The peer said something that the protocol does not allow here.
    #[error("peer broke the protocol")]
    PeerProtocol,

    /// The statement that the service sent is not one of the pinned service, or is older than the
    /// one held.
    #[error("service's statement was refused")]
    PeerStatement(#[source] StatementError),

    /// The service proved a channel key that its newest statement does not list.
    #[error("service's channel key is not in its statement")]
    PeerUnknownKey,

    /// The transport ended although the peer had not closed the session.
    #[error("session was cut off without a close")]
    PeerTruncated,

    /// The peer said nothing for longer than the session waits.
    #[error("peer was silent for {0:?}")]
    PeerSilent(Duration),

    /// The private key did not work. The cause is the key's own.
    #[error("own channel key failed")]
    LocalKey(#[source] KeyError),

    /// The private key did not answer in time. Its late result is of no use to anybody.
    #[error("own channel key did not answer within {0:?}")]
    LocalKeyLate(Duration),

    /// The statement was not stored, or the peer not admitted, before the handshake's deadline.
    #[error("this side did not decide within {0:?}")]
    LocalLate(Duration),

    /// This call does not fit what the session is at; it had no effect.
    #[error("session does not take this call now")]
    LocalOutOfTurn,

    /// More is queued than a peer that reads would leave there; nothing was added. Drain
    /// [`transmit`](crate::Session::transmit) first.
    #[error(
        "{bytes} bytes wait to be sent, the limit is {}",
        crate::TRANSMIT_BYTES_MAX
    )]
    LocalBacklog {
        /// How much waits there.
        bytes: usize,
    },

    /// The configuration contradicts itself.
    #[error("session is configured wrongly")]
    LocalConfig(#[from] ConfigMistake),

    /// Our own cipher refused to work.
    #[error("local cryptography failed")]
    LocalCrypto(#[source] snow::Error),
}

/// What is wrong with an [`InitiatorConfig`](crate::InitiatorConfig) or a
/// [`ResponderConfig`](crate::ResponderConfig).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigMistake {
    /// The pin is the fingerprint of another kind of key.
    #[error("pin is not the fingerprint of a service identity")]
    PinKind,

    /// The held statement is that of another service.
    #[error("held statement is not one of the pinned service")]
    HeldOfAnother,

    /// The software version does not fit into message 3.
    #[error("version has {bytes} bytes, the limit is {}", crate::VERSION_BYTES_MAX)]
    Version {
        /// Length of the refused text.
        bytes: usize,
    },

    /// The service's channel key is not in its own statement, so that no gateway would accept it.
    #[error("own channel key is not in the statement")]
    KeyNotListed,
}
