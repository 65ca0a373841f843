//! The async handle: what the rest of the gateway sees of the TPM.

use std::sync::Arc;
use std::time::Duration;

use wire::tpm::{PcrSelection, PolicyAuthority, SignedPolicy};
use zeroize::Zeroizing;

use crate::config::HsmConfig;
use crate::endorsement::{Endorsement, EndorsementKind};
use crate::error::HsmError;
use crate::examination::Examination;
use crate::health::Health;
use crate::owner::Owner;
use crate::queue::Rank;
use crate::quote::QuoteEvidence;
use crate::signer::IdentitySigner;

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
    owner: Arc<Owner>,
    timeout: Duration,
}

impl Hsm {
    /// Starts the thread. The TPM is opened by the first call that needs it.
    #[must_use]
    pub fn start(config: HsmConfig) -> Self {
        Self {
            timeout: config.timeout,
            owner: Arc::new(Owner::start(config)),
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
            .run(Rank::Rest, limit, move |engine| engine.provision(force_new))
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
        self.owner
            .run(Rank::Rest, limit, |engine| engine.load())
            .await
    }

    /// Signs a SHA-256 digest with the identity key: `r‖s`, 32 bytes each, low `s`.
    ///
    /// # Errors
    ///
    /// Any but [`HsmError::NotAPoint`].
    pub async fn sign(&self, digest: [u8; 32]) -> Result<[u8; 64], HsmError> {
        self.owner
            .run(Rank::Signature, self.timeout, move |engine| {
                engine.sign(&digest)
            })
            .await
    }

    /// The identity key of `public`, for libraries that sign without awaiting.
    #[must_use]
    pub fn signer(&self, public: &Public) -> IdentitySigner {
        IdentitySigner::new(self.clone(), public.identity)
    }

    /// As [`sign`](Self::sign); blocks its thread.
    pub(crate) fn sign_blocking(&self, digest: [u8; 32]) -> Result<[u8; 64], HsmError> {
        self.owner
            .run_blocking(Rank::Signature, self.timeout, move |engine| {
                engine.sign(&digest)
            })
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
            .run(Rank::Handshake, self.timeout, move |engine| {
                engine.agree(&peer)
            })
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
            .run(Rank::Rest, limit, move |engine| {
                engine.certify(key, &qualifying)
            })
            .await
    }

    /// Has the attestation key state the present values of the PCRs `pcrs` (SHA-256 bank), over
    /// `qualifying`, which carries the verifier's nonce and binds the session.
    ///
    /// # Errors
    ///
    /// [`HsmError::Busy`] if the PCRs changed five times meanwhile; any other but
    /// [`HsmError::NotAPoint`].
    pub async fn quote(
        &self,
        pcrs: PcrSelection,
        qualifying: [u8; 32],
    ) -> Result<QuoteEvidence, HsmError> {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        self.owner
            .run(Rank::Rest, limit, move |engine| {
                engine.quote(pcrs, &qualifying)
            })
            .await
    }

    /// Makes the endorsement key of this kind and reads its certificates; without a kind, the one
    /// that the vendor certified, and P-256 where there is no certificate.
    ///
    /// An RSA key takes real chips seconds.
    ///
    /// # Errors
    ///
    /// [`HsmError::NotProvisioned`]; any other but [`HsmError::NotAPoint`].
    pub async fn endorsement(
        &self,
        kind: Option<EndorsementKind>,
    ) -> Result<Endorsement, HsmError> {
        let limit = self.timeout.saturating_mul(ENDORSEMENT_FACTOR);
        self.owner
            .run(Rank::Rest, limit, move |engine| engine.endorsement(kind))
            .await
    }

    /// Opens a credential that was made for the endorsement key of this kind and the attestation
    /// key's Name.
    ///
    /// `credential` is the content of the `TPM2B_ID_OBJECT` and `secret` of the
    /// `TPM2B_ENCRYPTED_SECRET`, each without its leading size.
    ///
    /// # Errors
    ///
    /// [`HsmError::Refused`] if it was made for other keys; any other but [`HsmError::NotAPoint`].
    pub async fn activate(
        &self,
        kind: EndorsementKind,
        credential: Vec<u8>,
        secret: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let limit = self.timeout.saturating_mul(ENDORSEMENT_FACTOR);
        self.owner
            .run(Rank::Rest, limit, move |engine| {
                engine.activate(kind, &credential, &secret)
            })
            .await
    }

    /// The value of monotonic counter `number`; makes the counter if there is none yet.
    ///
    /// A counter starts where the TPM wants, above every counter that was ever removed from it.
    ///
    /// # Errors
    ///
    /// [`HsmError::ForeignIndex`] if its place is taken; any other but [`HsmError::NotAPoint`].
    pub async fn counter(&self, number: u8) -> Result<u64, HsmError> {
        self.owner
            .run(Rank::Rest, self.timeout, move |engine| {
                engine.counter(number)
            })
            .await
    }

    /// Adds one to counter `number`, and returns the value it then has.
    ///
    /// An increment whose answer got lost is not repeated before the counter was read.
    ///
    /// # Errors
    ///
    /// As [`counter`](Self::counter). The increment may have taken place all the same, and after
    /// [`HsmError::Timeout`] it may yet: read the counter before anything else.
    pub async fn increment(&self, number: u8) -> Result<u64, HsmError> {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        let mut before = None;
        self.owner
            .run(Rank::Rest, limit, move |engine| {
                engine.increment(number, &mut before)
            })
            .await
    }

    /// Seals a secret, at most 128 bytes, so that only this TPM opens it, and only in a state that
    /// `authority` has signed. Returns a TSS2 PEM file.
    ///
    /// Who sealed it nobody can tell later, and whoever is on the bus can play a signed boot to the
    /// TPM: what the secret opens must be authenticated by itself.
    ///
    /// # Errors
    ///
    /// [`HsmError::Sealed`] if it is too long; any other but [`HsmError::NotAPoint`].
    pub async fn seal(
        &self,
        secret: Zeroizing<Vec<u8>>,
        authority: PolicyAuthority,
    ) -> Result<String, HsmError> {
        self.owner
            .run(Rank::Rest, self.timeout, move |engine| {
                engine.seal(&secret, &authority)
            })
            .await
    }

    /// Opens what [`seal`](Self::seal) returned, by the first of `policies` that the machine is in
    /// the state of. PCRs that change meanwhile cost another try, five at most for each policy.
    ///
    /// # Errors
    ///
    /// [`HsmError::Sealed`] says why it stays shut; any other but [`HsmError::NotAPoint`].
    pub async fn unseal(
        &self,
        sealed: &str,
        authority: PolicyAuthority,
        policies: Vec<SignedPolicy>,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        let sealed = sealed.to_owned();
        self.owner
            .run(Rank::Rest, limit, move |engine| {
                engine.unseal(&sealed, &authority, &policies)
            })
            .await
    }

    /// Asks the TPM how it is. Never fails: what stands in the way is the answer.
    pub async fn health(&self) -> Health {
        let asked = self
            .owner
            .run(Rank::Rest, self.timeout, |engine| engine.examine())
            .await;
        Health::new(asked, self.owner.counters())
    }

    /// Looks at the TPM from all sides, and tries both keys. Never fails: what stands in the way is
    /// the answer. Takes a second on real chips.
    pub async fn examination(&self) -> Examination {
        let limit = self.timeout.saturating_mul(LOAD_FACTOR);
        let looked = self
            .owner
            .run(Rank::Rest, limit, |engine| Ok(engine.look()))
            .await;
        let (findings, health) = match looked {
            Ok((findings, asked)) => (findings, asked),
            Err(error) => (crate::examination::Findings::default(), Err(error)),
        };
        Examination {
            health: Health::new(health, self.owner.counters()),
            findings,
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
    /// The vendor's name for the TPM, like `Infineon SLB9670`.
    pub vendor: String,
}

/// Provisioning makes four keys and the endorsement key, and slow chips take 0.3 s for each, next
/// to about 30 further commands.
const PROVISION_FACTOR: u32 = 6;

/// Loading, certifying and activating need three keys and two sessions where signing needs one.
const LOAD_FACTOR: u32 = 3;

/// Making an RSA key takes chips 2 to 7 s.
const ENDORSEMENT_FACTOR: u32 = 4;
