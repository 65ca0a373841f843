//! A session under watch: what holds whatever its peer says.

use channel::SessionError;

use super::WORLD;
use crate::input::Input;
use crate::net::Side;

/// One side, and how the stream to it is cut.
pub(super) struct Watched {
    pub(super) side: Side,
    piece: usize,
    /// Whether an error has ended it.
    pub(super) failed: bool,
}

impl Watched {
    /// Reads the cut off the input; 0: none.
    pub(super) fn new(side: Side, input: &mut Input<'_>) -> Self {
        let piece = match input.byte() {
            0 => usize::MAX,
            piece => usize::from(piece),
        };
        Self {
            side,
            piece,
            failed: false,
        }
    }

    /// Hands over bytes, until the session does not want them.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.piece) {
            let result = self.side.feed(WORLD.start, piece);
            self.check();
            if let Err(error) = result {
                self.check_failed(&error);
                return;
            }
        }
    }

    fn check(&self) {
        assert!(self.side.asked.len() <= 1);
        assert!(self.side.statements.len() <= 1);
        assert!(self.side.peers.len() <= 1);
        assert!(self.side.session.transmit().len() <= TRANSMIT_BYTES_MAX);
        assert!(self.side.opened.is_some() || self.side.received.is_empty());
    }

    /// After an error there is only silence.
    fn check_failed(&mut self, error: &SessionError) {
        // Nothing that a peer says makes this side guilty.
        assert!(
            matches!(
                error,
                SessionError::PeerPreamble
                    | SessionError::PeerRejected
                    | SessionError::PeerLength { .. }
                    | SessionError::PeerProtocol
                    | SessionError::PeerStatement(_)
                    | SessionError::PeerUnknownKey
            ) || (self.failed && matches!(error, SessionError::LocalOutOfTurn)),
            "{error}"
        );
        self.failed = true;
        let received = self.side.received.len();
        let waiting = self.side.session.transmit().len();
        assert_eq!(self.side.session.poll_timeout(), None);
        let again = self.side.feed(WORLD.start, &[0; 100]);
        assert!(matches!(again, Err(SessionError::LocalOutOfTurn)));
        assert_eq!(self.side.received.len(), received);
        assert_eq!(self.side.session.transmit().len(), waiting);
        assert!(self.side.closed.is_none());
    }
}

/// More than all that a peer can have a session say that is not told to send anything: message 2
/// with a statement is the longest, and a pong for each record of 19 bytes.
const TRANSMIT_BYTES_MAX: usize = 16 * 1024;
