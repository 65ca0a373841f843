//! What the thread does: the gateway's operations, each made of a few TPM commands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use p256::ecdsa::Signature as EcdsaSignature;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use tss_esapi::structures::{EccParameter, EccPoint, Public as TpmtPublic, Signature};
use tss_esapi::traits::Marshall;
use zeroize::Zeroizing;

use crate::config::Tpm;
use crate::connection::Connection;
use crate::error::HsmError;
use crate::files::{self, Keyring};
use crate::handle::{CertifyKey, Public};
use crate::health::Examined;
use crate::owner::{Office, Shared};
use crate::queue::Rank;
use crate::response::{During, Operation};
use crate::templates::{Key, Name, left_padded, point_of};

/// The thread's state: a connection and the keys, each there once it was needed.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    office: Office,
    connection: Option<Connection>,
    keys: Option<Arc<Keyring>>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, office: Office) -> Self {
        Self {
            shared,
            office,
            connection: None,
            keys: None,
        }
    }

    /// Does `work`, and again after a wait if the TPM asks for one, until `give_up`.
    ///
    /// A reset under way costs one repetition too: all operations may be repeated. After any
    /// failure the connection is thrown away, with whatever session and keys it left in the TPM.
    pub(crate) fn attempt<T>(
        &mut self,
        (rank, give_up): (Rank, Instant),
        work: &mut impl FnMut(&mut Self) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        let started = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut repeated = false;
        let result = loop {
            let mut result = work(self);
            let Err(error) = &mut result else {
                break result;
            };
            self.after_failure(error);
            if self.office.is_left() {
                break result;
            } else if self.is_worth_repeating(error) && !repeated {
                repeated = true;
            } else if matches!(error, HsmError::Busy) && Instant::now() + pause < give_up {
                let (shared, office) = (Arc::clone(&self.shared), self.office.clone());
                shared.pause(rank, pause, (&office, self));
                pause = (pause * 2).min(PAUSE_MAX);
            } else {
                break result;
            }
        };
        self.shared
            .counters
            .add_operation(result.is_err(), started.elapsed());
        result
    }

    /// Whether a fresh connection may do better at once.
    ///
    /// Linux's resource manager tells of a reset, and of handles that are gone with it, by an error of
    /// the device and not by a code of the TPM's (`drivers/char/tpm/tpm2-space.c`).
    fn is_worth_repeating(&self, error: &HsmError) -> bool {
        let is_device = matches!(self.tpm(), Tpm::Device(_));
        matches!(error, HsmError::TpmReset) || (is_device && matches!(error, HsmError::Transport))
    }

    /// Ends the present burst of work.
    pub(crate) fn rest(&mut self) {
        if let Some(connection) = &mut self.connection
            && let Err(mut error) = connection.rest()
        {
            self.after_failure(&mut error);
        }
    }

    pub(crate) fn provision(&mut self, force_new: bool) -> Result<Public, HsmError> {
        let held = if force_new {
            None
        } else {
            files::read(&self.shared.config.keys)?
        };
        let keys = match held {
            Some(keys) => keys,
            None => self.make_keys()?,
        };
        self.public(keys)
    }

    pub(crate) fn load(&mut self) -> Result<Public, HsmError> {
        let keys = self.read_keys()?;
        self.public(keys)
    }

    pub(crate) fn sign(&mut self, digest: &[u8; 32]) -> Result<[u8; 64], HsmError> {
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let key = connection.load(&keys, Key::Identity)?;
        let Signature::EcDsa(signature) = connection.sign(key, digest)? else {
            return Err(HsmError::Tampered);
        };
        let r = left_padded(signature.signature_r().value()).ok_or(HsmError::Tampered)?;
        let s = left_padded(signature.signature_s().value()).ok_or(HsmError::Tampered)?;
        let signature = EcdsaSignature::from_scalars(*r, *s).map_err(|_| HsmError::Tampered)?;
        Ok(signature.normalize_s().to_bytes().into())
    }

    pub(crate) fn agree(
        &mut self,
        peer: &p256::PublicKey,
    ) -> Result<Zeroizing<[u8; 32]>, HsmError> {
        let peer = peer.to_sec1_point(false);
        let (Some(x), Some(y)) = (peer.x(), peer.y()) else {
            return Err(HsmError::NotAPoint);
        };
        let peer = EccPoint::new(
            EccParameter::try_from(x.as_slice()).during(Operation::Agree)?,
            EccParameter::try_from(y.as_slice()).during(Operation::Agree)?,
        );
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let key = connection.load(&keys, Key::Channel)?;
        let shared = connection.agree(key, peer)?;
        left_padded(shared.x().value()).ok_or(HsmError::Tampered)
    }

    pub(crate) fn certify(
        &mut self,
        key: CertifyKey,
        qualifying: &[u8; 32],
    ) -> Result<(Vec<u8>, Vec<u8>), HsmError> {
        let key = match key {
            CertifyKey::Identity => Key::Identity,
            CertifyKey::Channel => Key::Channel,
        };
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let certified = connection.load(&keys, key)?;
        let attestation = connection.load_beside(&keys, Key::Attestation)?;
        let (attest, signature) = connection.certify(certified, attestation, qualifying)?;
        connection.flush(attestation)?;
        Ok((
            attest.marshall().during(Operation::Certify)?,
            signature.marshall().during(Operation::Certify)?,
        ))
    }

    /// Asks the TPM how it is, and whether it is still the one that made the keys.
    pub(crate) fn examine(&mut self) -> Result<Examined, HsmError> {
        let keys = match self.keys() {
            Ok(keys) => Some(keys),
            Err(HsmError::NotProvisioned { .. }) => None,
            Err(error) => return Err(error),
        };
        let connection = match &keys {
            Some(keys) => self.ready(keys)?,
            None => self.connected()?,
        };
        connection.examine()
    }

    /// Makes new keys and writes them.
    fn make_keys(&mut self) -> Result<Keyring, HsmError> {
        self.keys = None;
        // A storage root key that was pinned before may be another TPM's.
        self.connection = None;
        let parent = self.trust_parent(None)?;
        let connection = self.connected()?;
        let keys = Keyring {
            parent,
            endorsement: Some(connection.endorsement_name()?),
            identity: connection.create(Key::Identity)?,
            channel: connection.create(Key::Channel)?,
            attestation: connection.create(Key::Attestation)?,
        };
        let folder = &self.shared.config.keys;
        self.shared
            .while_in_office(&self.office, || files::write(folder, &keys))?;
        tracing::info!(folder = %folder.display(), "new keys made in the TPM");
        Ok(keys)
    }

    /// Loads every key once, and collects what the world may know of them.
    fn public(&mut self, keys: Keyring) -> Result<Public, HsmError> {
        let connection = self.ready(&keys)?;
        for key in Key::ALL {
            connection.load(&keys, key)?;
        }
        let public = Public {
            identity: point_of(&keys.identity.public).ok_or(HsmError::KeyNotOfThisTpm)?,
            channel: point_of(&keys.channel.public).ok_or(HsmError::KeyNotOfThisTpm)?,
            identity_public: area(&keys.identity.public)?,
            channel_public: area(&keys.channel.public)?,
            attestation_public: area(&keys.attestation.public)?,
            vendor: connection.vendor()?,
        };
        self.keys = Some(Arc::new(keys));
        Ok(public)
    }

    pub(crate) fn keys(&mut self) -> Result<Arc<Keyring>, HsmError> {
        if let Some(keys) = &self.keys {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(self.read_keys()?);
        self.keys = Some(Arc::clone(&keys));
        Ok(keys)
    }

    fn read_keys(&self) -> Result<Keyring, HsmError> {
        let folder = &self.shared.config.keys;
        files::read(folder)?.ok_or_else(|| HsmError::NotProvisioned {
            keys: folder.clone(),
        })
    }

    /// A connection that trusts the storage root key of `keys`.
    pub(crate) fn ready(&mut self, keys: &Keyring) -> Result<&mut Connection, HsmError> {
        self.trust_parent(Some(keys.parent))?;
        self.connected()
    }

    /// Sees to it that the storage root key is there and trusted; returns its Name.
    fn trust_parent(&mut self, mut pin: Option<Name>) -> Result<Name, HsmError> {
        let connection = self.connected()?;
        if !connection.has_parent() && !connection.parent_exists()? {
            pin = Some(connection.make_parent(pin)?);
            self.connection = None;
        }
        self.connected()?.trust_parent(pin)
    }

    pub(crate) fn connected(&mut self) -> Result<&mut Connection, HsmError> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            empty => Ok(empty.insert(Connection::open(
                &self.shared.config.tpm,
                self.office.clone(),
            )?)),
        }
    }

    /// Lets go of the TPM.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// The right to talk with the TPM.
    pub(crate) fn office(&self) -> &Office {
        &self.office
    }

    /// Where the TPM is.
    pub(crate) fn tpm(&self) -> &Tpm {
        &self.shared.config.tpm
    }

    pub(crate) fn after_failure(&mut self, error: &mut HsmError) {
        if let HsmError::Lockout { wait } = error
            && let Some(connection) = &mut self.connection
            && let Ok(interval) = connection.lockout_interval()
        {
            *wait = interval;
        }
        self.shared.counters.add_incident(error);
        self.abandon_connection();
    }

    /// Counts a failure that is an answer to its caller, so that nobody else counts it.
    pub(crate) fn count_failure(&self) {
        self.shared.counters.add_failure();
    }

    /// Throws away a connection on which something failed.
    pub(crate) fn abandon_connection(&mut self) {
        if self.connection.take().is_some() {
            self.shared.counters.add_reconnect();
        }
    }
}

pub(crate) fn area(public: &TpmtPublic) -> Result<Vec<u8>, HsmError> {
    public.marshall().during(Operation::Open)
}

/// Between tries while the TPM asks to wait. The library itself retries five times at once.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Self-tests and NV writes take chips some tenths of a second.
const PAUSE_MAX: Duration = Duration::from_millis(200);
