//! Where the TPM and the key files are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tss_esapi::tcti_ldr::{DeviceConfig, NetworkTPMConfig, TctiNameConf};

/// What an [`Hsm`](crate::Hsm) needs to know.
#[derive(Clone, Debug)]
pub struct HsmConfig {
    /// The TPM to use.
    pub tpm: Tpm,
    /// Folder of the key files; made with mode 0700 when keys are first provisioned.
    pub keys: PathBuf,
    /// How long one operation may take, from the call to the answer.
    ///
    /// The slowest chips take 0.6 s for a key agreement with its session and key loading; 5 s leave
    /// room for a few waiting operations. Provisioning, loading and certifying, which are many
    /// commands each, get a multiple.
    pub timeout: Duration,
}

/// How a TPM is reached.
///
/// Written `/dev/tpmrm0` or `swtpm:127.0.0.1:2321`. The variables of the environment that redirect
/// the TPM software stack (`TPM2TOOLS_TCTI` and its like) have no effect here.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Tpm {
    /// A device node; `/dev/tpmrm0` has the kernel's resource manager in front, `/dev/tpm0` has not
    /// and serves one program at a time.
    Device(PathBuf),
    /// A software TPM that serves this gateway alone.
    Swtpm {
        /// Host name or IP address.
        host: String,
        /// Port of its commands; its control channel is one above.
        port: u16,
    },
}

impl Tpm {
    /// The TPM software stack's form of this address; `None` if it has none.
    pub(crate) fn name_conf(&self) -> Option<TctiNameConf> {
        match self {
            Self::Device(path) => DeviceConfig::from_str(path.to_str()?)
                .ok()
                .map(TctiNameConf::Device),
            Self::Swtpm { host, port } => {
                // A comma would end the host and start another setting.
                if host.contains(',') {
                    return None;
                }
                NetworkTPMConfig::from_str(&format!("host={host},port={port}"))
                    .ok()
                    .map(TctiNameConf::Swtpm)
            }
        }
    }
}

impl fmt::Display for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Swtpm { host, port } => write!(f, "swtpm:{host}:{port}"),
        }
    }
}

impl FromStr for Tpm {
    type Err = TpmAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return Ok(Self::Device(PathBuf::from(text)));
        }
        let address = text.strip_prefix("swtpm:").ok_or(TpmAddressError)?;
        let (host, port) = address.rsplit_once(':').ok_or(TpmAddressError)?;
        let port: u16 = port.parse().map_err(|_| TpmAddressError)?;
        let tpm = Self::Swtpm {
            host: host.to_owned(),
            port,
        };
        // The control channel is one port above.
        if host.is_empty() || port == 0 || port == u16::MAX || tpm.name_conf().is_none() {
            return Err(TpmAddressError);
        }
        Ok(tpm)
    }
}

/// The text names no TPM.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not the address of a TPM; write \"/dev/tpmrm0\" or \"swtpm:127.0.0.1:2321\"")]
pub struct TpmAddressError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_printing_and_parsing() {
        for text in [
            "/dev/tpmrm0",
            "swtpm:127.0.0.1:2321",
            "swtpm:tpm.example:65534",
        ] {
            let tpm: Tpm = text.parse().unwrap();
            assert_eq!(tpm.to_string(), text);
            assert!(tpm.name_conf().is_some(), "{text}");
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "device",
            "dev/tpmrm0",
            "swtpm",
            "swtpm:path=/run/swtpm",
            "swtpm:127.0.0.1",
            "swtpm::2321",
            "swtpm:127.0.0.1:0",
            "swtpm:127.0.0.1:65535",
            "swtpm:a,port=1:2321",
            "tabrmd:",
        ] {
            assert_eq!(text.parse::<Tpm>(), Err(TpmAddressError), "{text}");
        }
    }
}
