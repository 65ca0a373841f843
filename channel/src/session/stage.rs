//! Which part of the session takes what arrives.

use std::time::Instant;

use bytes::BytesMut;

use super::initiator::Initiator;
use super::open::{Flow, Open};
use super::responder::Responder;
use super::{Outbox, SessionError};
use crate::record::{Expected, RECORD_LENGTHS};

/// How far a session is.
pub(super) enum Stage {
    Initiator(Box<Initiator>),
    Responder(Box<Responder>),
    Open(Box<Open>),
    /// It ended properly.
    Closed,
    /// It ended with an error.
    Failed,
}

impl Stage {
    /// What may come from the peer; `None` if nothing may.
    pub(super) fn expected(&self) -> Option<Expected> {
        match self {
            Self::Initiator(initiator) => initiator.expected(),
            Self::Responder(responder) => responder.expected(),
            Self::Open(_) => Some(Expected::Frame(RECORD_LENGTHS)),
            Self::Closed | Self::Failed => None,
        }
    }

    pub(super) fn handle_frame(
        self,
        now: Instant,
        frame: BytesMut,
        outbox: &mut Outbox,
    ) -> Result<Self, SessionError> {
        match self.in_time(now)? {
            Self::Initiator(initiator) => initiator.handle_reply(now, &frame, outbox),
            Self::Responder(responder) => responder.handle_message(now, &frame, outbox),
            Self::Open(mut open) => {
                if !open.is_running() {
                    open.handle_timeout(now, outbox)?;
                }
                Ok(match open.handle_record(now, frame, outbox)? {
                    Flow::Continues => Self::Open(open),
                    Flow::Ends => Self::Closed,
                })
            }
            Self::Closed | Self::Failed => Err(SessionError::LocalOutOfTurn),
        }
    }

    /// Ends a handshake whose deadline is over, whoever noticed first.
    pub(super) fn in_time(self, now: Instant) -> Result<Self, SessionError> {
        let (deadline, error) = match &self {
            Self::Initiator(initiator) => initiator.deadline(),
            Self::Responder(responder) => responder.deadline(),
            Self::Open(_) | Self::Closed | Self::Failed => return Ok(self),
        };
        if deadline <= now {
            Err(error)
        } else {
            Ok(self)
        }
    }

    pub(super) fn awaits_secret(&self) -> bool {
        match self {
            Self::Initiator(initiator) => initiator.awaits_secret(),
            Self::Responder(responder) => responder.awaits_secret(),
            Self::Open(open) => open.awaits_secret(),
            Self::Closed | Self::Failed => false,
        }
    }

    pub(super) fn awaits_storing(&self) -> bool {
        match self {
            Self::Initiator(initiator) => initiator.awaits_storing(),
            Self::Open(open) => open.awaits_storing(),
            Self::Responder(_) | Self::Closed | Self::Failed => false,
        }
    }

    pub(super) fn awaits_admission(&self) -> bool {
        matches!(self, Self::Open(open) if open.awaits_admission())
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Open(open) if open.is_running())
    }
}
