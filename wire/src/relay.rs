//! Control messages between a relay and its clients; see `protocol.md` 6.
//!
//! A greeting is 36 bytes as they are. Every other message travels as `u16 length ‖ CBOR`; the
//! length is the business of whoever moves the bytes.

use crate::WireError;
use crate::cbor::{self, Message, Reader, Writer};
use crate::closed::coded;
use crate::mac::{hash, mac};

/// What a relay says first, to anyone: `GWR1 ‖ nonce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Random; what the client proves, it proves for this connection.
    pub nonce: [u8; 32],
}

/// What a client says, once, after the greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// A service wants to be reachable here: `{1: 1, 2: statement, 3: signature}`.
    Register {
        /// The service's statement, as it travels everywhere.
        statement: Vec<u8>,
        /// ES256 by one of the statement's online keys over [`register_message`].
        signature: [u8; 64],
    },
    /// A gateway wants to talk to a service: `{1: 2, 2: service, ? 3: token id, ? 4: admit}`.
    Hello {
        /// The service's fingerprint.
        service: [u8; 32],
        /// Admission, at a relay that asks for it.
        token: Option<Token>,
    },
    /// A service takes a connection that waits for it: `{1: 3, 2: connection id}`.
    Accept {
        /// The id from [`ToRegistered::Incoming`].
        id: [u8; 16],
    },
}

/// Which admission token a gateway has, and that it has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// How the relay finds the token.
    pub id: [u8; 8],
    /// [`admit`] with the token.
    pub admit: [u8; 32],
}

/// The relay's answer to a [`ClientMessage`]: `{1: code}`. After `ok`, bytes belong to the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub code: RelayCode,
}

coded! {
    /// What a relay answers.
    RelayCode "relay code" {
        /// Registered, connected or accepted.
        Ok = 0 => "ok",
        /// No service with this fingerprint is registered.
        NoSuchService = 1 => "the relay knows no such service",
        /// The relay wants a token, or another one.
        NotAdmitted = 2 => "the relay does not admit this client",
        /// A statement, a signature or a connection id is wrong.
        BadProof = 3 => "the relay refused the proof",
        /// Too many clients at the moment.
        Busy = 4 => "the relay is busy",
        /// This client has used up what it may.
        Limit = 5 => "the relay's limit for this client is reached",
        /// The relay is being shut down.
        Draining = 6 => "the relay is shutting down",
        /// The relay speaks another version.
        Version = 7 => "the relay speaks another version",
        /// The service is registered but did not take the connection in time.
        ServiceSilent = 8 => "the service did not answer the relay",
    }
}

/// What travels on a registration's connection afterwards, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToRegistered {
    /// A gateway is waiting: `{1: 1, 2: connection id}`. The service dials and accepts.
    Incoming {
        /// Names the connection, once and for 10 s.
        id: [u8; 16],
    },
    /// "Are you there?": `{1: 2}`.
    Ping,
    /// "Yes": `{1: 3}`.
    Pong,
    /// The relay shuts down; register elsewhere: `{1: 4}`.
    Drain,
}

/// What an online key signs to register: `"gatewayd/1 relay" ‖ nonce ‖ H(host:port) ‖ service`.
///
/// `dialled` is `host:port` exactly as the service dialled it, which stops a relay from using the
/// signature at another one. A relay tries the names it goes by.
#[must_use]
pub fn register_message(nonce: &[u8; 32], dialled: &str, service: &[u8; 32]) -> Vec<u8> {
    let host = hash(&[dialled.as_bytes()]);
    [b"gatewayd/1 relay\0".as_slice(), nonce, &host, service].concat()
}

/// Proves knowledge of a token: `M(token, "gatewayd/1 admit" ‖ nonce ‖ service)`.
#[must_use]
pub fn admit(token: &[u8], nonce: &[u8; 32], service: &[u8; 32]) -> [u8; 32] {
    mac(token, &[b"gatewayd/1 admit\0", nonce, service])
}

impl Greeting {
    /// The greeting's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        for (to, from) in bytes.iter_mut().zip(MAGIC.iter().chain(&self.nonce)) {
            *to = *from;
        }
        bytes
    }

    /// Reads a greeting.
    ///
    /// # Errors
    ///
    /// [`WireError::Value`] if this is no relay of this version.
    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Self, WireError> {
        bytes
            .strip_prefix(MAGIC)
            .and_then(|nonce| nonce.try_into().ok())
            .map(|nonce| Self { nonce })
            .ok_or(WireError::Value { field: "greeting" })
    }
}

impl ClientMessage {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode_bounded(bytes, REGISTER_BYTES_MAX)
    }
}

impl Answer {
    /// The answer's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode(bytes)
    }
}

impl ToRegistered {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`WireError`] if these are not the bytes of such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        cbor::decode(bytes)
    }
}

impl Message for ClientMessage {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Register {
                statement,
                signature,
            } => {
                writer.map(3).key(&[1]).uint(REGISTER);
                writer.key(&[2]).bytes(statement);
                writer.key(&[3]).bytes(signature);
            }
            Self::Hello { service, token } => {
                writer.map(if token.is_some() { 4 } else { 2 });
                writer.key(&[1]).uint(HELLO);
                writer.key(&[2]).bytes(service);
                if let Some(token) = token {
                    writer.key(&[3]).bytes(&token.id);
                    writer.key(&[4]).bytes(&token.admit);
                }
            }
            Self::Accept { id } => {
                writer.map(2).key(&[1]).uint(ACCEPT);
                writer.key(&[2]).bytes(id);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let message = match pairs.required(&[1], Reader::u8)? {
            REGISTER => Self::Register {
                statement: pairs.required(&[2], Reader::bytes)?,
                signature: pairs.required(&[3], Reader::sized)?,
            },
            HELLO => Self::Hello {
                service: pairs.required(&[2], Reader::sized)?,
                token: match pairs.optional(&[3], Reader::sized)? {
                    Some(id) => Some(Token {
                        id,
                        admit: pairs.required(&[4], Reader::sized)?,
                    }),
                    None => None,
                },
            },
            ACCEPT => Self::Accept {
                id: pairs.required(&[2], Reader::sized)?,
            },
            _ => {
                return Err(WireError::Value {
                    field: "client message",
                });
            }
        };
        pairs.end()?;
        Ok(message)
    }
}

impl Message for Answer {
    fn write(&self, writer: &mut Writer) {
        writer.map(1).key(&[1]).uint(u8::from(self.code));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let code = pairs.required(&[1], Reader::code)?;
        pairs.end()?;
        Ok(Self { code })
    }
}

impl Message for ToRegistered {
    fn write(&self, writer: &mut Writer) {
        let kind = match self {
            Self::Incoming { id } => {
                writer.map(2).key(&[1]).uint(INCOMING).key(&[2]).bytes(id);
                return;
            }
            Self::Ping => PING,
            Self::Pong => PONG,
            Self::Drain => DRAIN,
        };
        writer.map(1).key(&[1]).uint(kind);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let message = match pairs.required(&[1], Reader::u8)? {
            INCOMING => Self::Incoming {
                id: pairs.required(&[2], Reader::sized)?,
            },
            PING => Self::Ping,
            PONG => Self::Pong,
            DRAIN => Self::Drain,
            _ => {
                return Err(WireError::Value {
                    field: "relay message",
                });
            }
        };
        pairs.end()?;
        Ok(message)
    }
}

/// Size of a greeting.
pub const GREETING_BYTES: usize = 36;

/// Longest registration that a relay reads (`protocol.md` 6, limits).
pub const REGISTER_BYTES_MAX: usize = 16 * 1024;

/// Starts every greeting: relay protocol, version 1.
const MAGIC: &[u8] = b"GWR1";

// Kinds of client message.
const REGISTER: u8 = 1;
const HELLO: u8 = 2;
const ACCEPT: u8 = 3;

// Kinds of message on a registration.
const INCOMING: u8 = 1;
const PING: u8 = 2;
const PONG: u8 = 3;
const DRAIN: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    // All bytes below are made with cbor2 (canonical), hashlib and hmac of Python.

    #[test]
    fn client_messages_have_these_bytes() {
        let register = ClientMessage::Register {
            statement: b"statement".to_vec(),
            signature: [0x44; 64],
        };
        let hello = |token| ClientMessage::Hello {
            service: SERVICE,
            token,
        };
        let token = Token {
            id: [0, 1, 2, 3, 4, 5, 6, 7],
            admit: admit(b"token", &NONCE, &SERVICE),
        };
        for (message, bytes) in [
            (register, REGISTER_BYTES),
            (hello(None), HELLO_BYTES),
            (hello(Some(token)), HELLO_TOKEN_BYTES),
            (
                ClientMessage::Accept { id: id() },
                "a201030250202122232425262728292a2b2c2d2e2f",
            ),
        ] {
            assert_eq!(hex::encode(message.encode()), bytes);
            assert_eq!(
                ClientMessage::decode(&hex::decode(bytes).unwrap()),
                Ok(message)
            );
        }
    }

    #[test]
    fn relay_messages_have_these_bytes() {
        for (message, bytes) in [
            (
                ToRegistered::Incoming { id: id() },
                "a201010250202122232425262728292a2b2c2d2e2f",
            ),
            (ToRegistered::Ping, "a10102"),
            (ToRegistered::Pong, "a10103"),
            (ToRegistered::Drain, "a10104"),
        ] {
            assert_eq!(hex::encode(message.encode()), bytes);
            assert_eq!(
                ToRegistered::decode(&hex::decode(bytes).unwrap()),
                Ok(message)
            );
        }
        let answer = Answer {
            code: RelayCode::ServiceSilent,
        };
        assert_eq!(answer.encode(), [0xa1, 0x01, 0x08]);
        assert_eq!(Answer::decode(&[0xa1, 0x01, 0x08]), Ok(answer));
    }

    #[test]
    fn a_greeting_is_its_magic_and_its_nonce() {
        let greeting = Greeting { nonce: NONCE };
        let mut bytes = greeting.encode();
        assert_eq!(bytes[..4], *b"GWR1");
        assert_eq!(bytes[4..], NONCE);
        assert_eq!(Greeting::decode(&bytes), Ok(greeting));

        bytes[3] = b'2';
        assert_eq!(
            Greeting::decode(&bytes),
            Err(WireError::Value { field: "greeting" })
        );
    }

    #[test]
    fn the_signed_registration_is_for_one_relay_and_one_connection() {
        let message = register_message(&NONCE, "relay-a.example:4430", &SERVICE);
        assert_eq!(hex::encode(&message), SIGNED_BYTES);
        assert_ne!(
            register_message(&NONCE, "relay-b.example:4430", &SERVICE),
            message
        );
        assert_ne!(
            register_message(&SERVICE, "relay-a.example:4430", &SERVICE),
            message
        );
    }

    #[test]
    fn half_a_token_and_unknown_kinds_are_refused() {
        for (hex, error) in [
            (
                HELLO_BYTES.replacen("a2", "a3", 1) + "034800",
                WireError::Malformed { at: 39 },
            ),
            (
                HELLO_BYTES.replacen("a2", "a3", 1) + "045820",
                WireError::Malformed { at: 38 },
            ),
            (
                "a10104".to_owned(),
                WireError::Value {
                    field: "client message",
                },
            ),
            ("a10103".to_owned(), WireError::Malformed { at: 3 }),
        ] {
            let bytes = hex::decode(hex).unwrap();
            assert_eq!(ClientMessage::decode(&bytes), Err(error));
        }
        assert_eq!(
            ToRegistered::decode(&[0xa1, 0x01, 0x05]),
            Err(WireError::Value {
                field: "relay message"
            })
        );
        assert_eq!(
            Answer::decode(&[0xa1, 0x01, 0x09]),
            Err(WireError::Value {
                field: "relay code"
            })
        );
        assert!(matches!(
            ClientMessage::decode(&vec![0; REGISTER_BYTES_MAX + 1]),
            Err(WireError::Oversized { .. })
        ));
    }

    fn id() -> [u8; 16] {
        std::array::from_fn(|at| 0x20 + u8::try_from(at).unwrap())
    }

    const NONCE: [u8; 32] = [0x99; 32];
    const SERVICE: [u8; 32] = [0x66; 32];
    const REGISTER_BYTES: &str = "a30101024973746174656d656e7403584044444444444444444444444444444444444444444444444444\
        444444444444444444444444444444444444444444444444444444444444444444444444444444";
    const HELLO_BYTES: &str =
        "a201020258206666666666666666666666666666666666666666666666666666666666666666";
    const HELLO_TOKEN_BYTES: &str = "a40102025820666666666666666666666666666666666666666666666666666666666666666603480001\
        0203040506070458209534d3ba69e30c1f04137094b1d3637abc1ac5d48abb7dfb7106723b53c74839";
    const SIGNED_BYTES: &str = "67617465776179642f312072656c61790099999999999999999999999999999999999999999999999999\
        99999999999999623e7560d6c010434e376aa7211075f477a1c81760e1f2a5886e61771d5f3b28666666\
        6666666666666666666666666666666666666666666666666666666666";
}
