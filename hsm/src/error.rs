//! What can go wrong with a TPM, and what a person does about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Tpm;
use crate::response::{Operation, Refusal};

/// Why the TPM or its keys could not be used.
///
/// Grouped by who must act. [`advice`](Self::advice) says what to do. After any of them the next
/// call starts on a fresh connection, so a caller may simply try again later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// The kernel found no TPM, or the software TPM does not run.
    #[error("there is no TPM at {tpm}")]
    NoDevice {
        /// Where one was looked for.
        tpm: Tpm,
    },

    /// This process has no permission for the device.
    #[error("this program has no permission to use {tpm}")]
    Denied {
        /// The device.
        tpm: Tpm,
    },

    /// Another process has the device open, and it serves one at a time.
    #[error("another program holds {tpm}")]
    Held {
        /// The device.
        tpm: Tpm,
    },

    /// No keys were made yet.
    #[error("the gateway has no keys yet in {}", keys.display())]
    NotProvisioned {
        /// The folder that would have them.
        keys: PathBuf,
    },

    /// The keys on disk belong to another TPM, or this one was cleared.
    ///
    /// Somebody who exchanges the storage root key on the bus looks the same, and is stopped here.
    #[error("this TPM did not make the gateway's keys: it was replaced or cleared")]
    KeyNotOfThisTpm,

    /// The persistent storage root key is not one our keys may have as their parent.
    #[error("the TPM's storage root key cannot be used: {0}")]
    ParentUnfit(ParentFault),

    /// Somebody set a password where the gateway needs none.
    #[error("the TPM asks for its owner's password to {0}")]
    OwnerPassword(Operation),

    /// Other users of the TPM gave wrong passwords too often.
    #[error("the TPM is locked out; it forgives one failure every {} s", wait.as_secs())]
    Lockout {
        /// How long until one more attempt is allowed.
        wait: Duration,
    },

    /// The TPM stopped itself after a failed self-test.
    #[error("the TPM has stopped itself after a failed self-test")]
    Broken,

    /// An answer did not authenticate, or a command was altered on its way.
    #[error("what travels between processor and TPM was altered")]
    Tampered,

    /// The TPM restarted, or somebody took out what we had put in, twice in a row.
    #[error("the TPM was reset")]
    TpmReset,

    /// The TPM has other work, or too many calls wait for it already.
    #[error("the TPM is busy")]
    Busy,

    /// There was no answer in time. The operation may still take place.
    #[error("the TPM did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// How long was waited.
        after: Duration,
    },

    /// Commands or answers did not get through.
    #[error("the connection to the TPM broke")]
    Transport,

    /// The peer's key is not a point of the curve; nothing was sent to the TPM.
    #[error("the peer's public key is not a point of P-256")]
    NotAPoint,

    /// The TPM understood and refused.
    #[error("the TPM refused to {operation}: {refusal}")]
    Refused {
        /// What it was asked for.
        operation: Operation,
        /// Its reason.
        refusal: Refusal,
    },

    /// The storage root key is the right one, and a key file does not load under it.
    #[error("the key file {file} is damaged, or another TPM's")]
    KeyDamaged {
        /// The file's name.
        file: &'static str,
    },

    /// The firmware has the TPM keep no measurements with SHA-256.
    #[error("the TPM keeps no measurements with SHA-256 in these PCRs")]
    NoPcrBank,

    /// Something else is where one of our counters belongs.
    #[error("the TPM's NV index {index:#010x} is taken by something that is not our counter")]
    ForeignIndex {
        /// Its handle.
        index: u32,
    },

    /// A sealed secret stays shut.
    #[error("the sealed secret stays shut: {0}")]
    Sealed(SealFault),

    /// A key file cannot be read or written.
    #[error("cannot use the key file {}", path.display())]
    KeyFile {
        /// The file, or the folder of all.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },

    /// The kernel gives no random numbers.
    #[error("the kernel gives no random numbers")]
    NoRandomness,

    /// The thread that owns the TPM has ended: a bug of ours.
    #[error("the thread that serves the TPM has ended")]
    Stopped,
}

impl HsmError {
    /// What to do about it, for people.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NoDevice {
                tpm: Tpm::Device(_),
            } => {
                "enable the TPM in the firmware or the device tree (on a Raspberry Pi add \
                 \"dtoverlay=tpm-slb9670\" to /boot/firmware/config.txt) and reboot"
            }
            Self::NoDevice {
                tpm: Tpm::Swtpm { .. },
            } => "start swtpm on that port, with its control channel one port above",
            Self::Denied { .. } => "adduser gatewayd tss; then restart gatewayd",
            Self::Held { .. } => "use /dev/tpmrm0, which many programs share, or end the other one",
            Self::NotProvisioned { .. } => "gatewayctl init",
            Self::KeyNotOfThisTpm => {
                "put the old TPM back, or make a new identity: gatewayctl init --force-new, and \
                 enrol again; if nobody touched the TPM, suspect tampering"
            }
            Self::ParentUnfit(_) => {
                "if nothing else on this machine uses it, remove it: \
                 tpm2_evictcontrol -C o -c 0x81000001; then gatewayctl init"
            }
            Self::OwnerPassword(_) => {
                "remove the password: tpm2_changeauth -c owner -p OLD and \
                 tpm2_changeauth -c endorsement -p OLD"
            }
            Self::Lockout { .. } => {
                "wait; the gateway's keys never count: look for other users of the TPM"
            }
            Self::Broken => "switch the board off and on; if it stays, replace the TPM",
            Self::Tampered => "check the TPM's wiring; if it is sound, suspect tampering",
            Self::TpmReset => {
                "try again; if it happens often, check the TPM's power and reset line"
            }
            Self::Busy => "try again in a moment",
            Self::Timeout { .. } | Self::Transport => {
                "try again; if it stays, read dmesg and check the TPM's wiring"
            }
            Self::NotAPoint => "the peer is broken or hostile: ask its operator",
            Self::Refused { .. } => {
                "gatewayctl check tpm; if it stays, report what gatewayctl check tpm --json prints"
            }
            Self::KeyDamaged { .. } => KeyFileError::OtherKey.advice(),
            Self::NoPcrBank => {
                "switch the SHA-256 bank on in the firmware, or tpm2_pcrallocate sha256:all"
            }
            Self::ForeignIndex { .. } => {
                "find out which program uses it; if none does: tpm2_nvundefine -C o INDEX"
            }
            Self::Sealed(fault) => fault.advice(),
            Self::KeyFile { source, .. } => source.advice(),
            Self::NoRandomness => "try again once the machine has booted",
            Self::Stopped => {
                "systemctl restart gatewayd; and report what journalctl -u gatewayd has"
            }
        }
    }
}

/// Why a sealed secret stays shut.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SealFault {
    /// No signed policy fits what the machine booted.
    #[error("no signed policy allows the present boot state (PCRs)")]
    State,
    /// The policy is of an earlier generation than the counter.
    #[error("its signed policy has been withdrawn")]
    Withdrawn,
    /// It was sealed for another authority.
    #[error("it was sealed for another authority")]
    OtherAuthority,
    /// The counter that limits the policy is not in this TPM.
    #[error("the counter that its policy ends with is not in this TPM")]
    NoCounter,
    /// The authority's key is no point of P-256.
    #[error("the authority's public key is not a point of P-256")]
    NotAKey,
    /// The secret is longer than what a TPM seals.
    #[error("it would be longer than the 128 bytes that a TPM seals")]
    TooLong,
    /// What is sealed is damaged or from another TPM.
    #[error("it is damaged, or from another TPM")]
    Damaged,
}

impl SealFault {
    fn advice(self) -> &'static str {
        match self {
            Self::State => {
                "boot software that a policy was signed for, or get a policy signed for this one"
            }
            Self::Withdrawn => "get a policy of the present generation signed",
            Self::OtherAuthority => "name the authority, key and word, that it was sealed for",
            Self::NoCounter => "get a policy signed for a counter of this gateway",
            Self::NotAKey => "check the authority's public key",
            Self::TooLong => "seal a key, and encrypt the rest with it",
            Self::Damaged => "seal the secret anew",
        }
    }
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file system refused.
    #[error("the file system refused")]
    Io(#[source] io::Error),

    /// `manifest.json` is not what this program writes.
    #[error("it is not a manifest of this program's")]
    Manifest(#[source] serde_json::Error),

    /// `manifest.json` is of a later version.
    #[error(
        "its version is {version}, this program knows {}",
        crate::files::VERSION
    )]
    Version {
        /// The version it states.
        version: u32,
    },

    /// A key file is not a TSS2 PEM file under our parent.
    #[error("it is not a TSS2 key under the storage root key")]
    NotAKey,

    /// The key is sound, but not the one the manifest names.
    #[error("it holds another key than the manifest names")]
    OtherKey,
}

impl KeyFileError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Io(_) => "check the disk and the owner of the folder (gatewayd, mode 0700)",
            Self::Manifest(_) | Self::NotAKey | Self::OtherKey => {
                "restore the folder from a backup, or make a new identity: \
                 gatewayctl init --force-new, and enrol again"
            }
            Self::Version { .. } => "install the newer gatewayd that wrote it",
        }
    }
}

/// Why a storage root key cannot be the parent of our keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParentFault {
    /// Not ECC P-256 with SHA-256 and AES-128-CFB.
    #[error("it is not an ECC P-256 key with AES-128")]
    Algorithm,
    /// Not restricted, not for decryption, or also for signing.
    #[error("it is not restricted to storage")]
    NotStorage,
    /// May leave its TPM.
    #[error("it is not fixed to this TPM")]
    NotFixed,
    /// Counts towards dictionary-attack lockout, so power cuts would lock it.
    #[error("it is subject to lockout, so power cuts would make it unusable")]
    Lockable,
    /// Needs a password or policy.
    #[error("it cannot be used with an empty password")]
    Locked,
}
