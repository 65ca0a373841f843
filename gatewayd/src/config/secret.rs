//! Secrets that the configuration names and does not contain.

use std::{
    env, fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use zeroize::Zeroizing;

/// Where a secret lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// `credential:NAME`: systemd's `gatewayd.NAME`.
    Credential(String),
    /// `file:/PATH`.
    File(PathBuf),
}

impl Secret {
    /// `None` if the text is something else: perhaps the secret itself, so it is not to be shown.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("credential:") {
            return wire::is_name(name).then(|| Self::Credential(name.to_owned()));
        }
        let path = PathBuf::from(text.strip_prefix("file:")?);
        path.is_absolute().then_some(Self::File(path))
    }

    /// Reads it, 4096 bytes at most. Asked for each use, so that a secret that was exchanged is
    /// the new one.
    ///
    /// # Errors
    ///
    /// If it is not there, or longer; the error says where and what to do.
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
                let folder = env::var_os("CREDENTIALS_DIRECTORY").with_context(|| {
                    format!(
                        "{self}: systemd passed no credentials; add \
                         LoadCredential=gatewayd.{name}:/PATH to the unit"
                    )
                })?;
                Ok(Path::new(&folder).join(format!("gatewayd.{name}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_credential_or_an_absolute_path_and_nothing_else() {
        let credential = Secret::Credential("relay".to_owned());
        assert_eq!(Secret::parse("credential:relay"), Some(credential));
        let file = Secret::File("/etc/gatewayd/relay".into());
        assert_eq!(Secret::parse("file:/etc/gatewayd/relay"), Some(file));
        for text in [
            "hunter2",
            "file:relay",
            "credential:",
            "credential:../key",
            "",
        ] {
            assert_eq!(Secret::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let missing = Secret::File(path.clone()).read().unwrap_err();
        assert!(format!("{missing:#}").starts_with(&format!("cannot open {}", path.display())));
        std::fs::write(&path, [0; 4097]).unwrap();
        let long = Secret::File(path.clone()).read().unwrap_err();
        assert!(long.to_string().contains("more than 4096 bytes"));
        std::fs::write(&path, [0; 4096]).unwrap();
        assert_eq!(Secret::File(path).read().unwrap().len(), 4096);
    }
}
