//! From the response codes of the TPM software stack to errors that say who must act.
//!
//! A code is a layer (bits 16 to 23) and a reason. Layer 0 is the TPM itself and layers 11 and 12
//! are a resource manager speaking for it (TPM 2.0 Part 2, 6.6); 7, 8 and 9 are the library's
//! parts that check and decode answers, 10 is the transport (`tss2_common.h`).

use std::fmt;
use std::time::Duration;

use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind as Kind};
use tss_esapi::{Error, WrapperErrorKind};

use crate::error::{HsmError, ParentFault};

/// What the TPM was asked to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// Open the connection and look at the TPM's state.
    Open,
    /// Make the storage root key persistent, or look at it.
    Parent,
    /// Start or end a session, or put away a key.
    Session,
    /// Make a key.
    Create,
    /// Load a key from its file.
    Load,
    /// Sign with the identity key.
    Sign,
    /// Agree on a secret with the channel key.
    Agree,
    /// Certify a key with the attestation key.
    Certify,
    /// Quote PCRs with the attestation key, or read them.
    Quote,
    /// Seal a secret.
    Seal,
    /// Open a sealed secret.
    Unseal,
    /// Make a monotonic counter.
    Define,
    /// Read or increment a monotonic counter.
    Counter,
    /// Make the endorsement key, or read its certificates.
    Endorsement,
    /// Open a credential.
    Activate,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "report its state",
            Self::Parent => "provide its storage root key",
            Self::Session => "start a session",
            Self::Create => "make a key",
            Self::Load => "load a key",
            Self::Sign => "sign",
            Self::Agree => "agree on a secret",
            Self::Certify => "certify a key",
            Self::Quote => "quote its PCRs",
            Self::Seal => "seal a secret",
            Self::Unseal => "open a sealed secret",
            Self::Define => "make a counter",
            Self::Counter => "count",
            Self::Endorsement => "show its endorsement",
            Self::Activate => "open a credential",
        })
    }
}

/// Why the TPM, or the library that speaks with it, refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal(Cause);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cause {
    Code(u32),
    Library(WrapperErrorKind),
}

impl HsmError {
    /// Whether the TPM refused for this reason.
    pub(crate) fn is_refusal(&self, reason: u32) -> bool {
        matches!(self, Self::Refused { refusal: Refusal(Cause::Code(code)), .. } if *code == reason)
    }
}

impl Refusal {
    /// The response code for a bug report, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self.0 {
            Cause::Code(code) => Some(code),
            Cause::Library(_) => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.0 {
            Cause::Library(kind) => return write!(f, "{kind}"),
            Cause::Code(code) => code,
        };
        match code >> 16 {
            0 | RESOURCE_MANAGER | RESOURCE_MANAGER_OF_LIBRARY => {
                let of_tpm = Tss2ResponseCode::from(code & 0xFFFF);
                match of_tpm.kind() {
                    Some(_) => write!(f, "{of_tpm}"),
                    None => f.write_str("its vendor's own reason"),
                }
            }
            _ => f.write_str("the TPM library could not carry it out"),
        }
    }
}

/// Turns the library's error into ours, given what was going on.
pub(crate) trait During<T> {
    /// Names the operation that failed.
    fn during(self, operation: Operation) -> Result<T, HsmError>;
}

impl<T> During<T> for tss_esapi::Result<T> {
    fn during(self, operation: Operation) -> Result<T, HsmError> {
        self.map_err(|error| judge(operation, error))
    }
}

/// Decides who must act.
fn judge(operation: Operation, error: Error) -> HsmError {
    let code = match error {
        // A value that decodes but cannot be: nobody but the bus puts those there.
        Error::WrapperError(WrapperErrorKind::WrongValueFromTpm) => return HsmError::Tampered,
        Error::WrapperError(kind) => {
            return HsmError::Refused {
                operation,
                refusal: Refusal(Cause::Library(kind)),
            };
        }
        Error::Tss2Error(code) => code,
    };
    of_number(operation, number(code))
}

/// Decides who must act, from a response code of whatever layer.
pub(crate) fn of_number(operation: Operation, number: u32) -> HsmError {
    match number >> 16 {
        0 | RESOURCE_MANAGER | RESOURCE_MANAGER_OF_LIBRARY if OF_TPM_MAX < number & 0xFFFF => {
            HsmError::Tampered
        }
        0 | RESOURCE_MANAGER | RESOURCE_MANAGER_OF_LIBRARY => {
            let kind = Tss2ResponseCode::from(number & 0xFFFF).kind();
            of_tpm(operation, kind).unwrap_or(HsmError::Refused {
                operation,
                refusal: Refusal(Cause::Code(number)),
            })
        }
        ESYS | SYS | MARSHALLING if ALTERED.contains(&(number & 0xFFFF)) => HsmError::Tampered,
        TRANSPORT => HsmError::Transport,
        ESYS..=MARSHALLING | LOADER => HsmError::Refused {
            operation,
            refusal: Refusal(Cause::Code(number)),
        },
        // The library passes on what it received, and no TPM speaks for another layer.
        _ => HsmError::Tampered,
    }
}

/// The TPM's own reasons that mean something particular here.
fn of_tpm(operation: Operation, kind: Option<Kind>) -> Option<HsmError> {
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the other 80 reasons are refusals and keep their words"
    )]
    match kind? {
        Kind::Initialize
        | Kind::Reboot
        | Kind::ReferenceH0
        | Kind::ReferenceH1
        | Kind::ReferenceS0
        | Kind::ReferenceS1 => Some(HsmError::TpmReset),
        Kind::Lockout => Some(HsmError::Lockout {
            wait: Duration::ZERO,
        }),
        Kind::Failure => Some(HsmError::Broken),
        Kind::Retry
        | Kind::Yielded
        | Kind::Testing
        | Kind::Canceled
        | Kind::NvRate
        | Kind::NvUnavailable
        | Kind::Memory
        | Kind::ObjectMemory
        | Kind::SessionMemory
        | Kind::ObjectHandles
        | Kind::SessionHandles
        | Kind::ContextGap => Some(HsmError::Busy),
        // A session, a key or the storage root key that was there a moment ago.
        Kind::Handle => Some(HsmError::TpmReset),
        Kind::Value if operation == Operation::Session => Some(HsmError::TpmReset),
        // Our own keys have empty passwords, so the HMAC can only fail if the command changed.
        Kind::AuthFail | Kind::BadAuth => Some(match operation {
            Operation::Parent | Operation::Endorsement | Operation::Define => {
                HsmError::OwnerPassword(operation)
            }
            Operation::Create => HsmError::ParentUnfit(ParentFault::Locked),
            _ => HsmError::Tampered,
        }),
        _ => None,
    }
}

/// The number of a response code, which the library shows only in words.
fn number(code: Tss2ResponseCode) -> u32 {
    let text = match code {
        Tss2ResponseCode::Success => return 0,
        Tss2ResponseCode::FormatZero(inner) => inner.to_string(),
        Tss2ResponseCode::FormatOne(inner) => inner.to_string(),
    };
    text.rsplit_once("0x")
        .and_then(|(_, digits)| u32::from_str_radix(digits, 16).ok())
        .unwrap_or(u32::MAX)
}

/// `TPM_RC_INTEGRITY` about the first parameter (TPM 2.0 Part 2, 6.6.3): what was to be loaded was not
/// encrypted to this parent, or is damaged.
pub(crate) const INTEGRITY: u32 = 0x1DF;

/// `TSS2_ESAPI_RC_LAYER`: checks answers.
const ESYS: u32 = 7;
/// `TSS2_SYS_RC_LAYER`: takes answers apart.
const SYS: u32 = 8;
/// `TSS2_MU_RC_LAYER`: decodes values.
const MARSHALLING: u32 = 9;
/// `TSS2_TCTI_RC_LAYER`: the transport.
const TRANSPORT: u32 = 10;
/// `TSS2_TCTILDR_RC_LAYER` and above: what finds the transport; the library's own.
const LOADER: u32 = 14;
/// What Linux's resource manager marks its own answers with (`TSS2_RESMGR_TPM_RC_LAYER` there).
const RESOURCE_MANAGER: u32 = 11;
/// `TSS2_RESMGR_TPM_RC_LAYER` of the library.
const RESOURCE_MANAGER_OF_LIBRARY: u32 = 12;

/// Reasons (`TSS2_BASE_RC_*`) that an answer as the TPM sent it never gives: general failure,
/// insufficient buffer, bad value, bad size, malformed response, insufficient context (it announces
/// more than any answer has), insufficient response, response authorization failed.
const ALTERED: [u32; 8] = [1, 6, 11, 16, 17, 18, 19, 27];

/// Codes of the TPM itself have twelve bits (TPM 2.0 Part 2, 6.6.2).
const OF_TPM_MAX: u32 = 0xFFF;

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(operation: Operation, number: u32) -> HsmError {
        judge(operation, Error::Tss2Error(number.into()))
    }

    #[test]
    fn the_number_of_any_code_is_found() {
        for expected in [0x100, 0x7_001B, 0xA_000A, 0x921, 0x1DF, 0x9A2, 0xB_0143] {
            assert_eq!(number(Tss2ResponseCode::from(expected)), expected);
        }
    }

    #[test]
    fn codes_from_the_field_mean_what_people_learnt_they_mean() {
        let sign = |number| judged(Operation::Sign, number);
        assert!(matches!(sign(0x7_001B), HsmError::Tampered));
        assert!(matches!(sign(0x9A2), HsmError::Tampered));
        // What flipped bits of the code or the size of an answer make of it.
        assert!(matches!(sign(0xFF_0000), HsmError::Tampered));
        assert!(matches!(sign(0xFF00_0000), HsmError::Tampered));
        assert!(matches!(sign(0xFF00), HsmError::Tampered));
        assert!(matches!(sign(0x8_0012), HsmError::Tampered));
        assert!(matches!(sign(0xA_000A), HsmError::Transport));
        assert!(matches!(sign(0x100), HsmError::TpmReset));
        assert!(matches!(sign(0x918), HsmError::TpmReset));
        assert!(matches!(sign(0x921), HsmError::Lockout { .. }));
        assert!(matches!(sign(0x101), HsmError::Broken));
        assert!(matches!(sign(0x903), HsmError::Busy));
        assert!(matches!(
            judged(Operation::Session, 0x1CB),
            HsmError::TpmReset
        ));
        assert!(judged(Operation::Load, 0x1DF).is_refusal(INTEGRITY));
        assert!(matches!(
            judged(Operation::Parent, 0x9A2),
            HsmError::OwnerPassword(Operation::Parent)
        ));
    }

    #[test]
    fn a_refusal_is_told_in_words_without_a_bare_code() {
        for number in [0x1C4, 0xB_0143, 0x5FF, 0x7_0018, 0x8_0002, 0xE_0001] {
            let text = judged(Operation::Sign, number).to_string();
            assert!(text.starts_with("the TPM refused to sign: "), "{text}");
            assert!(!text.contains("0x"), "{text}");
            assert!(!text.contains("not recognized"), "{text}");
        }
    }
}
