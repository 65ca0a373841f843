//! New keys for a service, and the statement that names them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use channel::{
    Fingerprint, KeyKind, OnlineKey, PublicKey, RecordKey, RecordPublicKey, SigningKey,
    SoftwareSigningKey, SoftwareStaticKey, Statement, StatementContent, StaticKey,
};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use zeroize::Zeroizing;

use super::{CHANNEL, IDENTITY, ONLINE, RECORD, STATEMENT, folder, halves, read, statement, write};

/// Which key is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that opens the seals.
    Record,
    /// The one that opens sessions.
    Channel,
    /// The one that registers at relays.
    Online,
}

/// What a rotation did.
#[derive(Debug)]
pub struct Rotation {
    /// The new statement's serial.
    pub serial: u64,
    /// The new key's name; a channel key has none.
    pub key: Option<Fingerprint>,
    /// Where its private half lies.
    pub path: PathBuf,
    /// Private halves that no statement names any more, and that `overlap` is over for. Whoever
    /// deletes them makes sure that nobody opens what was sealed to them, the service included.
    pub retired: Vec<PathBuf>,
}

/// Makes a new key and a statement that names it first; the ones before stay in it for `overlap`
/// after they were replaced.
///
/// May be cut off anywhere and made again: until the statement is there, the old one is in force,
/// and the private half that it finds is used.
///
/// # Errors
///
/// If the service's identity is not there or is another one, or the folder does not take the files.
pub fn rotate(
    state: &Path,
    which: Which,
    identity: Option<&Path>,
    overlap: Duration,
) -> anyhow::Result<Rotation> {
    let folder = folder(state);
    let held = statement(&folder)?;
    let identity = read_identity(identity.unwrap_or(&folder.join(IDENTITY)), &held)?;
    let serial = held.serial() + 1;
    let kind = which.file();
    let name = format!("{kind}-{serial}.key");
    let path = folder.join(&name);
    let half = if path.exists() {
        // An earlier try was cut off.
        read(&path)?
    } else {
        let half = which.generate();
        write(&folder, &name, &half)?;
        sync(&folder)?;
        half
    };

    let keys = Keys {
        ages: &ages(&folder, kind, which)?,
        overlap,
    };
    let (content, key) = keys.successor(&held, which, &half)?;
    let issued = Statement::issue(content, &identity)?;
    replace_statement(&folder, issued.bytes())?;
    Ok(Rotation {
        serial,
        key,
        path,
        retired: retired(&folder, which, &issued)?,
    })
}

impl Which {
    fn file(self) -> &'static str {
        match self {
            Self::Record => RECORD,
            Self::Channel => CHANNEL,
            Self::Online => ONLINE,
        }
    }

    fn generate(self) -> Zeroizing<Vec<u8>> {
        let mut rng = UnwrapErr(SysRng);
        Zeroizing::new(match self {
            Self::Record => RecordKey::generate(&mut rng).to_bytes().to_vec(),
            Self::Channel => SoftwareStaticKey::generate(&mut rng).to_bytes().to_vec(),
            Self::Online => SoftwareSigningKey::generate(&mut rng).to_bytes().to_vec(),
        })
    }

    /// The public half, as statements have it.
    fn public(self, half: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Self::Record => RecordKey::from_bytes(half)?.public().to_bytes(),
            Self::Channel => {
                let key = SoftwareStaticKey::from_bytes(half)?;
                key.public().as_bytes().to_vec()
            }
            Self::Online => {
                let key = SoftwareSigningKey::from_bytes(half)?;
                key.public().as_bytes().to_vec()
            }
        })
    }

    fn named(self, statement: &Statement) -> Vec<Vec<u8>> {
        match self {
            Self::Record => {
                let keys = statement.record_keys().iter();
                keys.map(RecordPublicKey::to_bytes).collect()
            }
            Self::Channel => {
                let keys = statement.channel_keys().iter();
                keys.map(|key| key.as_bytes().to_vec()).collect()
            }
            Self::Online => {
                let keys = statement.online_keys().iter();
                keys.map(|named| named.key.as_bytes().to_vec()).collect()
            }
        }
    }
}

/// How old the private halves are.
struct Keys<'a> {
    /// Public halves, and since when each is there.
    ages: &'a [(Vec<u8>, SystemTime)],
    overlap: Duration,
}

impl Keys<'_> {
    /// What the statement after `held` says, and the new key's name.
    fn successor(
        &self,
        held: &Statement,
        which: Which,
        half: &[u8],
    ) -> anyhow::Result<(StatementContent, Option<Fingerprint>)> {
        let mut content = StatementContent {
            serial: held.serial() + 1,
            channel_keys: held.channel_keys().to_vec(),
            record_keys: held.record_keys().to_vec(),
            online_keys: held.online_keys().to_vec(),
        };
        let name = match which {
            Which::Record => {
                let new = RecordKey::from_bytes(half)?.public();
                let name = new.fingerprint();
                let bytes = |key: &RecordPublicKey| key.to_bytes();
                self.renew(&mut content.record_keys, new, bytes, RECORD_KEYS_MAX);
                Some(name)
            }
            Which::Channel => {
                let new = SoftwareStaticKey::from_bytes(half)?.public();
                let bytes = |key: &PublicKey| key.as_bytes().to_vec();
                self.renew(&mut content.channel_keys, new, bytes, OTHER_KEYS_MAX);
                None
            }
            Which::Online => {
                let key = SoftwareSigningKey::from_bytes(half)?.public();
                let first = held.online_keys().first();
                let bits = first.map_or(OnlineKey::RELAY, |first| first.bits);
                let bytes = |named: &OnlineKey| named.key.as_bytes().to_vec();
                let new = OnlineKey { key, bits };
                self.renew(&mut content.online_keys, new, bytes, OTHER_KEYS_MAX);
                Some(Fingerprint::of(KeyKind::Online, key.as_bytes()))
            }
        };
        Ok((content, name))
    }

    /// Puts a key first, and drops those that were replaced longer than `overlap` ago, and what is
    /// too much for a statement.
    fn renew<K>(&self, keys: &mut Vec<K>, new: K, bytes: impl Fn(&K) -> Vec<u8>, keys_max: usize) {
        let mut after = bytes(&new);
        let mut kept = Vec::with_capacity(keys_max);
        for key in keys.drain(..) {
            // It was replaced when the one after it was made. What is kept elsewhere has no age.
            let made = self.ages.iter().find(|(public, _)| *public == after);
            let replaced = made.and_then(|(_, made)| made.elapsed().ok());
            after = bytes(&key);
            if replaced.is_none_or(|ago| ago < self.overlap) {
                kept.push(key);
            }
        }
        keys.push(new);
        keys.extend(kept);
        keys.truncate(keys_max);
    }
}

fn ages(folder: &Path, kind: &str, which: Which) -> anyhow::Result<Vec<(Vec<u8>, SystemTime)>> {
    let halves = halves(folder, kind)?;
    let ages = halves.iter().map(|(path, half)| {
        let made = fs::metadata(path).and_then(|metadata| metadata.modified());
        let made = made.with_context(|| format!("cannot look at {}", path.display()))?;
        Ok((which.public(half)?, made))
    });
    ages.collect()
}

fn retired(folder: &Path, which: Which, statement: &Statement) -> anyhow::Result<Vec<PathBuf>> {
    let named = which.named(statement);
    let mut retired = Vec::new();
    for (path, half) in halves(folder, which.file())? {
        if !named.contains(&which.public(&half)?) {
            retired.push(path);
        }
    }
    Ok(retired)
}

fn read_identity(path: &Path, held: &Statement) -> anyhow::Result<SoftwareSigningKey> {
    let half = read(path).context(
        "the service's identity signs the new statement: bring it from its offline medium, \
         or name it with --identity",
    )?;
    let identity = SoftwareSigningKey::from_bytes(&half)
        .with_context(|| format!("{} is no key", path.display()))?;
    ensure!(
        identity.public() == held.service(),
        "{} is the identity of another service",
        path.display()
    );
    Ok(identity)
}

/// One or the other is there, whole, whenever the power goes.
fn replace_statement(folder: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = format!("{STATEMENT}.new");
    write(folder, &new, bytes)?;
    fs::rename(folder.join(&new), folder.join(STATEMENT))
        .context("cannot replace the statement")?;
    sync(folder)
}

fn sync(folder: &Path) -> anyhow::Result<()> {
    let synced = fs::File::open(folder).and_then(|opened| opened.sync_all());
    synced.with_context(|| format!("cannot sync {}", folder.display()))
}

/// protocol.md 1: of a statement.
const RECORD_KEYS_MAX: usize = 8;

/// protocol.md 1: channel keys, and online keys, of a statement.
const OTHER_KEYS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ServiceKeys;

    const OVERLAP: Duration = Duration::from_secs(90 * 86_400);

    #[test]
    fn a_new_record_key_is_first_in_a_signed_successor_and_both_open() {
        let state = service();
        let before = ServiceKeys::load(state.path()).unwrap();

        let rotation = rotate(state.path(), Which::Record, None, OVERLAP).unwrap();

        let after = ServiceKeys::load(state.path()).unwrap();
        assert_eq!((rotation.serial, after.statement.serial()), (2, 2));
        assert_eq!(after.statement.succeeds(Some(&before.statement)), Ok(true));
        let named: Vec<_> = fingerprints(&after);
        assert_eq!(
            named,
            [rotation.key.unwrap(), before.records[0].fingerprint()]
        );
        let held: Vec<_> = after.records.iter().map(RecordKey::fingerprint).collect();
        assert_eq!(held, named);
        assert!(rotation.retired.is_empty());
        // The others stay.
        assert_eq!(after.channel.public(), before.channel.public());
        assert_eq!(after.online.public(), before.online.public());
    }

    #[test]
    fn a_key_replaced_longer_ago_than_the_overlap_leaves_the_statement_and_still_opens() {
        let state = service();
        let oldest = ServiceKeys::load(state.path()).unwrap().records.remove(0);
        rotate(state.path(), Which::Record, None, OVERLAP).unwrap();
        // The second key, which replaced the first, is 91 days old.
        let second = folder(state.path()).join("record-2.key");
        let made = SystemTime::now() - Duration::from_secs(91 * 86_400);
        fs::File::open(&second).unwrap().set_modified(made).unwrap();

        let rotation = rotate(state.path(), Which::Record, None, OVERLAP).unwrap();

        let keys = ServiceKeys::load(state.path()).unwrap();
        assert_eq!(keys.statement.record_keys().len(), 2);
        assert!(!fingerprints(&keys).contains(&oldest.fingerprint()));
        assert_eq!(rotation.retired, [folder(state.path()).join("record.key")]);
        let last = keys.records.last().unwrap();
        assert_eq!(last.fingerprint(), oldest.fingerprint());

        // Deleted by hand, it is gone, and nothing misses it.
        fs::remove_file(&rotation.retired[0]).unwrap();
        assert_eq!(ServiceKeys::load(state.path()).unwrap().records.len(), 2);
    }

    #[test]
    fn a_rotation_that_was_cut_off_is_made_again_with_the_same_key() {
        let state = service();
        let half = Which::Record.generate();
        write(&folder(state.path()), "record-2.key", &half).unwrap();
        write(&folder(state.path()), "statement.cbor.new", b"half a sta").unwrap();
        // Meanwhile the old statement is in force.
        let keys = ServiceKeys::load(state.path()).unwrap();
        assert_eq!(keys.statement.serial(), 1);

        let rotation = rotate(state.path(), Which::Record, None, OVERLAP).unwrap();

        let key = RecordKey::from_bytes(&half).unwrap();
        assert_eq!(rotation.key, Some(key.fingerprint()));
        let keys = ServiceKeys::load(state.path()).unwrap();
        assert_eq!(Some(keys.records[0].fingerprint()), rotation.key);
    }

    #[test]
    fn channel_and_online_keys_are_replaced_the_same_way() {
        let state = service();
        let before = ServiceKeys::load(state.path()).unwrap();
        rotate(state.path(), Which::Channel, None, OVERLAP).unwrap();
        rotate(state.path(), Which::Online, None, Duration::ZERO).unwrap();
        let after = ServiceKeys::load(state.path()).unwrap();

        assert_eq!(after.statement.serial(), 3);
        let channels = [after.channel.public(), before.channel.public()];
        assert_ne!(channels[0], channels[1]);
        assert_eq!(after.statement.channel_keys(), channels);
        // Without an overlap, what was stolen is out at once.
        let online = after.statement.online_keys();
        assert_eq!(online.len(), 1);
        assert_eq!(online[0].key, after.online.public());
        assert_ne!(online[0].key, before.online.public());
        assert_eq!(online[0].bits, before.statement.online_keys()[0].bits);
    }

    #[test]
    fn a_statement_has_eight_record_keys_at_most() {
        let state = service();
        for serial in 2..=10 {
            let rotation = rotate(state.path(), Which::Record, None, OVERLAP).unwrap();
            assert_eq!(rotation.serial, serial);
        }
        let keys = ServiceKeys::load(state.path()).unwrap();
        assert_eq!(keys.statement.record_keys().len(), 8);
        assert_eq!(keys.records.len(), 10);
    }

    #[test]
    fn only_the_services_own_identity_signs() {
        let (state, other) = (service(), service());
        let theirs = folder(other.path()).join(IDENTITY);
        let error = rotate(state.path(), Which::Record, Some(&theirs), OVERLAP).unwrap_err();
        assert!(error.to_string().contains("another service"), "{error:#}");

        // Taken away, as it should be; and brought back elsewhere.
        let kept = state.path().join("identity-on-a-stick");
        fs::rename(folder(state.path()).join(IDENTITY), &kept).unwrap();
        let error = rotate(state.path(), Which::Record, None, OVERLAP).unwrap_err();
        assert!(error.to_string().contains("--identity"), "{error:#}");
        assert_eq!(
            ServiceKeys::load(state.path()).unwrap().statement.serial(),
            1
        );
        rotate(state.path(), Which::Record, Some(&kept), OVERLAP).unwrap();
    }

    fn fingerprints(keys: &ServiceKeys) -> Vec<Fingerprint> {
        let named = keys.statement.record_keys().iter();
        named.map(RecordPublicKey::fingerprint).collect()
    }

    fn service() -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        ServiceKeys::init(state.path()).unwrap();
        state
    }
}
