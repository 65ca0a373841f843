//! Whether the peer is still there: when to ping it, and when to give it up (protocol.md 2.5).

use std::time::{Duration, Instant};

use crate::noise::Role;

/// What was heard of the peer, and what it has not answered.
pub(super) struct KeepAlive {
    silence_max: Duration,
    heard_at: Instant,
    /// Since when stream bytes may be lost that were sent: nothing was heard since, or something
    /// that does not prove it.
    unanswered_since: Option<Instant>,
    /// Whether stream bytes were sent after the last ping, of which its pong says nothing.
    sent_since_ping: bool,
    /// When the ping was sent that nothing was heard after.
    pinged_at: Option<Instant>,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Ping,
    /// The peer has been silent for so long.
    Over(Duration),
}

impl KeepAlive {
    pub(super) fn new(role: Role, now: Instant) -> Self {
        Self {
            silence_max: match role {
                Role::Initiator => SILENCE_MAX,
                Role::Responder => SILENCE_MAX + PING_STAGGER,
            },
            heard_at: now,
            unanswered_since: None,
            sent_since_ping: false,
            pinged_at: None,
        }
    }

    /// Stream bytes are sent.
    pub(super) fn note_sent(&mut self, now: Instant) {
        self.unanswered_since.get_or_insert(now);
        self.sent_since_ping = true;
    }

    /// A record has come. It may have been sent before the last bytes arrived there; the pong of a
    /// ping behind them was not.
    pub(super) fn note_heard(&mut self, now: Instant, is_pong: bool) {
        self.heard_at = now;
        self.pinged_at = None;
        self.unanswered_since = if is_pong && !self.sent_since_ping {
            None
        } else {
            self.unanswered_since.map(|_| now)
        };
    }

    /// When to ping, or to give up on the ping that is out.
    pub(super) fn timeout(&self) -> Instant {
        if let Some(pinged_at) = self.pinged_at {
            return pinged_at + PONG_TIME_MAX;
        }
        let silent_at = self.heard_at + self.silence_max;
        self.unanswered_since
            .map_or(silent_at, |since| silent_at.min(since + ANSWER_TIME_MAX))
    }

    /// Says what is due, and takes it for done.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Due {
        if now < self.timeout() {
            return Due::Nothing;
        }
        if self.pinged_at.is_some() {
            return Due::Over(now.saturating_duration_since(self.heard_at));
        }
        self.pinged_at = Some(now);
        self.sent_since_ping = false;
        Due::Ping
    }
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
