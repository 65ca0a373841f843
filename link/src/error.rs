//! Why a link could not be had, or ended.

use std::io;
use std::time::Duration;

use channel::{Admission, KeyError, SessionError};
use wire::WireError;
use wire::relay::RelayCode;

use crate::messages::MESSAGE_BYTES_MAX;

/// Why a link could not be had, or ended. Grouped by who must act; [`advice`](Self::advice) says
/// how.
///
/// After any of them the link is over, except for the `Local*` errors of a single message: those
/// refuse the call without harm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Nobody answers at the address, or its name is unknown.
    #[error("nothing answers at {address}")]
    Unreachable {
        /// `host:port` as configured.
        address: String,
        /// What the system said; for a name with several addresses, of the last one.
        #[source]
        source: io::Error,
    },

    /// The other side took too long.
    #[error("{stage} took longer than {limit:?}")]
    Timeout {
        /// What was waited for.
        stage: Stage,
        /// How long.
        limit: Duration,
    },

    /// The connection broke.
    #[error("the connection broke")]
    Transport(#[source] io::Error),

    /// What answers is no relay, or speaks another version.
    #[error("what answers there is not a relay of this version")]
    NotARelay,

    /// The relay said no.
    #[error("the relay refused: {0}")]
    RelayRefused(RelayCode),

    /// The relay ended the connection without a word.
    #[error("the relay ended the connection")]
    RelayEnded,

    /// The relay sent what this version does not understand.
    #[error("the relay sent a message that is not understood")]
    RelayMessage(#[source] WireError),

    /// The peer ended the connection before it sent a single byte. A service does so when it is
    /// asked for another service's key.
    #[error("the other side ended the connection without a word")]
    NotAnswered,

    /// The peer could not show the key that is pinned. Nothing was told to it.
    #[error("the service's key is not the one that is pinned")]
    KeyMismatch(#[source] SessionError),

    /// The service knows who we are, and does not let us in.
    #[error("the service refused: {0}")]
    Refused(Admission),

    /// We know who the gateway says it is, and did not let it in.
    #[error("the gateway was refused: {0}")]
    NotAdmitted(Admission),

    /// The session ended by the peer's fault, or that of the network between.
    #[error("the session failed")]
    Peer(#[source] SessionError),

    /// The peer broke the rules for streams inside the session.
    #[error("the peer's streams broke the rules")]
    PeerStreams(#[source] yamux::ConnectionError),

    /// The peer announced a longer message than a stream carries.
    #[error("the peer announced a message of more than {MESSAGE_BYTES_MAX} bytes")]
    PeerOversized,

    /// A stream ended inside a message, or while one was sent: the peer dropped it, or the link
    /// is down.
    #[error("the stream was cut")]
    Cut,

    /// The link has ended; its driver knows why.
    #[error("the link has ended")]
    Ended,

    /// Our own key did not work.
    #[error("the own key could not be used")]
    LocalKey(#[source] KeyError),

    /// The service's new statement could not be stored, so our key was not shown.
    #[error("the service's new statement could not be stored")]
    LocalStatement(#[source] io::Error),

    /// Our own side of the session failed.
    #[error("the session could not be run")]
    LocalSession(#[source] SessionError),

    /// The address names another service than the one pinned.
    #[error("the relay's address names another service than the one that is pinned")]
    LocalAddress,

    /// A service registers at `relay://` addresses only.
    #[error("the address is not that of a relay")]
    LocalNotRelay,

    /// The caller offered more than one message carries.
    #[error("the message has {bytes} bytes, the limit is {MESSAGE_BYTES_MAX}")]
    LocalOversized {
        /// Length of the refused message.
        bytes: usize,
    },
}

impl LinkError {
    /// What the operator can do about it, as a clause in the imperative.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "check the address, the name server and the firewall",
            Self::Timeout { stage, .. } => stage.advice(),
            Self::Transport(_) | Self::Cut | Self::Ended => "wait; it is tried again",
            Self::NotARelay => "check the address: tcp:// for a service, relay:// for a relay",
            Self::RelayRefused(code) => relay_advice(*code),
            Self::RelayEnded => "wait; it is tried again, or use another relay",
            Self::RelayMessage(_) => "update the relay or this program to the same version",
            Self::NotAnswered => {
                "check that the service at this address is the one pinned, and not overloaded"
            }
            Self::KeyMismatch(_) => "ask the service's operator; do not go on",
            Self::Refused(admission) | Self::NotAdmitted(admission) => admission_advice(*admission),
            Self::Peer(_) => "wait; it is tried again; if it stays, suspect the path between",
            Self::PeerStreams(_) | Self::PeerOversized => {
                "update both sides to the same version; if it stays, suspect the peer"
            }
            Self::LocalKey(_) => "check the TPM: gatewayctl check tpm",
            Self::LocalStatement(_) => "check the disk that holds the state",
            Self::LocalSession(_) | Self::LocalOversized { .. } => "report it with gatewayctl diag",
            Self::LocalAddress => "correct the address or the pinned key",
            Self::LocalNotRelay => "use an address that begins with relay://",
        }
    }
}

impl From<SessionError> for LinkError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::PeerStatement(_) | SessionError::PeerUnknownKey => {
                Self::KeyMismatch(error)
            }
            SessionError::LocalKey(cause) => Self::LocalKey(cause),
            SessionError::LocalKeyLate(limit) => Self::Timeout {
                stage: Stage::KeyOperation,
                limit,
            },
            SessionError::LocalLate(limit) => Self::Timeout {
                stage: Stage::Handshake,
                limit,
            },
            SessionError::LocalOutOfTurn
            | SessionError::LocalBacklog { .. }
            | SessionError::LocalConfig(_)
            | SessionError::LocalCrypto(_) => Self::LocalSession(error),
            // Also what a later version of the session may add.
            SessionError::PeerPreamble
            | SessionError::PeerRejected
            | SessionError::PeerLength { .. }
            | SessionError::PeerProtocol
            | SessionError::PeerTruncated
            | SessionError::PeerSilent(_)
            | _ => Self::Peer(error),
        }
    }
}

fn relay_advice(code: RelayCode) -> &'static str {
    match code {
        RelayCode::Ok => "report it with gatewayctl diag",
        RelayCode::NoSuchService => {
            "check that the service runs and has registered with this relay"
        }
        RelayCode::NotAdmitted => {
            "ask the relay's operator for a token, and name it in relay_token of the [[service]]"
        }
        RelayCode::BadProof => {
            "check that the relay lists the name in the address, and the service's statement is new"
        }
        RelayCode::Busy | RelayCode::Limit | RelayCode::Draining => {
            "wait; it is tried again, or use another relay"
        }
        RelayCode::Version => "update the relay or this program to the same version",
        RelayCode::ServiceSilent => "check the service: it is registered, and did not answer",
    }
}

fn admission_advice(admission: Admission) -> &'static str {
    match admission {
        Admission::UnknownGateway => "enrol this gateway: gatewayctl enroll -",
        Admission::Suspended => "ask the service's operator to resume this gateway",
        Admission::Revoked => "ask the service's operator; a revoked key does not come back",
        Admission::Retired => "ask the service's operator: this gateway was replaced",
        Admission::Version => "update both sides to the same version",
        Admission::AttestationRequired => "attest this gateway: gatewayctl attest",
        Admission::ProtocolError => "update both sides to the same version; then report it",
        Admission::Ok | Admission::Busy | Admission::GoingAway => "wait; it is tried again",
    }
}

/// What was waited for when time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The name server and the TCP connection.
    Connect,
    /// The relay's part before the session.
    Relay,
    /// The own decisions in the handshake: to store a statement, to admit a gateway.
    Handshake,
    /// The operation of the own key inside the handshake.
    KeyOperation,
}

impl Stage {
    fn advice(self) -> &'static str {
        match self {
            Self::Connect => "check the address and the firewall",
            Self::Relay => "wait; it is tried again, or use another relay",
            Self::Handshake => "check the load of this machine, and its disk",
            Self::KeyOperation => "check the TPM: gatewayctl check tpm",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Relay => "the relay's answer",
            Self::Handshake => "the own side of the handshake",
            Self::KeyOperation => "the own key",
        })
    }
}
