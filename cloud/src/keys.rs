//! The keys of a service, as files in its state folder.
//!
//! `gateway-cloud init` makes them, `gateway-cloud keys rotate` makes their successors. The identity
//! key signs statements only: once they are made, it belongs on an offline medium; `serve` never
//! reads it.

mod rotate;

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
use zeroize::Zeroizing;

pub use rotate::{Rotation, Which, rotate};

/// What `serve` works with.
pub struct ServiceKeys {
    /// Which keys this service uses today, signed by its identity.
    pub statement: Statement,
    /// The Noise static key.
    pub channel: SoftwareStaticKey,
    /// The keys that open epochs: the newest first. Those of earlier statements open late epochs
    /// for as long as they are kept.
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
        Self::load_with(state, Vec::new())
    }

    /// As [`load`](Self::load), with record keys that are kept elsewhere.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn load_with(state: &Path, elsewhere: Vec<RecordKey>) -> anyhow::Result<Self> {
        let folder = folder(state);
        let statement = statement(&folder)?;
        let mut records = elsewhere;
        for (path, bytes) in halves(&folder, RECORD)? {
            let key = RecordKey::from_bytes(&bytes).with_context(|| path.display().to_string())?;
            records.push(key);
        }
        // In the order of the statement, then those that it names no more.
        let named = statement.record_keys();
        records.sort_by_cached_key(|key| {
            let public = key.public();
            named
                .iter()
                .position(|named| *named == public)
                .unwrap_or(usize::MAX)
        });
        let newest = records.first().map(RecordKey::public);
        ensure!(
            newest.as_ref() == named.first(),
            "{}",
            misfit(&folder, RECORD)
        );
        let channels = halves(&folder, CHANNEL)?;
        let channel = statement.channel_keys().iter().find_map(|named| {
            let mut keys = channels
                .iter()
                .filter_map(|(_, bytes)| SoftwareStaticKey::from_bytes(bytes).ok());
            keys.find(|key| key.public() == *named)
        });
        let online_halves = halves(&folder, ONLINE)?;
        let online = statement.online_keys().iter().find_map(|named| {
            let mut keys = online_halves
                .iter()
                .filter_map(|(_, bytes)| SoftwareSigningKey::from_bytes(bytes).ok());
            keys.find(|key| key.public() == named.key)
        });
        Ok(Self {
            channel: channel.with_context(|| misfit(&folder, CHANNEL))?,
            online: online.with_context(|| misfit(&folder, ONLINE))?,
            records,
            statement,
        })
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
        write(&folder, "channel.key", &*channel.to_bytes())?;
        write(&folder, "record.key", &*record.to_bytes())?;
        write(&folder, "online.key", &*online.to_bytes())?;
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

/// The statement in force, which the service's identity has signed.
fn statement(folder: &Path) -> anyhow::Result<Statement> {
    ensure!(
        folder.join(STATEMENT).exists(),
        "there are no keys in {}; make them: gateway-cloud init",
        folder.display()
    );
    let bytes = read(&folder.join(STATEMENT))?;
    let identity = read(&folder.join(IDENTITY_PUBLIC))?;
    let identity = PublicKey::parse(&identity).context(IDENTITY_PUBLIC)?;
    let pin = Fingerprint::of(KeyKind::ServiceIdentity, identity.as_bytes());
    Statement::verify(&bytes, &pin).context(STATEMENT)
}

/// The private halves of a kind: `record.key`, and `record-2.key` and so on of later statements.
fn halves(folder: &Path, kind: &str) -> anyhow::Result<Vec<(PathBuf, Zeroizing<Vec<u8>>)>> {
    let listed = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let listed = listed.with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths: Vec<_> = listed
        .into_iter()
        .filter(|entry| {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".key"));
            let serial = stem.and_then(|stem| stem.strip_prefix(kind));
            serial.is_some_and(|serial| {
                let number = serial.strip_prefix('-').map(str::parse::<u64>);
                serial.is_empty() || matches!(number, Some(Ok(_)))
            })
        })
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| Ok((path.clone(), read(&path)?)))
        .collect()
}

fn misfit(folder: &Path, kind: &str) -> String {
    format!(
        "{kind}.key in {} is not in the statement; restore the keys from one backup",
        folder.display()
    )
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Zeroizing::new(bytes))
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
const CHANNEL: &str = "channel";
const RECORD: &str = "record";
const ONLINE: &str = "online";
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
        for name in ["channel.key", "record.key", "online.key"] {
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
