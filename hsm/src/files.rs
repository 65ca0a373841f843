//! The key files: one PEM for each key, and the manifest that makes them the gateway's.
//!
//! A key counts once `manifest.json` names it; the manifest is written last and removed first, so
//! a power cut leaves either the whole set or none.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tss_esapi::structures::{Private, Public as TpmtPublic};
use tss_esapi::traits::{Marshall, UnMarshall};

use crate::error::{HsmError, KeyFileError};
use crate::templates::{Key, Name};
use crate::tss2_key::{self, Form};

/// The gateway's keys as they rest on disk.
pub(crate) struct Keyring {
    /// Name of the storage root key: the pin.
    pub(crate) parent: Name,
    /// Name of the TPM's P-256 endorsement key, which outlives a clear: it tells a cleared TPM from
    /// a replaced one. Keys of earlier versions do not say.
    pub(crate) endorsement: Option<Name>,
    pub(crate) identity: StoredKey,
    pub(crate) channel: StoredKey,
    pub(crate) attestation: StoredKey,
}

impl Keyring {
    pub(crate) fn key(&self, key: Key) -> &StoredKey {
        match key {
            Key::Identity => &self.identity,
            Key::Channel => &self.channel,
            Key::Attestation => &self.attestation,
        }
    }
}

/// A key that only its TPM can use.
pub(crate) struct StoredKey {
    pub(crate) public: TpmtPublic,
    pub(crate) private: Private,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    parent: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endorsement: Option<Name>,
    identity: Name,
    channel: Name,
    attestation: Name,
}

/// Reads the keys in `folder`; `None` if there is no manifest.
pub(crate) fn read(folder: &Path) -> Result<Option<Keyring>, HsmError> {
    let path = folder.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(path, KeyFileError::Io(error))),
    };
    let manifest = parse(&text).map_err(|error| fault(path, error))?;
    Ok(Some(Keyring {
        parent: manifest.parent,
        endorsement: manifest.endorsement,
        identity: read_key(folder, Key::Identity, manifest.identity)?,
        channel: read_key(folder, Key::Channel, manifest.channel)?,
        attestation: read_key(folder, Key::Attestation, manifest.attestation)?,
    }))
}

/// Writes a new set of keys over whatever was in `folder`.
pub(crate) fn write(folder: &Path, keys: &Keyring) -> Result<(), HsmError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| match folder.parent() {
            // So that the folder itself outlives a power cut.
            Some(above) if !above.as_os_str().is_empty() => File::open(above)?.sync_all(),
            Some(_) | None => Ok(()),
        })
        .map_err(|error| fault(folder.to_owned(), KeyFileError::Io(error)))?;

    remove(folder, MANIFEST)?;
    for key in Key::ALL {
        let stored = keys.key(key);
        let pem = stored
            .public
            .marshall()
            .ok()
            .and_then(|public| tss2_key::encode(Form::Key, &public, stored.private.value()))
            .ok_or_else(|| fault(folder.join(key.file()), KeyFileError::NotAKey))?;
        replace(folder, key.file(), pem.as_bytes())?;
    }
    let manifest = Manifest {
        version: VERSION,
        parent: keys.parent,
        endorsement: keys.endorsement,
        identity: Name::of(&keys.identity.public)?,
        channel: Name::of(&keys.channel.public)?,
        attestation: Name::of(&keys.attestation.public)?,
    };
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| fault(folder.join(MANIFEST), KeyFileError::Manifest(error)))?;
    replace(folder, MANIFEST, format!("{text}\n").as_bytes())
}

fn parse(text: &str) -> Result<Manifest, KeyFileError> {
    // Other versions may have other fields, so the version is looked at first.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(text).map_err(KeyFileError::Manifest)?;
    if version != VERSION {
        return Err(KeyFileError::Version { version });
    }
    serde_json::from_str(text).map_err(KeyFileError::Manifest)
}

fn read_key(folder: &Path, key: Key, expected: Name) -> Result<StoredKey, HsmError> {
    let path = folder.join(key.file());
    let pem = match fs::read_to_string(&path) {
        Ok(pem) => pem,
        Err(error) => return Err(fault(path, KeyFileError::Io(error))),
    };
    let stored = tss2_key::decode(Form::Key, &pem).and_then(|(public, private)| {
        Some(StoredKey {
            public: TpmtPublic::unmarshall(&public).ok()?,
            private: Private::try_from(private).ok()?,
        })
    });
    let Some(stored) = stored else {
        return Err(fault(path, KeyFileError::NotAKey));
    };
    if Name::of(&stored.public)? != expected {
        return Err(fault(path, KeyFileError::OtherKey));
    }
    Ok(stored)
}

/// Puts `content` under `name` so that after a power cut there is the old file or the new one.
fn replace(folder: &Path, name: &str, content: &[u8]) -> Result<(), HsmError> {
    let path = folder.join(name);
    let draft = folder.join(format!("{name}.new"));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error| fault(path, KeyFileError::Io(error)))
}

fn remove(folder: &Path, name: &str) -> Result<(), HsmError> {
    let path = folder.join(name);
    let removed = match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(folder).and_then(|folder| folder.sync_all()),
    };
    removed.map_err(|error| fault(path, KeyFileError::Io(error)))
}

fn fault(path: PathBuf, source: KeyFileError) -> HsmError {
    HsmError::KeyFile { path, source }
}

const MANIFEST: &str = "manifest.json";

/// Of the manifest. Raised when its meaning changes.
pub(crate) const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_a_later_version_says_so_whatever_it_contains() {
        let error = parse(r#"{"version": 2, "keys": []}"#)
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, KeyFileError::Version { version: 2 }));
    }

    #[test]
    fn a_manifest_with_missing_or_unknown_fields_is_refused() {
        let name = format!("\"000b{}\"", "5a".repeat(32));
        let fields = format!(r#""parent": {name}, "identity": {name}, "channel": {name}"#);
        let whole = format!(r#"{{"version": 1, {fields}, "attestation": {name}}}"#);
        assert!(parse(&whole).is_ok());
        for wrong in [
            format!(r#"{{"version": 1, {fields}}}"#),
            format!(r#"{{"version": 1, {fields}, "attestation": {name}, "more": 1}}"#),
            format!(r#"{{"version": 1, {fields}, "attestation": "000b"}}"#),
            String::new(),
        ] {
            let error = parse(&wrong).map(drop).unwrap_err();
            assert!(matches!(error, KeyFileError::Manifest(_)), "{wrong}");
        }
    }
}
