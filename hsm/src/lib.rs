//! The TPM 2.0: the gateway's keys, which never leave it.
//!
//! [`Hsm`] is an async handle; a thread of its own owns the connection to the TPM. Three keys live
//! under the TPM's storage root key: **identity** signs, **channel** agrees on secrets,
//! **attestation** vouches for the other two. All are made in the TPM and fixed to it. On disk are
//! only blobs that no other TPM loads (TSS2 PEM files, which OpenSSL's `tpm2` provider and
//! tpm2-tools read) and `manifest.json`, which pins the Names of the keys and of their parent.
//!
//! Beside them: evidence (certification, quotes, activation by the endorsement key), secrets sealed
//! for an authority that signs boot states, monotonic counters, and an [`Examination`] for people.
//!
//! # The bus is not trusted
//!
//! Between this process and the TPM chip run wires. Every command that carries a secret or makes
//! or uses a key runs in a session *salted* to the storage root key, with its parameters encrypted
//! and its response authenticated; and no session is started before that key's Name equals the
//! pinned one. (An unsalted session encrypts with a key that whoever watches the bus can compute.)
//! The pin is set when there is none, so at the first provisioning, and anew when the manifest is gone
//! or new keys are asked for: who controls the bus at that moment, controls the pin.
//!
//! What needs no session gets none: asking for capabilities, PCRs and public areas, which are checked
//! otherwise or are for people only; making the root key, before there is one to salt to; and the
//! steps of a policy, which in the end fits or does not.
//!
//! An answer that does not authenticate is [`HsmError::Tampered`]; the connection is then thrown
//! away and the next call makes a new one. [`Health`] counts both. A refusal is never authenticated:
//! whoever is on the bus can make any call fail.
//!
//! # Logs of the C library
//!
//! tpm2-tss writes its own log to standard error. Set `TSS2_LOG=all+none` in the environment of
//! the process (the service's unit does) to silence it: everything it says arrives here as an
//! [`HsmError`] too.

mod config;
mod connection;
mod counter;
mod counters;
mod direct;
mod endorsement;
mod engine;
mod error;
mod examination;
mod files;
mod handle;
mod health;
mod owner;
mod properties;
mod queue;
mod quote;
mod response;
mod sealing;
mod session;
mod signer;
#[cfg(feature = "swtpm")]
pub mod swtpm;
mod templates;
mod tss2_key;

pub use config::{HsmConfig, Tpm, TpmAddressError};
pub use endorsement::{Endorsement, EndorsementKind};
pub use error::{HsmError, KeyFileError, ParentFault, SealFault};
pub use examination::{About, Examination, Findings, Latency, PcrBank, TpmChange};
pub use handle::{CertifyKey, Hsm, Public};
pub use health::{Health, TpmState};
pub use quote::QuoteEvidence;
pub use response::{Operation, Refusal};
pub use signer::IdentitySigner;
