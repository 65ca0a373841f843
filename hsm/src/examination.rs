//! A look at the TPM from all sides, for people: `gatewayctl check tpm`.

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::CapabilityData;

use crate::config::Tpm;
use crate::connection::Connection;
use crate::engine::Engine;
use crate::error::HsmError;
use crate::files::Keyring;
use crate::health::{Examined, Health};
use crate::response::{During, Operation};
use crate::templates::{Key, Name, check_parent, parent_template, point_of};

/// What [`Hsm::examination`](crate::Hsm::examination) found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Examination {
    /// State, problem and counters.
    pub health: Health,
    /// All else.
    pub findings: Findings,
}

/// What was found before something stood in the way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Findings {
    /// What the TPM says about itself; `None` if it could not be asked.
    pub about: Option<About>,
    /// Name of the storage root key that the gateway's keys were made under, in hexadecimal: the
    /// pin. `None` without keys.
    pub pinned_root: Option<String>,
    /// Name of the storage root key that the TPM has now; `None` if it has none, or was not asked.
    pub found_root: Option<String>,
    /// Why these two differ, if they do.
    pub change: Option<TpmChange>,
    /// Name of the TPM's null root key: a new one after each restart of the TPM. `None` without keys.
    pub null_root: Option<String>,
    /// The same as Linux found it when it started (6.10 and later, with `CONFIG_TCG_TPM2_HMAC`). If
    /// the two differ the TPM was restarted behind the kernel's back, or another one answers now.
    pub kernel_null_root: Option<String>,
    /// Whether neither the gateway's keys nor their parent count towards lockout, so that power cuts
    /// cannot lock them. `None` without keys.
    pub exempt_from_lockout: Option<bool>,
    /// How long the keys took; `None` if one did not work.
    pub latency: Option<Latency>,
}

/// What a TPM says about itself. Nothing authenticates it: for people only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct About {
    /// The vendor's name for the TPM, like `Infineon SLB9670`.
    pub vendor: String,
    /// Version of its firmware, as vendors print it: `7.85.4555.0`.
    pub firmware: String,
    /// Failed authorizations it remembers.
    pub lockout_count: u32,
    /// How many of them lock it.
    pub lockout_max: u32,
    /// Whether it is locked now, for keys that are not exempt.
    pub locked_out: bool,
    /// After so long it forgives one failure.
    pub lockout_interval: Duration,
    /// After so long it may be unlocked with the lockout password again.
    pub lockout_recovery: Duration,
    /// Whether somebody set the password of the owner or the endorsement hierarchy, which the
    /// gateway needs empty.
    pub has_password: bool,
    /// Where it keeps measurements.
    pub banks: Vec<PcrBank>,
}

/// The PCRs of one hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PcrBank {
    /// The hash, like `sha256`.
    pub hash: String,
    /// How many registers it has; 24 where all are in use.
    pub registers: usize,
}

/// What happened to a TPM that does not know the gateway's keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TpmChange {
    /// It is the same chip, and its owner's keys were cleared.
    Cleared,
    /// It is another chip.
    Replaced,
    /// The keys are from a version that did not note which chip made them.
    Unknown,
}

/// How long keys took, session and loading included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Latency {
    /// One key agreement, as in a handshake.
    pub agree: Duration,
    /// One signature, as for an epoch's header.
    pub sign: Duration,
}

impl Engine {
    /// Looks at everything, as far as it gets.
    pub(crate) fn look(&mut self) -> (Findings, Result<Examined, HsmError>) {
        let (mut findings, mut examined) = self.look_once();
        if matches!(examined, Err(HsmError::TpmReset)) {
            (findings, examined) = self.look_once();
        }
        if matches!(examined, Err(HsmError::KeyNotOfThisTpm)) {
            findings.change = Some(self.change());
        }
        (findings, examined)
    }

    fn look_once(&mut self) -> (Findings, Result<Examined, HsmError>) {
        let mut findings = Findings::default();
        let mut examined = self.look_at(&mut findings);
        if let Err(error) = &mut examined {
            self.after_failure(error);
            self.count_failure();
        }
        (findings, examined)
    }

    fn look_at(&mut self, findings: &mut Findings) -> Result<Examined, HsmError> {
        let keys = self.keys();
        if let Ok(keys) = &keys {
            findings.pinned_root = Some(keys.parent.to_string());
        }
        let connection = self.connected()?;
        let about = connection.about()?;
        let examined = Examined {
            vendor: about.vendor.clone(),
            lockout_count: about.lockout_count,
            lockout_max: about.lockout_max,
            locked_out: about.locked_out,
        };
        findings.about = Some(about);
        findings.found_root = connection.found_parent()?.map(|name| name.to_string());
        let keys = match keys {
            Ok(keys) => keys,
            Err(HsmError::NotProvisioned { .. }) => {
                if findings.found_root.is_some() {
                    // Better known before keys are to be made under it.
                    connection.trust_parent(None)?;
                }
                return Ok(examined);
            }
            Err(error) => return Err(error),
        };
        self.ready(&keys)?;
        findings.null_root = Some(self.connected()?.null_root()?.to_string());
        findings.kernel_null_root = kernel_null_root(self.tpm());
        findings.exempt_from_lockout = Some(self.is_exempt(&keys)?);
        findings.latency = Some(self.measure(&keys)?);
        Ok(examined)
    }

    fn is_exempt(&mut self, keys: &Keyring) -> Result<bool, HsmError> {
        let parent = self.connected()?.trusted_parent()?;
        Ok(check_parent(&parent).is_ok()
            && Key::ALL
                .iter()
                .all(|key| keys.key(*key).public.object_attributes().no_da()))
    }

    /// Uses each key once, and checks what comes out.
    fn measure(&mut self, keys: &Keyring) -> Result<Latency, HsmError> {
        self.connected()?.rest()?;
        // With the base point as peer the agreed secret is the X of our own public key: no secret.
        let base = p256::PublicKey::from_affine(p256::AffinePoint::GENERATOR)
            .map_err(|_| HsmError::NotAPoint)?;
        let started = Instant::now();
        let agreed = self.agree(&base)?;
        let agree = started.elapsed();
        let own = point_of(&keys.channel.public).ok_or(HsmError::Tampered)?;
        if own.get(1..33) != Some(agreed.as_slice()) {
            return Err(HsmError::Tampered);
        }
        self.connected()?.rest()?;
        let started = Instant::now();
        // Of no use to anybody: nothing else that is signed starts with these words.
        self.sign(&Sha256::digest(b"gatewayd/1 latency\0").into())?;
        Ok(Latency {
            agree,
            sign: started.elapsed(),
        })
    }

    /// Finds out whether the TPM was cleared or replaced.
    fn change(&mut self) -> TpmChange {
        let Ok(keys) = self.keys() else {
            return TpmChange::Unknown;
        };
        let Some(made_by) = keys.endorsement else {
            return TpmChange::Unknown;
        };
        let found = self
            .connected()
            .and_then(Connection::endorsement_name_in_the_open);
        match found {
            Ok(found) if found == made_by => TpmChange::Cleared,
            Ok(_) => TpmChange::Replaced,
            Err(mut error) => {
                self.after_failure(&mut error);
                TpmChange::Unknown
            }
        }
    }
}

/// What Linux noted about the TPM behind `/dev/tpmN` or `/dev/tpmrmN`.
fn kernel_null_root(tpm: &Tpm) -> Option<String> {
    let Tpm::Device(path) = tpm else {
        return None;
    };
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix("tpmrm").or(name.strip_prefix("tpm"))?;
    let number: u32 = number.parse().ok()?;
    let noted = std::fs::read_to_string(format!("/sys/class/tpm/tpm{number}/null_name")).ok()?;
    Some(noted.trim().to_lowercase())
}

impl Connection {
    /// Makes the null root key as Linux makes it (`drivers/char/tpm/tpm2-sessions.c`): by the template
    /// of our storage root key.
    fn null_root(&mut self) -> Result<Name, HsmError> {
        self.rest()?;
        let template = parent_template().during(Operation::Open)?;
        let made = self.in_session(Operation::Open, |context| {
            context.create_primary(Hierarchy::Null, template, None, None, None, None)
        })?;
        self.flush(made.key_handle)?;
        Name::of(&made.out_public)
    }

    fn about(&mut self) -> Result<About, HsmError> {
        let mut number = |tag| Ok::<_, HsmError>(self.property(tag)?.unwrap_or(0));
        let [major, minor] = [
            number(PropertyTag::FirmwareVersion1)?,
            number(PropertyTag::FirmwareVersion2)?,
        ];
        let permanent = number(PropertyTag::Permanent)?;
        let interval = number(PropertyTag::LockoutInterval)?;
        let recovery = number(PropertyTag::LockoutRecovery)?;
        let (lockout_count, lockout_max) = (
            number(PropertyTag::LockoutCounter)?,
            number(PropertyTag::MaxAuthFail)?,
        );
        Ok(About {
            vendor: self.vendor()?,
            firmware: format!(
                "{}.{}.{}.{}",
                major >> 16,
                major & 0xFFFF,
                minor >> 16,
                minor & 0xFFFF
            ),
            lockout_count,
            lockout_max,
            locked_out: permanent & crate::properties::IN_LOCKOUT != 0,
            lockout_interval: Duration::from_secs(interval.into()),
            lockout_recovery: Duration::from_secs(recovery.into()),
            has_password: permanent & PASSWORD_SET != 0,
            banks: self.banks()?,
        })
    }

    fn banks(&mut self) -> Result<Vec<PcrBank>, HsmError> {
        let (found, _) = self.in_the_open(Operation::Open, |context| {
            context.get_capability(CapabilityType::AssignedPcr, 0, BANKS_MAX)
        })?;
        let CapabilityData::AssignedPcr(list) = found else {
            return Err(HsmError::Tampered);
        };
        Ok(list
            .get_selections()
            .iter()
            .map(|bank| PcrBank {
                hash: format!("{:?}", bank.hashing_algorithm()).to_lowercase(),
                registers: bank.selected().len(),
            })
            .filter(|bank| 0 < bank.registers)
            .collect())
    }
}

/// `TPMA_PERMANENT.ownerAuthSet` and `.endorsementAuthSet` (TPM 2.0 Part 2, 8.6).
const PASSWORD_SET: u32 = 0b11;

/// More hashes than a TPM has.
const BANKS_MAX: u32 = 16;
