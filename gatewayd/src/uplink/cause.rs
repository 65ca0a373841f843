//! Whose fault it was that a session could not be had, or ended.

use std::io::ErrorKind;

use channel::SessionError;
use link::{LinkError, Stage};
use wire::relay::RelayCode;

/// What is charged to an address: to the relay there, or to the way to it (protocol.md 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nobody could be reached there.
    Connect,
    /// What answers is no relay, or says nothing that a relay says.
    NoRelay,
    /// The relay said no.
    Refused(RelayCode),
    /// After its `ok`: the bytes that came were not those of the pinned service.
    Rejected,
    /// After its `ok`: the connection ended without the service's farewell.
    Truncated,
    /// After its `ok`: nothing came although something was due.
    Silent,
}

impl Cause {
    /// The cause of a failure before the relay's `ok`, or before a service was connected to.
    #[must_use]
    pub fn before_ok(error: &LinkError) -> Self {
        if let LinkError::RelayRefused(code) = error {
            return Self::Refused(*code);
        }
        let no_relay = matches!(
            error,
            LinkError::NotARelay
                | LinkError::RelayEnded
                | LinkError::RelayMessage(_)
                | LinkError::Transport(_)
                | LinkError::Timeout {
                    stage: Stage::Relay,
                    ..
                }
        );
        if no_relay {
            Self::NoRelay
        } else {
            Self::Connect
        }
    }

    /// The cause of a failure after it. `None`: the service itself said so, inside the session, or
    /// this machine is at fault; another address would not help.
    #[must_use]
    pub fn after_ok(error: &LinkError) -> Option<Self> {
        match error {
            LinkError::KeyMismatch(_) => Some(Self::Rejected),
            LinkError::NotAnswered | LinkError::Cut | LinkError::Ended => Some(Self::Truncated),
            // The kernel gave up on a peer that acknowledges nothing.
            LinkError::Transport(error) if error.kind() == ErrorKind::TimedOut => {
                Some(Self::Silent)
            }
            LinkError::Transport(_) => Some(Self::Truncated),
            LinkError::Peer(error) => Some(Self::of_session(error)),
            LinkError::Unreachable { .. }
            | LinkError::Timeout { .. }
            | LinkError::NotARelay
            | LinkError::RelayRefused(_)
            | LinkError::RelayEnded
            | LinkError::RelayMessage(_)
            | LinkError::Refused(_)
            | LinkError::NotAdmitted(_)
            | LinkError::PeerStreams(_)
            | LinkError::PeerOversized
            | LinkError::LocalKey(_)
            | LinkError::LocalStatement(_)
            | LinkError::LocalSession(_)
            | LinkError::LocalAddress
            | LinkError::LocalNotRelay
            | LinkError::LocalOversized { .. }
            | _ => None,
        }
    }

    fn of_session(error: &SessionError) -> Self {
        if matches!(error, SessionError::PeerTruncated) {
            Self::Truncated
        } else if matches!(error, SessionError::PeerSilent(_)) {
            Self::Silent
        } else {
            Self::Rejected
        }
    }

    /// The word of status and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::NoRelay => "no_relay",
            Self::Refused(_) => "refused",
            Self::Rejected => "rejected",
            Self::Truncated => "truncated",
            Self::Silent => "silent",
        }
    }

    /// Every word, in the order of a session's life.
    pub const WORDS: [&'static str; 6] = [
        "connect",
        "no_relay",
        "refused",
        "rejected",
        "truncated",
        "silent",
    ];
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use channel::{Admission, KeyError};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timed_out(stage: Stage) -> LinkError {
        LinkError::Timeout {
            stage,
            limit: SECOND,
        }
    }

    #[test]
    fn before_the_ok_a_relay_is_told_from_the_way_to_it() {
        for (error, cause) in [
            (timed_out(Stage::Connect), Cause::Connect),
            (timed_out(Stage::Relay), Cause::NoRelay),
            (LinkError::NotARelay, Cause::NoRelay),
            (LinkError::RelayEnded, Cause::NoRelay),
            (
                LinkError::RelayRefused(RelayCode::Draining),
                Cause::Refused(RelayCode::Draining),
            ),
        ] {
            assert_eq!(Cause::before_ok(&error), cause, "{error}");
        }
    }

    #[test]
    fn after_the_ok_what_was_not_said_inside_the_session_is_charged() {
        let broken = |kind| LinkError::Transport(io::Error::from(kind));
        for (error, cause) in [
            (LinkError::Peer(SessionError::PeerRejected), Cause::Rejected),
            (
                LinkError::Peer(SessionError::PeerLength { bytes: 1 }),
                Cause::Rejected,
            ),
            (
                LinkError::KeyMismatch(SessionError::PeerUnknownKey),
                Cause::Rejected,
            ),
            (
                LinkError::Peer(SessionError::PeerTruncated),
                Cause::Truncated,
            ),
            (LinkError::NotAnswered, Cause::Truncated),
            (broken(ErrorKind::ConnectionReset), Cause::Truncated),
            (broken(ErrorKind::TimedOut), Cause::Silent),
            (
                LinkError::Peer(SessionError::PeerSilent(SECOND)),
                Cause::Silent,
            ),
        ] {
            assert_eq!(Cause::after_ok(&error), Some(cause), "{error}");
        }
    }

    #[test]
    fn what_the_service_says_and_what_this_machine_cannot_do_is_charged_to_no_relay() {
        for error in [
            LinkError::Refused(Admission::Suspended),
            LinkError::LocalKey(KeyError::new(io::Error::other("no TPM"))),
            timed_out(Stage::KeyOperation),
            LinkError::PeerOversized,
        ] {
            assert_eq!(Cause::after_ok(&error), None, "{error}");
        }
    }
}
