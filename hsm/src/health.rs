//! How the TPM is, in short: what status screens and metrics show.

use std::fmt;
use std::time::Duration;

use crate::counters::Counters;
use crate::error::HsmError;

/// How the TPM is, and what happened since [`Hsm::start`](crate::Hsm::start).
#[derive(Debug)]
#[non_exhaustive]
pub struct Health {
    /// One word.
    pub state: TpmState,
    /// The vendor's name for the TPM; empty if the TPM could not be asked.
    pub vendor: String,
    /// Failed authorizations the TPM remembers. The gateway's keys never add to it.
    pub lockout_count: u32,
    /// How many of them lock the TPM.
    pub lockout_max: u32,
    /// Operations that were tried.
    pub operations: u64,
    /// Operations that failed, for whatever reason.
    pub failures: u64,
    /// Answers or commands that were altered on the bus. An altered answer that looks like a refusal
    /// of the TPM's cannot be told from one, and counts as a failure.
    pub tampered: u64,
    /// Restarts of the TPM under way.
    pub resets: u64,
    /// Connections that were thrown away, after an error or because they hung.
    pub reconnects: u64,
    /// How long the last successful operation took in the TPM and on the way there.
    pub latency: Option<Duration>,
    /// Why the state is not [`TpmState::Ok`], with advice.
    pub problem: Option<HsmError>,
}

/// The TPM's state in one word.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TpmState {
    /// It answers, and if there are keys they are its own.
    Ok,
    /// It does not answer in time, or asks to wait.
    Busy,
    /// It refuses keys that are subject to lockout. The gateway's still work.
    LockedOut,
    /// It is not there, or its answers cannot be used.
    Absent,
    /// This process may not use it.
    Denied,
    /// It is not the TPM that made the keys.
    Replaced,
}

impl Health {
    pub(crate) fn new(asked: Result<Examined, HsmError>, counters: &Counters) -> Self {
        let (examined, problem) = match asked {
            Ok(examined) => (examined, None),
            Err(error) => (Examined::default(), Some(error)),
        };
        Self {
            state: TpmState::of(&examined, problem.as_ref()),
            vendor: examined.vendor,
            lockout_count: examined.lockout_count,
            lockout_max: examined.lockout_max,
            operations: counters.operations(),
            failures: counters.failures(),
            tampered: counters.tampered(),
            resets: counters.resets(),
            reconnects: counters.reconnects(),
            latency: counters.latency(),
            problem,
        }
    }
}

impl TpmState {
    fn of(examined: &Examined, problem: Option<&HsmError>) -> Self {
        match problem {
            None if examined.locked_out => Self::LockedOut,
            // No keys is no fault of the TPM's, and neither is a damaged file.
            None
            | Some(
                HsmError::NotProvisioned { .. }
                | HsmError::KeyFile { .. }
                | HsmError::KeyDamaged { .. },
            ) => Self::Ok,
            Some(HsmError::Lockout { .. }) => Self::LockedOut,
            Some(HsmError::Busy | HsmError::Timeout { .. }) => Self::Busy,
            Some(HsmError::Denied { .. } | HsmError::Held { .. } | HsmError::OwnerPassword(_)) => {
                Self::Denied
            }
            Some(HsmError::KeyNotOfThisTpm) => Self::Replaced,
            Some(
                HsmError::NoDevice { .. }
                | HsmError::ParentUnfit(_)
                | HsmError::Broken
                | HsmError::Tampered
                | HsmError::TpmReset
                | HsmError::Transport
                | HsmError::NotAPoint
                | HsmError::Refused { .. }
                | HsmError::ForeignIndex { .. }
                | HsmError::NoPcrBank
                | HsmError::Sealed(_)
                | HsmError::NoRandomness
                | HsmError::Stopped,
            ) => Self::Absent,
        }
    }
}

impl fmt::Display for TpmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Busy => "busy",
            Self::LockedOut => "locked_out",
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::Replaced => "replaced",
        })
    }
}

/// What the TPM says about itself.
#[derive(Default)]
pub(crate) struct Examined {
    pub(crate) vendor: String,
    pub(crate) lockout_count: u32,
    pub(crate) lockout_max: u32,
    pub(crate) locked_out: bool,
}
