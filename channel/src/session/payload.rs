//! What the handshake messages and the records of type 1 and 6 carry, in deterministic CBOR
//! (protocol.md 2.1).

use std::fmt;

use minicbor::Decoder;

use crate::cbor::{self, Malformed};
use crate::kem::KEM_KEY_BYTES;

/// Message 1: `{1: ek, 2: serial}`.
pub(super) struct Greeting {
    pub(super) kem_key: [u8; KEM_KEY_BYTES],
    /// Of the statement that the gateway holds; 0 if none.
    pub(super) serial: u64,
}

impl Greeting {
    pub(super) fn encode(&self) -> Vec<u8> {
        cbor::encode(|encoder| {
            encoder.map(2)?;
            encoder.u8(1)?.bytes(&self.kem_key)?;
            encoder.u8(2)?.u64(self.serial)?.ok()
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        cbor::map(&mut decoder, 2)?;
        cbor::key(&mut decoder, 1)?;
        let kem_key = cbor::bytes(&mut decoder)?;
        cbor::key(&mut decoder, 2)?;
        let serial = decoder.u64()?;
        let greeting = Self { kem_key, serial };
        cbor::check(bytes, &greeting.encode())?;
        Ok(greeting)
    }
}

/// Message 2: `{? 1: statement}`.
pub(super) struct Reply<'a> {
    pub(super) statement: Option<&'a [u8]>,
}

impl<'a> Reply<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        cbor::encode(|encoder| match self.statement {
            Some(statement) => encoder.map(1)?.u8(1)?.bytes(statement)?.ok(),
            None => encoder.map(0)?.ok(),
        })
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let statement = match decoder.map()? {
            Some(0) => None,
            Some(1) => {
                cbor::key(&mut decoder, 1)?;
                Some(decoder.bytes()?)
            }
            Some(_) | None => return Err(Malformed),
        };
        let reply = Self { statement };
        cbor::check(bytes, &reply.encode())?;
        Ok(reply)
    }
}

/// Message 3: `{1: purpose, 2: version}`.
pub(super) struct Introduction {
    pub(super) purpose: Purpose,
    pub(super) version: String,
}

impl Introduction {
    pub(super) fn encode(&self) -> Vec<u8> {
        cbor::encode(|encoder| {
            encoder.map(2)?;
            encoder.u8(1)?.u8(self.purpose as u8)?;
            encoder.u8(2)?.str(&self.version)?.ok()
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        cbor::map(&mut decoder, 2)?;
        cbor::key(&mut decoder, 1)?;
        let purpose = Purpose::from_code(decoder.u64()?).ok_or(Malformed)?;
        cbor::key(&mut decoder, 2)?;
        let version = decoder.str()?;
        cbor::demand(version.len() <= VERSION_BYTES_MAX)?;
        let introduction = Self {
            purpose,
            version: version.to_owned(),
        };
        cbor::check(bytes, &introduction.encode())?;
        Ok(introduction)
    }
}

/// What a gateway wants of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Deliver readings and take commands. Its key must be registered.
    Deliver = 1,
    /// Register its key.
    Enrol = 2,
}

impl Purpose {
    fn from_code(code: u64) -> Option<Self> {
        [Self::Deliver, Self::Enrol]
            .into_iter()
            .find(|purpose| *purpose as u64 == code)
    }
}

/// Whether a gateway is let in, and why a session is closed (protocol.md 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Let in; as the reason of a close: done.
    Ok = 0,
    /// No gateway with this channel key is registered.
    UnknownGateway = 1,
    /// The gateway is suspended for now.
    Suspended = 2,
    /// The gateway is revoked.
    Revoked = 3,
    /// The gateway has newer keys than these.
    Retired = 4,
    /// Too much to do: try again later.
    Busy = 5,
    /// This version of the software or protocol is not served.
    Version = 6,
    /// The session ends for a reason of its own, a restart or a key's limit: connect anew.
    GoingAway = 7,
    /// The other side broke the protocol.
    ProtocolError = 8,
    /// The gateway has to attest its state first.
    AttestationRequired = 9,
}

impl Admission {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::UnknownGateway,
        Self::Suspended,
        Self::Revoked,
        Self::Retired,
        Self::Busy,
        Self::Version,
        Self::GoingAway,
        Self::ProtocolError,
        Self::AttestationRequired,
    ];

    /// The body of a record of type 1 or 6: `{1: code}`.
    pub(super) fn encode(self) -> Vec<u8> {
        cbor::encode(|encoder| encoder.map(1)?.u8(1)?.u8(self as u8)?.ok())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        cbor::map(&mut decoder, 1)?;
        cbor::key(&mut decoder, 1)?;
        let code = decoder.u64()?;
        let admission = Self::ALL
            .into_iter()
            .find(|admission| *admission as u64 == code)
            .ok_or(Malformed)?;
        cbor::check(bytes, &admission.encode())?;
        Ok(admission)
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::UnknownGateway => "unknown gateway",
            Self::Suspended => "suspended",
            Self::Revoked => "revoked",
            Self::Retired => "retired",
            Self::Busy => "busy",
            Self::Version => "version not served",
            Self::GoingAway => "going away",
            Self::ProtocolError => "protocol error",
            Self::AttestationRequired => "attestation required",
        })
    }
}

/// The longest software version in message 3, in bytes of UTF-8 (protocol.md 2.1).
pub const VERSION_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_64_bytes_at_most() {
        let introduction = |bytes| Introduction {
            purpose: Purpose::Deliver,
            version: "v".repeat(bytes),
        };
        let longest = Introduction::decode(&introduction(VERSION_BYTES_MAX).encode());
        assert_eq!(longest.ok().unwrap().version.len(), 64);
        let longer = Introduction::decode(&introduction(VERSION_BYTES_MAX + 1).encode());
        assert_eq!(longer.err(), Some(Malformed));
    }

    #[test]
    fn codes_are_those_of_the_protocol() {
        for (code, admission) in (0_u8..).zip(Admission::ALL) {
            assert_eq!(admission.encode(), [0xa1, 0x01, code]);
            assert_eq!(Admission::decode(&[0xa1, 0x01, code]), Ok(admission));
        }
        assert_eq!(Admission::decode(&[0xa1, 0x01, 10]), Err(Malformed));
    }
}
