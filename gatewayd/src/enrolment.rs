//! What enrolment leaves in the state folder: who this gateway is and which services know it.
//!
//! A small JSON file, replaced as a whole. Nothing in it is secret.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// This gateway's fingerprint (`gi-...`); `None` before `gatewayctl init`.
    pub gateway: Option<String>,
    /// What the service calls this gateway.
    pub name: Option<String>,
    /// By the names of the configuration.
    #[serde(default)]
    pub services: BTreeMap<String, EnrolledService>,
}

/// A service that has enrolled this gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolledService {
    /// The service's fingerprint (`sv-...`).
    pub key: String,
    /// Where the ticket said it can be reached.
    pub addresses: Vec<String>,
}

/// The file itself.
#[derive(Clone, Debug)]
pub struct EnrolmentFile {
    path: PathBuf,
}

impl EnrolmentFile {
    /// The file in this state folder.
    #[must_use]
    pub fn in_folder(state: &Path) -> Self {
        Self {
            path: state.join(FILE),
        }
    }

    /// Reads it; a gateway that was never initialised has none.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is not ours.
    pub fn read(&self) -> anyhow::Result<Enrolment> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Enrolment::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged; remove it and enrol again",
                self.path.display()
            )
        })
    }

    /// Changes it: written beside, flushed, renamed, so that a power cut leaves the old or the new.
    ///
    /// # Errors
    ///
    /// If the disk does not take it; the old content stays.
    pub fn change(&self, change: impl FnOnce(&mut Enrolment)) -> anyhow::Result<Enrolment> {
        let mut content = self.read()?;
        change(&mut content);
        let text = serde_json::to_string_pretty(&content)?;
        self.write(&text)
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(content)
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let beside = self.path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

const FILE: &str = "enrolment.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_was_never_initialised_has_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = EnrolmentFile::in_folder(folder.path());
        assert_eq!(file.read().unwrap(), Enrolment::default());
    }

    #[test]
    fn a_change_is_read_back_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let file = EnrolmentFile::in_folder(folder.path());
        file.change(|content| content.gateway = Some("gi-abc".into()))
            .unwrap();
        file.change(|content| content.name = Some("greenhouse-7".into()))
            .unwrap();

        let content = file.read().unwrap();

        assert_eq!(content.gateway.as_deref(), Some("gi-abc"));
        assert_eq!(content.name.as_deref(), Some("greenhouse-7"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_says_so_and_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = EnrolmentFile::in_folder(folder.path());
        fs::write(folder.path().join(FILE), "{\"gateway\": 7}").unwrap();
        let error = file.change(|_| ()).unwrap_err();
        assert!(error.to_string().contains("enrol again"), "{error}");
        assert!(
            fs::read_to_string(folder.path().join(FILE))
                .unwrap()
                .contains('7')
        );
    }
}
