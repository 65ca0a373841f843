//! Secrets that the configuration names and does not contain.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use zeroize::Zeroizing;

/// Where a secret lies: never in the configuration itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// `credential:NAME`: systemd's `gateway-cloud.NAME`.
    Credential(String),
    /// `file:/PATH`.
    File(PathBuf),
}

impl Secret {
    pub(super) fn parse(key: &str, text: &str) -> anyhow::Result<Self> {
        if let Some(name) = text.strip_prefix("credential:") {
            ensure!(
                wire::is_name(name),
                "{key}: {text:?} is no credential's name"
            );
            return Ok(Self::Credential(name.to_owned()));
        }
        // What stands there may be the secret itself, so it is not shown.
        let path = text.strip_prefix("file:").with_context(|| {
            format!("{key}: an entry is inline; use \"credential:NAME\" or \"file:/PATH\"")
        })?;
        let path = PathBuf::from(path);
        ensure!(path.is_absolute(), "{key}: {text:?} is not \"file:/PATH\"");
        Ok(Self::File(path))
    }

    /// Reads it, [`SECRET_BYTES_MAX`] at most.
    ///
    /// # Errors
    ///
    /// If it is not there, or longer; the error says where.
    pub fn read(&self) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        let path = self.path()?;
        let shown = path.display();
        let file = File::open(&path).with_context(|| format!("cannot open {shown}"))?;
        let room = usize::try_from(SECRET_BYTES_MAX).unwrap_or_default() + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        file.take(SECRET_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {shown}"))?;
        ensure!(
            bytes.len() < room,
            "{shown} has more than {SECRET_BYTES_MAX} bytes, as no secret has"
        );
        Ok(bytes)
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        match self {
            Self::File(path) => Ok(path.clone()),
            Self::Credential(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY").with_context(|| {
                    format!(
                        "credential:{name}: systemd passed no credentials; start it as a unit with \
                         LoadCredential=gateway-cloud.{name}:/PATH, or use \"file:/PATH\""
                    )
                })?;
                Ok(Path::new(&folder).join(format!("gateway-cloud.{name}")))
            }
        }
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Room for a key in PEM; a token or a seed has a tenth.
const SECRET_BYTES_MAX: u64 = 4096;
