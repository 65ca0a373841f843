//! What the TPM says about itself.

use std::time::Duration;

use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::structures::CapabilityData;

use crate::connection::Connection;
use crate::error::HsmError;
use crate::health::Examined;
use crate::response::Operation;

impl Connection {
    /// Asks for vendor and lockout. The answers are not authenticated: for people only.
    pub(crate) fn examine(&mut self) -> Result<Examined, HsmError> {
        Ok(Examined {
            vendor: self.vendor()?,
            lockout_count: self.property(PropertyTag::LockoutCounter)?.unwrap_or(0),
            lockout_max: self.property(PropertyTag::MaxAuthFail)?.unwrap_or(0),
            locked_out: self.property(PropertyTag::Permanent)?.unwrap_or(0) & IN_LOCKOUT != 0,
        })
    }

    /// The vendor's name and its name for the chip.
    pub(crate) fn vendor(&mut self) -> Result<String, HsmError> {
        let manufacturer = self.characters(PropertyTag::Manufacturer)?;
        let mut model = String::new();
        for part in [
            PropertyTag::VendorString1,
            PropertyTag::VendorString2,
            PropertyTag::VendorString3,
            PropertyTag::VendorString4,
        ] {
            model.push_str(&self.characters(part)?);
        }
        let words = model.split_whitespace();
        Ok([VENDORS
            .iter()
            .find(|(id, _)| *id == manufacturer.trim())
            .map_or(manufacturer.trim(), |(_, name)| name)]
        .into_iter()
        .chain(words)
        .collect::<Vec<_>>()
        .join(" "))
    }

    /// How long until the TPM forgives one failed authorization.
    pub(crate) fn lockout_interval(&mut self) -> Result<Duration, HsmError> {
        let seconds = self.property(PropertyTag::LockoutInterval)?.unwrap_or(0);
        Ok(Duration::from_secs(seconds.into()))
    }

    /// One property, straight from the TPM; `None` if it has no such property.
    pub(crate) fn property(&mut self, tag: PropertyTag) -> Result<Option<u32>, HsmError> {
        let (found, _) = self.in_the_open(Operation::Open, |context| {
            context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
        })?;
        let CapabilityData::TpmProperties(list) = found else {
            return Err(HsmError::Tampered);
        };
        Ok(list.find(tag).map(|property| property.value()))
    }

    /// A property that is four characters, filled up with zeros or spaces.
    fn characters(&mut self, tag: PropertyTag) -> Result<String, HsmError> {
        let bytes = self.property(tag)?.unwrap_or(0).to_be_bytes();
        Ok(bytes
            .into_iter()
            .filter(|byte| byte.is_ascii_graphic() || *byte == b' ')
            .map(char::from)
            .collect())
    }
}

/// `TPMA_PERMANENT.inLockout` (TPM 2.0 Part 2, 8.6).
pub(crate) const IN_LOCKOUT: u32 = 1 << 9;

/// TCG TPM Vendor ID Registry, those found on gateways and in clouds.
const VENDORS: [(&str, &str); 12] = [
    ("AMD", "AMD"),
    ("ATML", "Atmel"),
    ("GOOG", "Google"),
    ("HISI", "Huawei"),
    ("IBM", "IBM"),
    ("IFX", "Infineon"),
    ("INTC", "Intel"),
    ("MSFT", "Microsoft"),
    ("NSG", "NSING"),
    ("NTC", "Nuvoton"),
    ("QCOM", "Qualcomm"),
    ("STM", "STMicroelectronics"),
];
