//! The async handle: what the rest of the gateway sees of the TPM.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::owner::Owner;

/// A handle to the TPM and the gateway's three keys in it.
///
/// Cheap to clone; the connection lives on a thread of its own, which ends with the last handle.
/// No call blocks its caller. Each has a deadline (see [`HsmConfig::timeout`]); it needs tokio's
/// timer. Dropping a call's future leaves the operation to finish unheard, and loses nothing else.
///
/// # A TPM that hangs
///
/// A command to a TPM cannot be taken back. When one does not end in time its caller gets
/// [`HsmError::Timeout`], the thread is left behind to end when the command does, and a new thread
/// with a new connection serves the calls that wait. At most four threads are left behind; while
/// that many hang, calls time out.
#[derive(Clone)]
pub struct Hsm {
    owner: Owner,
    timeout: Duration,
}

impl Hsm {
    /// Starts the thread. The TPM is opened by the first call that needs it.
    #[must_use]
    pub fn start(config: HsmConfig) -> Self {
        Self {
            timeout: config.timeout,
            owner: Owner::start(config),
        }
    }

    /// Makes the storage root key and the three keys, unless they are there already.
    ///
    /// Idempotent: with keys on disk it only loads and checks them. `force_new` makes new keys and
    /// forgets the old ones, which is what a replaced TPM needs; the gateway must enrol again.
    ///
    /// # Errors
    ///
    /// Any but [`HsmError::NotProvisioned`] and [`HsmError::NotAPoint`].
    pub async fn provision(&self, force_new: bool) -> Result<Public, HsmError> {
        let limit = self.timeout.saturating_mul(PROVISION_FACTOR);
        self.owner
            .run(limit, move |engine| engine.provision(force_new))
            .await
    }

    /// Reads the key files anew and loads each key into the TPM once, which proves that it is this
    /// TPM's.
    ///
    /// # Errors
    ///
    /// [`HsmError::NotProvisioned`] if there are no keys, [`HsmError::KeyNotOfThisTpm`] if they are
    /// another TPM's; any other but [`HsmError::NotAPoint`].
    pub async fn load(&self) -> Result<Public, HsmError> {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        self.owner.run(limit, |engine| engine.load()).await
    }

    /// Signs a SHA-256 digest with the identity key: `r‖s`, 32 bytes each, low `s`.
    ///
    /// # Errors
    ///
    /// Any but [`HsmError::NotAPoint`].
    pub async fn sign(&self, digest: [u8; 32]) -> Result<[u8; 64], HsmError> {
        self.owner
            .run(self.timeout, move |engine| engine.sign(&digest))
            .await
    }

    /// Agrees with `peer` (`04‖X‖Y`) on a secret: the X coordinate of the channel key times the
    /// peer's point, 32 bytes.
    ///
    /// # Errors
    ///
    /// [`HsmError::NotAPoint`] if `peer` is not a point of P-256; any other.
    pub async fn ecdh(&self, peer: [u8; 65]) -> Result<Zeroizing<[u8; 32]>, HsmError> {
        let peer = p256::PublicKey::from_sec1_bytes(&peer).map_err(|_| HsmError::NotAPoint)?;
        self.owner
            .run(self.timeout, move |engine| engine.agree(&peer))
            .await
    }

    /// Has the attestation key state that a key is in the same TPM: `TPMS_ATTEST` over
    /// `qualifying`, and the `TPMT_SIGNATURE` (ECDSA, SHA-256) of it.
    ///
    /// # Errors
    ///
    /// Any but [`HsmError::NotAPoint`].
    pub async fn certify(
        &self,
        key: CertifyKey,
        qualifying: [u8; 32],
    ) -> Result<(Vec<u8>, Vec<u8>), HsmError> {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        self.owner
            .run(limit, move |engine| engine.certify(key, &qualifying))
            .await
    }

    /// Opens a credential that was made for the endorsement key and the attestation key's Name.
    ///
    /// `credential` is the content of the `TPM2B_ID_OBJECT` and `secret` of the
    /// `TPM2B_ENCRYPTED_SECRET`, each without its leading size.
    ///
    /// # Errors
    ///
    /// [`HsmError::Refused`] if it was made for other keys; any other but [`HsmError::NotAPoint`].
    pub async fn activate(
        &self,
        credential: Vec<u8>,
        secret: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        self.owner
            .run(limit, move |engine| engine.activate(&credential, &secret))
            .await
    }

    /// Asks the TPM how it is. Never fails: what stands in the way is the answer.
    pub async fn health(&self) -> Health {
        let asked = self
            .owner
            .run(self.timeout, |engine| engine.examine())
            .await;
        let counters = self.owner.counters();
        let (examined, problem) = match asked {
            Ok(examined) => (examined, None),
            Err(error) => (Examined::default(), Some(error)),
        };
        Health {
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

/// Which key [`Hsm::certify`] is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CertifyKey {
    /// The key that signs.
    Identity,
    /// The key that agrees on secrets.
    Channel,
}

/// The public side of the gateway's keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Public {
    /// Identity key, `04‖X‖Y`.
    pub identity: [u8; 65],
    /// Channel key, `04‖X‖Y`.
    pub channel: [u8; 65],
    /// Identity key, `TPMT_PUBLIC`.
    pub identity_public: Vec<u8>,
    /// Channel key, `TPMT_PUBLIC`.
    pub channel_public: Vec<u8>,
    /// Attestation key, `TPMT_PUBLIC`.
    pub attestation_public: Vec<u8>,
    /// Endorsement key by the TCG's template L-2 (ECC P-256), `TPMT_PUBLIC`.
    pub endorsement_public: Vec<u8>,
    /// Certificates (DER) that the vendor left in the TPM: the endorsement key's, then those that
    /// lead to the vendor's root. Empty if there are none.
    pub ek_certificates: Vec<Vec<u8>>,
    /// The vendor's name for the TPM, like `Infineon SLB9670`.
    pub vendor: String,
}

/// How the TPM is, and what happened since [`Hsm::start`].
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
    /// Answers or commands that were altered on the bus.
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

impl TpmState {
    fn of(examined: &Examined, problem: Option<&HsmError>) -> Self {
        match problem {
            None if examined.locked_out => Self::LockedOut,
            // No keys is no fault of the TPM's, and neither is a damaged file.
            None | Some(HsmError::NotProvisioned { .. } | HsmError::KeyFile { .. }) => Self::Ok,
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

/// Provisioning makes four keys and the endorsement key, and slow chips take 0.3 s for each, next
/// to about 30 further commands.
const PROVISION_FACTOR: u32 = 6;

/// Loading, certifying and activating need three keys and two sessions where signing needs one.
const LOAD_FACTOR: u32 = 3;
