use thiserror::Error;

/// Why bytes or words from outside were refused.
///
/// All of them blame the sender: encoding never fails. A caller drops the message and, if it came
/// from a peer, ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are no CBOR, or not the shape of this message: cut, an unknown key, another type.
    #[error("message is malformed at byte {at}")]
    Malformed {
        /// Where reading stopped, from the start of the message.
        at: usize,
    },

    /// Something follows the message.
    #[error("message is followed by {bytes} more bytes")]
    Trailing {
        /// How many bytes follow.
        bytes: usize,
    },

    /// The message reads well, but is not in its one deterministic encoding (RFC 8949, 4.2.1).
    #[error("message is not in deterministic encoding")]
    NotDeterministic,

    /// The message is longer than its kind may be.
    #[error("message has {bytes} bytes, the limit is {bytes_max}")]
    Oversized {
        /// Length of the refused message.
        bytes: usize,
        /// What this kind of message may have.
        bytes_max: usize,
    },

    /// A field has the right type and a value that is not allowed there, or not known here.
    #[error("{field} has a value that is not allowed")]
    Value {
        /// What the field is called in this documentation.
        field: &'static str,
    },
}
