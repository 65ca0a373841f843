//! Who may read it: the session between gateway and service, and the seal around batches.
//!
//! Formats and rules are those of `docs/protocol.md`: section 1 (keys and statements), 2 (session)
//! and 3 (seal). Everything here is sans-IO: bytes, `now` and randomness are handed in; bytes,
//! events and errors come out.
//!
//! - Keys: [`PublicKey`], [`Fingerprint`], and the two traits behind which a private key may live
//!   in a TPM, [`StaticKey`] and [`SigningKey`].
//! - [`Statement`]: which keys a pinned service uses today.
//! - The live channel, both sides: [`Session`].
//! - The seal, gateway: [`Epoch::open`], [`Epoch::seal`], [`UnsignedHeader::finish`].
//! - The seal, service: [`Header::verify`], [`EpochOpener::open`].

mod batch;
mod cbor;
mod cipher;
mod cose;
mod epoch;
mod kem;
mod keys;
mod noise;
mod open;
mod ratchet;
mod record;
mod seal;
mod session;
mod stack;
mod statement;

pub use batch::{BATCH_PLAINTEXT_BYTES_MAX, BATCHES_MAX, BatchFormatError, SealedBatch};
pub use epoch::{EpochClock, EpochId, EpochTerms, HeaderSigner, Previous, TermsError};
pub use keys::{
    Fingerprint, FingerprintFormatError, KeyError, KeyFormatError, KeyFuture, KeyKind, PublicKey,
    RecordKey, RecordPublicKey, SharedSecret, SignatureError, SigningKey, SoftwareSigningKey,
    SoftwareStaticKey, StaticKey, normalise, verify,
};
pub use open::{EpochOpener, Header, OpenError};
pub use seal::{Epoch, SealError, UnsignedHeader};
pub use session::{
    Admission, ConfigMistake, Event, InitiatorConfig, Purpose, ResponderConfig, Session,
    SessionError, Suite, TRANSMIT_BYTES_MAX, VERSION_BYTES_MAX,
};
pub use statement::{OnlineKey, Statement, StatementContent, StatementError};

#[cfg(test)]
#[path = "../tests/fixture/mod.rs"]
mod fixture;
