//! A session after message 3: admission, records, keep-alive and the end of its keys
//! (protocol.md 2.4 and 2.5).

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::keep_alive::{Due, KeepAlive};
use super::payload::Admission;
use super::renewal::{Move, Renewal};
use super::{Event, HANDSHAKE_TIME_MAX, Outbox, SessionError, TRANSMIT_BYTES_MAX};
use crate::noise::{Finished, HASH_BYTES, Role};
use crate::record::{RecordError, RecordType, Records};
use crate::{KeyError, PublicKey, SharedSecret};

pub(super) struct Open {
    role: Role,
    records: Records,
    handshake_hash: [u8; HASH_BYTES],
    remote_static: PublicKey,
    phase: Phase,
    renewal: Renewal,
    /// Whether the keys are due to be renewed.
    renew: bool,
    keys_since: Instant,
    /// When the keys end, unless their counters end them before.
    retire_at: Instant,
    keep_alive: KeepAlive,
}

/// Whether the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Continues,
    Ends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The peer's admission is decided: by this side if it is the responder, else by the peer.
    Admission {
        until: Instant,
    },
    Running,
}

impl Open {
    pub(super) fn new(
        role: Role,
        finished: &Finished,
        renewal: Renewal,
        now: Instant,
        until: Instant,
    ) -> Result<Self, SessionError> {
        let records = Records::new(role, &finished.keys)
            .map_err(|error| SessionError::LocalCrypto(error.into()))?;
        Ok(Self {
            role,
            records,
            handshake_hash: finished.hash,
            remote_static: finished.remote_static,
            phase: Phase::Admission { until },
            renewal,
            renew: false,
            keys_since: now,
            retire_at: now + KEY_AGE_MAX,
            keep_alive: KeepAlive::new(role, now),
        })
    }

    pub(super) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    pub(super) fn awaits_admission(&self) -> bool {
        self.role == Role::Responder && !self.is_running()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn timeout(&self) -> Instant {
        match self.phase {
            Phase::Admission { until } => until,
            Phase::Running => [self.renewal.timeout(), self.renew_at()]
                .into_iter()
                .flatten()
                .fold(self.keep_alive.timeout().min(self.retire_at), Instant::min),
        }
    }

    pub(super) fn awaits_secret(&self) -> bool {
        self.renewal.awaits_secret()
    }

    pub(super) fn awaits_storing(&self) -> bool {
        self.renewal.awaits_storing()
    }

    /// Ends a session whose admission is late, or whose keys are old; renews keys; pings a silent
    /// peer.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        if now < self.timeout() {
            return Ok(Flow::Continues);
        }
        if let Phase::Admission { .. } = self.phase {
            return Err(match self.role {
                Role::Initiator => SessionError::PeerSilent(HANDSHAKE_TIME_MAX),
                Role::Responder => SessionError::LocalLate(HANDSHAKE_TIME_MAX),
            });
        }
        if self.retire_at <= now {
            return self.close(Admission::GoingAway, outbox);
        }
        let step = self.renewal.handle_timeout(now, outbox)?;
        self.apply(now, step, outbox)?;
        if self.renew_at().is_some_and(|at| at <= now) {
            self.renew = true;
            self.begin_renewal(now, outbox)?;
        }
        match self.keep_alive.handle_timeout(now) {
            Due::Nothing => self.end_if_spent(outbox),
            Due::Over(silence) => Err(SessionError::PeerSilent(silence)),
            Due::Ping => {
                outbox.shrink();
                self.transmit(RecordType::Ping, &[], outbox)
            }
        }
    }

    /// Lets the gateway in, or tells it why not.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        admission: Admission,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        let flow = self.transmit(RecordType::Admission, &admission.encode(), outbox)?;
        if admission == Admission::Ok {
            self.run(now, outbox);
            return Ok(flow);
        }
        outbox.event(Event::Closed(admission));
        Ok(Flow::Ends)
    }

    /// Sends stream bytes that fit one record.
    pub(super) fn send(
        &mut self,
        now: Instant,
        bytes: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        self.note_use(now, outbox)?;
        self.keep_alive.note_sent(now);
        self.transmit(RecordType::Stream, bytes, outbox)
    }

    /// Takes the answer to a [`Event::KeyOperation`] of the renewal.
    pub(super) fn handle_shared_secret(
        &mut self,
        now: Instant,
        secret: Result<SharedSecret, KeyError>,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        let step = self.renewal.handle_shared_secret(now, secret, outbox)?;
        self.apply(now, step, outbox)?;
        self.end_if_spent(outbox)
    }

    /// Goes on with a renewal whose new statement is stored.
    pub(super) fn handle_statement_stored(
        &mut self,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        self.renewal.handle_stored(now, outbox)?;
        Ok(Flow::Continues)
    }

    /// Tells the peer why this is the end.
    pub(super) fn close(
        &mut self,
        reason: Admission,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        self.seal(RecordType::Close, &reason.encode(), outbox)?;
        outbox.event(Event::Closed(reason));
        Ok(Flow::Ends)
    }

    /// Takes one record. A peer that breaks the protocol is told so; one whose record does not
    /// authenticate may be anybody, and is told nothing.
    pub(super) fn handle_record(
        &mut self,
        now: Instant,
        frame: BytesMut,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        // Whoever keeps the driver busy with bytes may keep it from its clock.
        if self.is_running() && self.retire_at <= now {
            return self.close(Admission::GoingAway, outbox);
        }
        let result = match self.records.receiving.open(frame) {
            Ok((kind, body)) => self.take(now, kind, body, outbox),
            Err(RecordError::Rejected) => return Err(SessionError::PeerRejected),
            Err(RecordError::UnknownType) => Err(SessionError::PeerProtocol),
        };
        if result.is_err() {
            let reason = Admission::ProtocolError.encode();
            self.seal(RecordType::Close, &reason, outbox)?;
        }
        result
    }

    fn take(
        &mut self,
        now: Instant,
        kind: RecordType,
        body: BytesMut,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        self.keep_alive.note_heard(now, kind == RecordType::Pong);
        match kind {
            RecordType::Close => {
                let reason = decode(&body)?;
                outbox.event(Event::Closed(reason));
                return Ok(Flow::Ends);
            }
            RecordType::Admission if self.role == Role::Initiator && !self.is_running() => {
                let admission = decode(&body)?;
                if admission != Admission::Ok {
                    outbox.event(Event::Closed(admission));
                    return Ok(Flow::Ends);
                }
                self.run(now, outbox);
            }
            RecordType::Stream if self.is_running() && !body.is_empty() => {
                outbox.event(Event::Data(body));
                self.note_use(now, outbox)?;
            }
            RecordType::Ping if self.is_running() && body.is_empty() => {
                // A peer that pings and does not read shall not fill the queue.
                if outbox.bytes() < TRANSMIT_BYTES_MAX {
                    return self.transmit(RecordType::Pong, &[], outbox);
                }
            }
            RecordType::Pong if self.is_running() && body.is_empty() => {}
            RecordType::Renewal if self.may_renew(now) && self.is_running() => {
                let step = self.renewal.handle_message(now, &body, outbox)?;
                self.apply(now, step, outbox)?;
            }
            RecordType::Switch if self.is_running() && body.is_empty() => {
                let step = self.renewal.handle_switch(outbox)?;
                self.apply(now, step, outbox)?;
            }
            RecordType::PleaseRenew
                if self.may_renew(now)
                    && self.is_running()
                    && self.role == Role::Initiator
                    && body.is_empty() =>
            {
                self.renew = true;
                self.begin_renewal(now, outbox)?;
            }
            RecordType::Admission
            | RecordType::Stream
            | RecordType::Ping
            | RecordType::Pong
            | RecordType::Renewal
            | RecordType::Switch
            | RecordType::PleaseRenew => return Err(SessionError::PeerProtocol),
        }
        self.end_if_spent(outbox)
    }

    fn run(&mut self, now: Instant, outbox: &mut Outbox) {
        self.phase = Phase::Running;
        self.keep_alive.note_heard(now, false);
        outbox.event(Event::Open {
            handshake_hash: self.handshake_hash,
            remote_static: self.remote_static,
        });
    }

    fn transmit(
        &mut self,
        kind: RecordType,
        body: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        self.seal(kind, body, outbox)?;
        self.end_if_spent(outbox)
    }

    fn seal(
        &mut self,
        kind: RecordType,
        body: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), SessionError> {
        self.records
            .sending
            .seal(kind, body, outbox.tail())
            .map_err(|error| SessionError::LocalCrypto(error.into()))
    }

    /// Does what the renewal asks for. New keys count from now.
    fn apply(&mut self, now: Instant, step: Move, outbox: &mut Outbox) -> Result<(), SessionError> {
        match step {
            Move::Nothing => return Ok(()),
            Move::Send(body) => return self.seal(RecordType::Renewal, &body, outbox),
            Move::Introduce(body, sending) => {
                self.seal(RecordType::Renewal, &body, outbox)?;
                self.records.sending = sending;
                return Ok(());
            }
            Move::Exchange(records) => {
                self.seal(RecordType::Switch, &[], outbox)?;
                self.records = records;
            }
            Move::Receive(receiving) => self.records.receiving = receiving,
        }
        self.renew = false;
        self.keys_since = now;
        self.retire_at = now + KEY_AGE_MAX;
        Ok(())
    }

    /// The gateway renews; the service asks it to, once.
    fn begin_renewal(&mut self, now: Instant, outbox: &mut Outbox) -> Result<(), SessionError> {
        let step = self.renewal.begin(now)?;
        self.apply(now, step, outbox)
    }

    /// When keys are renewed that nobody uses: by the gateway, before a day ends them.
    fn renew_at(&self) -> Option<Instant> {
        let idle = self.role == Role::Initiator && !self.renew;
        idle.then(|| self.keys_since + KEY_AGE_MAX - KEY_GRACE)
    }

    /// Whether a peer whose clock or counters differ a little may think that it is time. Nobody
    /// may make the keys work more often than this.
    fn may_renew(&self, now: Instant) -> bool {
        self.renew || self.records.are_half_worn() || self.keys_since + KEY_FRESH / 2 <= now
    }

    fn end_if_spent(&mut self, outbox: &mut Outbox) -> Result<Flow, SessionError> {
        if self.records.are_spent() {
            return self.close(Admission::GoingAway, outbox);
        }
        Ok(Flow::Continues)
    }

    /// An idle session keeps its keys for a day. The first stream bytes late in their hour of use,
    /// or when they have done much, begin their renewal and leave them ten minutes more.
    fn note_use(&mut self, now: Instant, outbox: &mut Outbox) -> Result<(), SessionError> {
        let due = self.keys_since + KEY_FRESH <= now || self.records.are_worn();
        if !due || self.renew {
            return Ok(());
        }
        self.renew = true;
        self.retire_at = self.retire_at.min(now + KEY_GRACE);
        match self.role {
            Role::Initiator => self.begin_renewal(now, outbox),
            Role::Responder if self.renewal.is_at_rest() => {
                self.seal(RecordType::PleaseRenew, &[], outbox)
            }
            Role::Responder => Ok(()),
        }
    }
}

fn decode(body: &[u8]) -> Result<Admission, SessionError> {
    Admission::decode(body).map_err(|_| SessionError::PeerProtocol)
}

/// How long keys last at most, idle or not (protocol.md 2.5).
const KEY_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// From this age on the next stream bytes begin the keys' end (protocol.md 2.5).
const KEY_FRESH: Duration = Duration::from_secs(50 * 60);

/// How long after that stream bytes may still use them (protocol.md 2.5).
const KEY_GRACE: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests;
