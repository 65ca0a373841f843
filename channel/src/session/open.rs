//! A session after message 3: admission, records, keep-alive and the end of its keys
//! (protocol.md 2.4 and 2.5).

use std::time::{Duration, Instant};

use super::payload::Admission;
use super::{Event, HANDSHAKE_TIME_MAX, Outbox, SessionError, TRANSMIT_BYTES_MAX};
use crate::PublicKey;
use crate::noise::{Finished, HASH_BYTES, Role};
use crate::record::{RecordError, RecordType, Records};

pub(super) struct Open {
    role: Role,
    records: Records,
    handshake_hash: [u8; HASH_BYTES],
    remote_static: PublicKey,
    phase: Phase,
    keys_since: Instant,
    /// When the keys end, unless their counters end them before.
    retire_at: Instant,
    heard_at: Instant,
    /// When stream bytes were sent that nothing was heard after.
    unanswered_since: Option<Instant>,
    /// When the ping was sent that nothing was heard after.
    pinged_at: Option<Instant>,
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
    pub(super) fn new(role: Role, finished: Finished, now: Instant, until: Instant) -> Self {
        Self {
            role,
            records: Records::new(finished.transport),
            handshake_hash: finished.hash,
            remote_static: finished.remote_static,
            phase: Phase::Admission { until },
            keys_since: now,
            retire_at: now + KEY_AGE_MAX,
            heard_at: now,
            unanswered_since: None,
            pinged_at: None,
        }
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
            Phase::Running => self.keep_alive_at().min(self.retire_at),
        }
    }

    /// Ends a session whose admission is late, or whose keys are old; pings a silent peer.
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
        if self.pinged_at.is_some() {
            let silence = now.saturating_duration_since(self.heard_at);
            return Err(SessionError::PeerSilent(silence));
        }
        self.pinged_at = Some(now);
        self.transmit(RecordType::Ping, &[], outbox)
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
        self.note_use(now);
        self.unanswered_since.get_or_insert(now);
        self.transmit(RecordType::Stream, bytes, outbox)
    }

    /// Tells the peer why this is the end.
    pub(super) fn close(
        &mut self,
        reason: Admission,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        let record = self.records.seal(RecordType::Close, &reason.encode());
        outbox.push(record.map_err(SessionError::LocalCrypto)?);
        outbox.event(Event::Closed(reason));
        Ok(Flow::Ends)
    }

    /// Takes one record. A peer that breaks the protocol is told so; one whose record does not
    /// authenticate may be anybody, and is told nothing.
    pub(super) fn handle_record(
        &mut self,
        now: Instant,
        frame: &[u8],
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        let result = match self.records.open(frame) {
            Ok((kind, body)) => self.take(now, kind, body, outbox),
            Err(RecordError::Rejected) => Err(SessionError::PeerRejected),
            Err(RecordError::UnknownType) => Err(SessionError::PeerProtocol),
        };
        if matches!(result, Err(SessionError::PeerProtocol)) {
            let reason = Admission::ProtocolError.encode();
            let record = self.records.seal(RecordType::Close, &reason);
            outbox.push(record.map_err(SessionError::LocalCrypto)?);
        }
        result
    }

    fn take(
        &mut self,
        now: Instant,
        kind: RecordType,
        body: Vec<u8>,
        outbox: &mut Outbox,
    ) -> Result<Flow, SessionError> {
        self.heard_at = now;
        self.unanswered_since = None;
        self.pinged_at = None;
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
                self.note_use(now);
                outbox.event(Event::Data(body));
            }
            RecordType::Ping if self.is_running() && body.is_empty() => {
                // A peer that pings and does not read shall not fill the queue.
                if outbox.bytes() < TRANSMIT_BYTES_MAX {
                    return self.transmit(RecordType::Pong, &[], outbox);
                }
            }
            RecordType::Pong if self.is_running() && body.is_empty() => {}
            RecordType::Admission | RecordType::Stream | RecordType::Ping | RecordType::Pong => {
                return Err(SessionError::PeerProtocol);
            }
        }
        self.end_if_spent(outbox)
    }

    fn run(&mut self, now: Instant, outbox: &mut Outbox) {
        self.phase = Phase::Running;
        self.heard_at = now;
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
        let record = self.records.seal(kind, body);
        outbox.push(record.map_err(SessionError::LocalCrypto)?);
        self.end_if_spent(outbox)
    }

    fn end_if_spent(&mut self, outbox: &mut Outbox) -> Result<Flow, SessionError> {
        if self.records.are_spent() {
            return self.close(Admission::GoingAway, outbox);
        }
        Ok(Flow::Continues)
    }

    /// An idle session keeps its keys for a day; the first stream bytes late in their hour of use
    /// leave them ten minutes more.
    fn note_use(&mut self, now: Instant) {
        if self.keys_since + KEY_FRESH <= now {
            self.retire_at = self.retire_at.min(now + KEY_GRACE);
        }
    }

    /// When to ping, or to give up on the ping that is out.
    fn keep_alive_at(&self) -> Instant {
        if let Some(pinged_at) = self.pinged_at {
            return pinged_at + PONG_TIME_MAX;
        }
        let silent_at = self.heard_at
            + match self.role {
                Role::Initiator => SILENCE_MAX,
                Role::Responder => SILENCE_MAX + PING_STAGGER,
            };
        self.unanswered_since
            .map_or(silent_at, |since| silent_at.min(since + ANSWER_TIME_MAX))
    }
}

fn decode(body: &[u8]) -> Result<Admission, SessionError> {
    Admission::decode(body).map_err(|_| SessionError::PeerProtocol)
}

/// How long a peer may be silent before it is pinged (protocol.md 2.5).
const SILENCE_MAX: Duration = Duration::from_secs(240);

/// How much longer the service waits. After each ping both sides have heard the other at the same
/// time but for the way between them, so without this every second ping would cross another, and
/// an idle day would cost twice the 75 KB it may.
const PING_STAGGER: Duration = Duration::from_secs(15);

/// How long stream bytes may stay without any answer before the peer is pinged (protocol.md 2.5).
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// How long a pong may take (protocol.md 2.5).
const PONG_TIME_MAX: Duration = Duration::from_secs(30);

/// How long keys last at most, idle or not (protocol.md 2.5).
const KEY_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// From this age on the next stream bytes begin the keys' end (protocol.md 2.5).
const KEY_FRESH: Duration = Duration::from_secs(50 * 60);

/// How long after that stream bytes may still use them (protocol.md 2.5).
const KEY_GRACE: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::kem::{self, KemKey};
    use crate::noise::{Handshake, ephemeral_of};
    use crate::record::KEY_RECORDS_MAX;
    use crate::{SoftwareStaticKey, StaticKey as _, Suite};

    #[test]
    fn a_key_at_its_last_records_closes_the_session_instead_of_sealing_more() {
        let now = Instant::now();
        let (mut gateway, mut service) = running(now);
        let (mut up, mut down) = (Outbox::default(), Outbox::default());
        gateway.records.pretend_sent(KEY_RECORDS_MAX - 4);

        let flow = gateway.send(now, b"last but one", &mut up).unwrap();
        assert_eq!(flow, Flow::Continues);
        let flow = gateway.send(now, b"last", &mut up).unwrap();
        assert_eq!(flow, Flow::Ends);
        assert!(matches!(
            up.events.pop_front(),
            Some(Event::Closed(Admission::GoingAway))
        ));

        let mut flow = Flow::Continues;
        while let Some(frame) = up.pop() {
            assert_eq!(flow, Flow::Continues);
            flow = service.handle_record(now, &frame[2..], &mut down).unwrap();
        }
        assert_eq!(flow, Flow::Ends);
        assert!(matches!(
            down.events.pop_back(),
            Some(Event::Closed(Admission::GoingAway))
        ));
        assert_eq!(down.events.len(), 2);
    }

    /// A gateway and a service that just opened.
    fn running(now: Instant) -> (Open, Open) {
        let keys = [1, 2].map(|seed| SoftwareStaticKey::generate(&mut fixture::rng(seed)));
        let new = |role, key: &SoftwareStaticKey, seed| {
            let mut rng = fixture::rng(seed);
            Handshake::new(role, Suite::ChaChaPoly, b"", key.public(), &mut rng).unwrap()
        };
        let mut gateway = new(Role::Initiator, &keys[0], 3);
        let mut service = new(Role::Responder, &keys[1], 4);
        let kem = KemKey::generate(&mut fixture::rng(5));
        let (_, psk) = kem::encapsulate(kem.public(), &mut fixture::rng(6)).unwrap();
        gateway.set_psk(&psk).unwrap();
        service.set_psk(&psk).unwrap();

        let message = gateway.write(&[]).unwrap();
        service.read(&message).unwrap();
        let peer = ephemeral_of(&message).unwrap();
        service.answer(peer, keys[1].ecdh_now(&peer).unwrap());
        let message = service.write(&[]).unwrap();
        gateway.read(&message).unwrap();
        let peer = ephemeral_of(&message).unwrap();
        gateway.answer(peer, keys[0].ecdh_now(&peer).unwrap());
        service.read(&gateway.write(&[]).unwrap()).unwrap();

        let open = |role, handshake: Handshake| {
            let mut open = Open::new(role, handshake.finish().unwrap(), now, now);
            open.run(now, &mut Outbox::default());
            open
        };
        (
            open(Role::Initiator, gateway),
            open(Role::Responder, service),
        )
    }
}
