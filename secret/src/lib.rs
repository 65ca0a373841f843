//! Secrets that a configuration names and does not contain: `credential:NAME`, which systemd hands to
//! the unit (systemd.exec(5), "LoadCredential="), or `file:/PATH`.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Where a secret lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// systemd's credential `PROGRAM.NAME`.
    Credential {
        /// Whose it is: the name of the unit.
        program: &'static str,
        /// Its name in the configuration.
        name: String,
    },
    /// A file, by its absolute path.
    File(PathBuf),
}

impl Secret {
    /// Reads what the configuration of `program` says.
    ///
    /// # Errors
    ///
    /// [`SecretFormatError`] if it is neither form.
    pub fn parse(program: &'static str, text: &str) -> Result<Self, SecretFormatError> {
        if let Some(name) = text.strip_prefix("credential:") {
            if !wire::is_name(name) {
                return Err(SecretFormatError::Credential(name.to_owned()));
            }
            let name = name.to_owned();
            return Ok(Self::Credential { program, name });
        }
        let path = text.strip_prefix("file:");
        let path = PathBuf::from(path.ok_or(SecretFormatError::Inline)?);
        if path.is_relative() {
            return Err(SecretFormatError::File(path));
        }
        Ok(Self::File(path))
    }

    /// Reads the secret, [`SECRET_BYTES_MAX`] at most. Call it for each use, so that a secret that was
    /// exchanged is the new one.
    ///
    /// # Errors
    ///
    /// [`SecretError`] if it is not there, or longer.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let path = self.path()?;
        let unreadable = |source| SecretError::Unreadable {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(unreadable)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
        let limit = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX);
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(SecretError::TooLong(path));
        }
        Ok(bytes)
    }

    fn path(&self) -> Result<PathBuf, SecretError> {
        match self {
            Self::File(path) => Ok(path.clone()),
            Self::Credential { program, name } => {
                let folder = env::var_os("CREDENTIALS_DIRECTORY");
                let folder = folder.ok_or_else(|| SecretError::NoCredentials {
                    program,
                    name: name.clone(),
                })?;
                Ok(Path::new(&folder).join(format!("{program}.{name}")))
            }
        }
    }
}

/// As the configuration has it.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential { name, .. } => write!(f, "credential:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Why a text names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFormatError {
    /// Neither form. What stands there may be the secret itself, so it is not shown.
    #[error(r#"an entry is inline; use "credential:NAME" or "file:/PATH""#)]
    Inline,

    /// A credential by no name of ours.
    #[error(r#""credential:{0}" is no credential's name"#)]
    Credential(String),

    /// A relative path.
    #[error(r#""file:{}" is not "file:/PATH""#, .0.display())]
    File(PathBuf),
}

/// Why a secret cannot be read; says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The program was not started as a unit, or the unit loads none.
    #[error(
        "credential:{name}: systemd passed no credentials; start it as a unit with \
         LoadCredential={program}.{name}:/PATH, or use \"file:/PATH\""
    )]
    NoCredentials {
        /// Whose it is.
        program: &'static str,
        /// Its name in the configuration.
        name: String,
    },

    /// Not there, or not for this user.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },

    /// Another file, by mistake.
    #[error("{} has more than {SECRET_BYTES_MAX} bytes, as no secret has", .0.display())]
    TooLong(PathBuf),
}

/// Room for a key in PEM; a token or a seed has a tenth.
pub const SECRET_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_credential_or_an_absolute_path_and_nothing_else() {
        for text in ["credential:relay", "file:/etc/gatewayd/relay"] {
            let secret = Secret::parse("gatewayd", text).unwrap();
            assert_eq!(secret.to_string(), text);
        }
        for (text, words) in [
            ("hunter2", "an entry is inline; use"),
            ("", "an entry is inline; use"),
            ("file:relay", r#""file:relay" is not "file:/PATH""#),
            ("credential:", r#""credential:" is no credential's name"#),
            ("credential:../key", "is no credential's name"),
        ] {
            let error = Secret::parse("gatewayd", text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("hunter2"), "a secret is shown");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let file = Secret::File(path.clone());
        let words = format!("cannot read {}", path.display());
        assert_eq!(file.read().unwrap_err().to_string(), words);
        std::fs::write(&path, [0; 4097]).unwrap();
        let long = file.read().unwrap_err().to_string();
        assert!(long.contains("more than 4096 bytes"), "{long}");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert_eq!(file.read().unwrap().len(), 4096);
    }
}
