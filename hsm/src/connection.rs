//! One connection to the TPM: the context of the TPM software stack, the storage root key it
//! trusts, and the session and key of the present burst of work.
//!
//! Nothing here cleans up after a failure: whoever gets an error drops the connection, and that
//! flushes what it can. The next connection sweeps out the rest.

use std::fs::OpenOptions;
use std::io;
use std::net::TcpStream;

use tss_esapi::Context;
use tss_esapi::constants::tss::{
    TPM2_LOADED_SESSION_FIRST, TPM2_RH_NULL, TPM2_ST_HASHCHECK, TPM2_TRANSIENT_FIRST,
};
use tss_esapi::constants::{CapabilityType, SessionType, StartupType};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, CapabilityData, CreationData, Data, Digest, EccPoint, HashcheckTicket, Private,
    Public as TpmtPublic, SensitiveData, Signature, SignatureScheme,
};
use tss_esapi::tss2_esys::{TPMS_CREATION_DATA, TPMT_TK_HASHCHECK};

use crate::config::Tpm;
use crate::error::HsmError;
use crate::files::{Keyring, StoredKey};
use crate::owner::Office;
use crate::response::{During, INTEGRITY, Operation};
use crate::templates::{Key, Name, check_parent, parent_template};

pub(crate) struct Connection {
    context: Context,
    /// The right to use it.
    office: Office,
    /// The storage root key, once its Name is found right.
    parent: Option<(KeyHandle, Name)>,
    /// Salted to the parent, for the present burst.
    pub(crate) session: Option<AuthSession>,
    /// The key that the burst used last.
    pub(crate) loaded: Option<(Key, KeyHandle)>,
}

impl Connection {
    /// Opens the TPM, starts it up if nobody did, and sweeps out what an earlier connection left.
    pub(crate) fn open(tpm: &Tpm, office: Office) -> Result<Self, HsmError> {
        let mut connection = Self {
            context: connect(tpm)?,
            office,
            parent: None,
            session: None,
            loaded: None,
        };
        match connection.property(tss_esapi::constants::PropertyTag::Manufacturer) {
            // After a reset without a firmware or kernel to start it up.
            Err(HsmError::TpmReset) => connection
                .context()?
                .startup(StartupType::Clear)
                .during(Operation::Open)?,
            answer => drop(answer?),
        }
        connection.sweep()?;
        Ok(connection)
    }

    /// The context, as long as this thread may talk with the TPM.
    pub(crate) fn context(&mut self) -> Result<&mut Context, HsmError> {
        if self.office.is_left() {
            return Err(HsmError::Busy);
        }
        Ok(&mut self.context)
    }

    pub(crate) fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Whether any key rests where the storage root key belongs.
    pub(crate) fn parent_exists(&mut self) -> Result<bool, HsmError> {
        let handles = self.handles(PARENT, 1)?;
        Ok(handles.iter().any(|handle| u32::from(*handle) == PARENT))
    }

    /// Makes the storage root key and makes it persistent, if it comes out as `pin`.
    ///
    /// The same TPM makes the same key each time, until it is cleared. The caller opens a new
    /// connection afterwards: before 3.2.3 the library does not let go of the transient key's data.
    pub(crate) fn make_parent(&mut self, pin: Option<Name>) -> Result<Name, HsmError> {
        let template = parent_template().during(Operation::Parent)?;
        // There is no key yet to salt a session to, and the empty password is no secret. Whoever
        // answers in the TPM's place is found out by the pin, where there is one.
        let made = self.with_empty_password(Operation::Parent, |context| {
            context.create_primary(Hierarchy::Owner, template, None, None, None, None)
        })?;
        let name = Name::of(&made.out_public)?;
        if pin.is_some_and(|pin| pin != name) {
            return Err(HsmError::KeyNotOfThisTpm);
        }

        let session =
            self.salted_to(made.key_handle, SessionType::Hmac, HashingAlgorithm::Sha256)?;
        let handle = PersistentTpmHandle::new(PARENT).during(Operation::Parent)?;
        self.context()?
            .execute_with_session(Some(session), |context| {
                context.evict_control(
                    Provision::Owner,
                    made.key_handle.into(),
                    Persistent::Persistent(handle),
                )
            })
            .during(Operation::Parent)?;
        self.end(session)?;
        self.flush(made.key_handle)?;
        Ok(name)
    }

    /// Takes the persistent storage root key as the one to salt sessions to.
    ///
    /// With a pin its Name must be that. Without, it must be fit to be pinned.
    pub(crate) fn trust_parent(&mut self, pin: Option<Name>) -> Result<Name, HsmError> {
        let handle = match self.parent {
            Some((handle, _)) => handle,
            None => self.parent_handle()?,
        };
        // The library computes this Name from the very public area that it will encrypt the salt
        // to; a Name that came with an answer would prove nothing.
        let salted_to = self
            .context()?
            .tr_get_name(handle.into())
            .during(Operation::Parent)?;
        let name = match pin {
            Some(pin) if pin.is(&salted_to) => pin,
            Some(_) => return Err(HsmError::KeyNotOfThisTpm),
            None => {
                let (public, _, _) = self
                    .context()?
                    .read_public(handle)
                    .during(Operation::Parent)?;
                check_parent(&public).map_err(HsmError::ParentUnfit)?;
                let name = Name::of(&public)?;
                if !name.is(&salted_to) {
                    return Err(HsmError::Tampered);
                }
                name
            }
        };
        self.parent = Some((handle, name));
        Ok(name)
    }

    /// Makes a key under the storage root key; it is not loaded.
    pub(crate) fn create(&mut self, key: Key) -> Result<StoredKey, HsmError> {
        let parent = self.parent()?;
        let template = key.template().during(Operation::Create)?;
        let made = self.in_session(Operation::Create, |context| {
            context.create(parent, template, None, None, None, None)
        })?;
        self.check_made_under_parent(made.creation_data)?;
        Ok(StoredKey {
            public: made.out_public,
            private: made.out_private,
        })
    }

    /// Seals data under the storage root key.
    pub(crate) fn create_sealed(
        &mut self,
        template: TpmtPublic,
        secret: SensitiveData,
    ) -> Result<(TpmtPublic, Private), HsmError> {
        let parent = self.parent()?;
        let made = self.in_session(Operation::Seal, |context| {
            context.create(parent, template, None, Some(secret), None, None)
        })?;
        self.check_made_under_parent(made.creation_data)?;
        Ok((made.out_public, made.out_private))
    }

    /// The library authorizes by the Name that came with the parent's public area; whoever is on the
    /// bus could lead us to another parent. Under which one the TPM made an object its authenticated
    /// answer says.
    fn check_made_under_parent(&self, made: CreationData) -> Result<(), HsmError> {
        let (_, trusted) = self.parent.ok_or(HsmError::KeyNotOfThisTpm)?;
        let parent = TPMS_CREATION_DATA::from(made).parentName;
        if parent.name.get(..parent.size.into()) == Some(trusted.as_bytes().as_slice()) {
            Ok(())
        } else {
            Err(HsmError::Tampered)
        }
    }

    /// Loads a key, unless the burst has it loaded already, in place of the one before.
    pub(crate) fn load(&mut self, keys: &Keyring, key: Key) -> Result<KeyHandle, HsmError> {
        if let Some((loaded, handle)) = self.loaded {
            if loaded == key {
                return Ok(handle);
            }
            self.loaded = None;
            self.flush(handle)?;
        }
        let handle = self.load_beside(keys, key)?;
        self.loaded = Some((key, handle));
        Ok(handle)
    }

    /// Loads a key next to the burst's; the caller flushes it.
    pub(crate) fn load_beside(&mut self, keys: &Keyring, key: Key) -> Result<KeyHandle, HsmError> {
        let parent = self.parent()?;
        let stored = keys.key(key);
        let (private, public) = (stored.private.clone(), stored.public.clone());
        // The library compares the loaded key's Name with that of `public`.
        let loaded = self.in_session(Operation::Load, |context| {
            context.load(parent, private, public)
        });
        loaded.map_err(|error| {
            if error.is_refusal(INTEGRITY) {
                HsmError::KeyDamaged { file: key.file() }
            } else {
                error
            }
        })
    }

    pub(crate) fn sign(
        &mut self,
        key: KeyHandle,
        digest: &[u8; 32],
    ) -> Result<Signature, HsmError> {
        let digest = Digest::try_from(digest.as_slice()).during(Operation::Sign)?;
        // The key is not restricted, so the TPM need not have made the digest itself.
        let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: tss_esapi::tss2_esys::TPM2B_DIGEST::default(),
        })
        .during(Operation::Sign)?;
        self.in_session(Operation::Sign, |context| {
            context.sign(key, digest, SignatureScheme::Null, ticket)
        })
    }

    pub(crate) fn agree(&mut self, key: KeyHandle, peer: EccPoint) -> Result<EccPoint, HsmError> {
        self.in_session(Operation::Agree, |context| context.ecdh_z_gen(key, peer))
    }

    pub(crate) fn certify(
        &mut self,
        key: KeyHandle,
        attestation: KeyHandle,
        qualifying: &[u8; 32],
    ) -> Result<(Attest, Signature), HsmError> {
        let qualifying = Data::try_from(qualifying.as_slice()).during(Operation::Certify)?;
        let second = self.salted(SessionType::Hmac, HashingAlgorithm::Sha256)?;
        let certified = self.in_session_and(Operation::Certify, second, |context| {
            context.certify(key.into(), attestation, qualifying, SignatureScheme::Null)
        })?;
        self.end(second)?;
        Ok(certified)
    }

    /// Name of the key that rests where the storage root key belongs, as the TPM says it.
    pub(crate) fn found_parent(&mut self) -> Result<Option<Name>, HsmError> {
        if !self.parent_exists()? {
            return Ok(None);
        }
        let handle = match self.parent {
            Some((handle, _)) => handle,
            None => self.parent_handle()?,
        };
        let (public, _, _) = self
            .context()?
            .read_public(handle)
            .during(Operation::Parent)?;
        Name::of(&public).map(Some)
    }

    /// Public area of the storage root key that is trusted.
    pub(crate) fn trusted_parent(&mut self) -> Result<TpmtPublic, HsmError> {
        let (handle, trusted) = self.parent.ok_or(HsmError::KeyNotOfThisTpm)?;
        let (public, _, _) = self
            .context()?
            .read_public(handle)
            .during(Operation::Parent)?;
        if Name::of(&public)? != trusted {
            return Err(HsmError::Tampered);
        }
        Ok(public)
    }

    /// Handles in use, `count_max` at most, from `first` on.
    pub(crate) fn handles(
        &mut self,
        first: u32,
        count_max: u32,
    ) -> Result<Vec<TpmHandle>, HsmError> {
        let (found, _) = self.in_the_open(Operation::Open, |context| {
            context.get_capability(CapabilityType::Handles, first, count_max)
        })?;
        let CapabilityData::Handles(handles) = found else {
            return Err(HsmError::Tampered);
        };
        Ok(handles.into_inner())
    }

    /// Asks the TPM for the persistent storage root key. Once for each connection: before 3.2.3 the
    /// library does not count how often it was asked.
    fn parent_handle(&mut self) -> Result<KeyHandle, HsmError> {
        let handle = PersistentTpmHandle::new(PARENT).during(Operation::Parent)?;
        let object = self
            .context()?
            .tr_from_tpm_public(TpmHandle::Persistent(handle))
            .during(Operation::Parent)?;
        Ok(object.into())
    }

    pub(crate) fn parent(&self) -> Result<KeyHandle, HsmError> {
        let (handle, _) = self.parent.ok_or(HsmError::KeyNotOfThisTpm)?;
        Ok(handle)
    }

    /// Flushes sessions and keys that a broken connection could not.
    ///
    /// Behind the kernel's resource manager a new connection sees no keys of others, and can flush no
    /// session of theirs. Without one nobody else is at work: `/dev/tpm0` opens once, and a software TPM is ours alone.
    fn sweep(&mut self) -> Result<(), HsmError> {
        for first in [TPM2_LOADED_SESSION_FIRST, TPM2_TRANSIENT_FIRST] {
            for handle in self.handles(first, SWEPT_MAX)? {
                if u32::from(handle) >> 24 != first >> 24
                    && !matches!(handle, TpmHandle::PolicySession(_))
                {
                    continue;
                }
                // Not ours to judge: what cannot be flushed may be in use.
                let context = self.context()?;
                let left = context.tr_from_tpm_public(handle);
                let _ = left.and_then(|left| context.flush_context(left));
            }
        }
        Ok(())
    }
}

impl Drop for Connection {
    /// The library flushes what is open when its context goes. A thread that was replaced must not:
    /// without a resource manager the handles may be its successor's by now.
    fn drop(&mut self) {
        if !self.office.is_left() {
            return;
        }
        let session = self.session.take().map(SessionHandle::from);
        let key = self.loaded.take().map(|(_, handle)| handle);
        let left = [session.map(ObjectHandle::from), key.map(ObjectHandle::from)];
        for mut handle in left.into_iter().flatten() {
            let _ = self.context.tr_close(&mut handle);
        }
    }
}

/// Opens the device or socket. What is wrong with it is asked of the system, which tells better
/// than the library.
fn connect(tpm: &Tpm) -> Result<Context, HsmError> {
    let absent = || HsmError::NoDevice { tpm: tpm.clone() };
    if let Tpm::Device(path) = tpm
        && let Err(error) = OpenOptions::new().read(true).write(true).open(path)
    {
        let kind = error.kind();
        return Err(if kind == io::ErrorKind::PermissionDenied {
            HsmError::Denied { tpm: tpm.clone() }
        } else if kind == io::ErrorKind::ResourceBusy {
            HsmError::Held { tpm: tpm.clone() }
        } else {
            absent()
        });
    }
    let name_conf = tpm.name_conf().ok_or_else(absent)?;
    Context::new(name_conf).map_err(|_| match tpm {
        Tpm::Device(_) => HsmError::Transport,
        Tpm::Swtpm { host, port } => match TcpStream::connect((host.as_str(), *port)) {
            Ok(_) => HsmError::Transport,
            Err(_) => absent(),
        },
    })
}

/// Where the TCG puts the storage root key (Registry of Reserved TPM 2.0 Handles, table 3).
pub(crate) const PARENT: u32 = 0x8100_0001;

/// More than any TPM without a resource manager holds.
const SWEPT_MAX: u32 = 16;
