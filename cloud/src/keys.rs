//! The keys of a service, as files in its state folder.
//!
//! `gateway-cloud init` makes them. The identity key signs statements only: once they are made, it
//! belongs on an offline medium; `serve` never reads it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use channel::{
    Fingerprint, KeyKind, OnlineKey, PublicKey, RecordKey, SigningKey, SoftwareSigningKey,
    SoftwareStaticKey, Statement, StatementContent, StaticKey,
};
use getrandom::SysRng;
use rand_core::UnwrapErr;

/// What `serve` works with.
pub struct ServiceKeys {
    /// Which keys this service uses today, signed by its identity.
    pub statement: Statement,
    /// The Noise static key.
    pub channel: SoftwareStaticKey,
    /// The keys that open epochs: the newest first.
    pub records: Vec<RecordKey>,
    /// The key that registers at relays.
    pub online: SoftwareSigningKey,
}

impl ServiceKeys {
    /// Reads the keys of a state folder.
    ///
    /// # Errors
    ///
    /// If one is missing, damaged, or not the one that the statement names.
    pub fn load(state: &Path) -> anyhow::Result<Self> {
        let folder = folder(state);
        ensure!(
            folder.join(STATEMENT).exists(),
            "there are no keys in {}; make them: gateway-cloud init",
            folder.display()
        );
        let statement = read(&folder, STATEMENT)?;
        let identity =
            PublicKey::parse(&read(&folder, IDENTITY_PUBLIC)?).context(IDENTITY_PUBLIC)?;
        let pin = Fingerprint::of(KeyKind::ServiceIdentity, identity.as_bytes());
        let keys = Self {
            statement: Statement::verify(&statement, &pin).context(STATEMENT)?,
            channel: SoftwareStaticKey::from_bytes(&read(&folder, CHANNEL)?).context(CHANNEL)?,
            records: vec![RecordKey::from_bytes(&read(&folder, RECORD)?).context(RECORD)?],
            online: SoftwareSigningKey::from_bytes(&read(&folder, ONLINE)?).context(ONLINE)?,
        };
        let (channel, online) = (keys.channel.public(), keys.online.public());
        let record_keys = keys.statement.record_keys();
        let named = [
            (CHANNEL, keys.statement.channel_keys().contains(&channel)),
            (
                RECORD,
                keys.records
                    .iter()
                    .all(|key| record_keys.contains(&key.public())),
            ),
            (
                ONLINE,
                keys.statement
                    .online_keys()
                    .iter()
                    .any(|named| named.key == online),
            ),
        ];
        for (name, is_named) in named {
            ensure!(
                is_named,
                "{name} in {} is not in the statement; restore the keys from one backup",
                folder.display()
            );
        }
        Ok(keys)
    }

    /// Makes the keys of a new service; keys that are there stay. Returns its fingerprint.
    ///
    /// # Errors
    ///
    /// If the folder does not take them.
    pub fn init(state: &Path) -> anyhow::Result<Fingerprint> {
        let folder = folder(state);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        if folder.join(STATEMENT).exists() {
            return Ok(Self::load(state)?.statement.fingerprint());
        }
        let mut rng = UnwrapErr(SysRng);
        let identity = SoftwareSigningKey::generate(&mut rng);
        let channel = SoftwareStaticKey::generate(&mut rng);
        let record = RecordKey::generate(&mut rng);
        let online = SoftwareSigningKey::generate(&mut rng);
        let content = StatementContent {
            serial: 1,
            channel_keys: vec![StaticKey::public(&channel)],
            record_keys: vec![record.public()],
            online_keys: vec![OnlineKey {
                key: SigningKey::public(&online),
                bits: OnlineKey::RELAY,
            }],
        };
        let statement = Statement::issue(content, &identity)?;
        write(&folder, IDENTITY, &*identity.to_bytes())?;
        write(
            &folder,
            IDENTITY_PUBLIC,
            SigningKey::public(&identity).as_bytes(),
        )?;
        write(&folder, CHANNEL, &*channel.to_bytes())?;
        write(&folder, RECORD, &*record.to_bytes())?;
        write(&folder, ONLINE, &*online.to_bytes())?;
        // Last: whoever finds it finds the keys it names.
        write(&folder, STATEMENT, statement.bytes())?;
        fs::File::open(&folder)?.sync_all()?;
        Ok(statement.fingerprint())
    }
}

/// Where the identity key lies, so that the operator can take it away.
#[must_use]
pub fn identity_path(state: &Path) -> PathBuf {
    folder(state).join(IDENTITY)
}

fn folder(state: &Path) -> PathBuf {
    state.join("keys")
}

fn read(folder: &Path, name: &str) -> anyhow::Result<zeroize::Zeroizing<Vec<u8>>> {
    let path = folder.join(name);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(zeroize::Zeroizing::new(bytes))
}

/// Writes a file that only its owner reads; a half-written one of an earlier try is replaced.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

const IDENTITY: &str = "identity.key";
const IDENTITY_PUBLIC: &str = "identity.pub";
const CHANNEL: &str = "channel.key";
const RECORD: &str = "record.key";
const ONLINE: &str = "online.key";
const STATEMENT: &str = "statement.cbor";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_only_their_owner_reads_them() {
        let state = tempfile::tempdir().unwrap();
        let first = ServiceKeys::init(state.path()).unwrap();
        let again = ServiceKeys::init(state.path()).unwrap();
        assert_eq!(first, again);
        let keys = ServiceKeys::load(state.path()).unwrap();
        assert_eq!(keys.statement.fingerprint(), first);
        for entry in fs::read_dir(folder(state.path())).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_key_that_the_statement_does_not_name_is_refused() {
        for name in [CHANNEL, RECORD, ONLINE] {
            let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            ServiceKeys::init(ours.path()).unwrap();
            ServiceKeys::init(theirs.path()).unwrap();
            fs::copy(
                folder(theirs.path()).join(name),
                folder(ours.path()).join(name),
            )
            .unwrap();
            let error = ServiceKeys::load(ours.path()).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
            assert!(error.contains("not in the statement"), "{error}");
        }
    }

    #[test]
    fn a_service_without_keys_is_told_how_to_make_them() {
        let state = tempfile::tempdir().unwrap();
        let error = ServiceKeys::load(state.path()).err().unwrap();
        assert!(error.to_string().contains("gateway-cloud init"), "{error}");
    }
}
