//! What became of a file, for a person.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use channel::{Fingerprint, KeyKind};
use wire::carried::{Damage, Label};

use crate::{
    registry::GatewayRecord,
    sink::sqlite::{Fork, Gap, Reason},
};

/// What became of the pieces of a file.
#[derive(Debug, Default)]
pub struct Report {
    /// Batches whose readings were stored now.
    pub new: u64,
    /// Batches that were there already.
    pub known: u64,
    /// From whom to whom the file says it is.
    pub label: Option<Label>,
    /// Sound pieces before the end.
    pub(super) pieces: u64,
    /// How many the end says there were.
    pub(super) promised: Option<u64>,
    /// By fingerprint: the names of the gateways whose headers are in it.
    pub(super) gateways: BTreeMap<[u8; 32], String>,
    quarantine: BTreeMap<&'static str, u64>,
    troubles: BTreeMap<Trouble, u64>,
    damaged: Vec<Damage>,
    damaged_places: u64,
    gaps: Vec<(String, Gap)>,
    forks: Vec<(String, Fork)>,
}

/// Why a header or a batch was left in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// Its gateway is not in the registry.
    UnknownGateway([u8; 32]),
    /// A header that its gateway did not sign, or that is none.
    HeaderRefused,
    /// A header for another service.
    OtherService,
    /// There is no private half to the record key.
    NoRecordKey(Fingerprint),
    /// A batch whose header is neither here nor stored.
    NoHeader,
    /// Not a batch.
    Malformed,
    /// Not what was sealed.
    Altered,
    /// Of a newer version.
    NotUnderstood,
}

impl Report {
    /// Whether everything in the file was sound and is stored.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_whole()
            && self.quarantine.is_empty()
            && self.troubles.is_empty()
            && self.damaged_places == 0
    }

    fn is_whole(&self) -> bool {
        self.promised == Some(self.pieces)
    }

    /// Batches that are kept apart, sealed.
    #[must_use]
    pub fn in_quarantine(&self) -> u64 {
        self.quarantine.values().sum()
    }

    pub(super) fn damage(&mut self, damage: Damage) {
        self.damaged_places += 1;
        if self.damaged.len() < PLACES_MAX {
            self.damaged.push(damage);
        }
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) {
        // A file could name any number of gateways or keys.
        if self.troubles.len() < PLACES_MAX || self.troubles.contains_key(&trouble) {
            *self.troubles.entry(trouble).or_default() += 1;
        }
    }

    pub(super) fn quarantined(&mut self, reason: Reason) {
        *self.quarantine.entry(reason.word()).or_default() += 1;
    }

    pub(super) fn gateway(&mut self, record: &GatewayRecord) {
        self.gateways
            .entry(record.fingerprint)
            .or_insert_with(|| record.name.clone());
    }

    pub(super) fn gaps(&mut self, gateway: [u8; 32], gaps: Vec<Gap>, forks: Vec<Fork>) {
        let name = self.gateways.get(&gateway).cloned().unwrap_or_default();
        self.gaps
            .extend(gaps.into_iter().map(|gap| (name.clone(), gap)));
        self.forks
            .extend(forks.into_iter().map(|fork| (name.clone(), fork)));
    }

    /// Prints it: one line of counts, then a line for each thing to look at.
    ///
    /// # Errors
    ///
    /// If `out` or `prose` fails.
    pub fn print(
        &self,
        path: &Path,
        out: &mut impl Write,
        prose: &mut impl Write,
    ) -> io::Result<()> {
        let names: Vec<_> = self.gateways.values().map(String::as_str).collect();
        writeln!(
            out,
            "{}: {} new batches, {} known already, {} in quarantine{}{}",
            path.display(),
            self.new,
            self.known,
            self.in_quarantine(),
            if names.is_empty() { "" } else { "; from " },
            names.join(", ")
        )?;
        self.print_damage(prose)?;
        for (trouble, times) in &self.troubles {
            writeln!(prose, "{times} x {}", trouble.words())?;
        }
        for (reason, batches) in &self.quarantine {
            writeln!(
                prose,
                "{batches} in quarantine: {}",
                quarantine_words(reason)
            )?;
        }
        for (name, fork) in &self.forks {
            writeln!(
                prose,
                "fork of {name}, {}, place {}: {} epochs; a rolled-back disk, a cloned process or an abused TPM",
                fork.class, fork.index, fork.epochs
            )?;
        }
        for (name, gap) in &self.gaps {
            let ranges: Vec<_> = gap.missing.iter().take(PLACES_MAX).map(range).collect();
            let more = if gap.missing.len() > ranges.len() {
                ", ..."
            } else {
                ""
            };
            writeln!(
                prose,
                "missing from {name}, {}, epoch {}: batches {}{more}",
                gap.class,
                gap.index,
                ranges.join(", ")
            )?;
        }
        Ok(())
    }

    fn print_damage(&self, prose: &mut impl Write) -> io::Result<()> {
        for damage in &self.damaged {
            writeln!(prose, "{damage}")?;
        }
        let untold = self.damaged_places - self.damaged.len() as u64;
        if 0 < untold {
            writeln!(prose, "{untold} more places are damaged")?;
        }
        match self.promised {
            None => writeln!(
                prose,
                "the end is missing: the file was cut\ndo: copy it again, or export again; what is known already is not stored twice"
            ),
            Some(promised) if promised != self.pieces => writeln!(
                prose,
                "{} of {promised} headers and batches are missing\ndo: export again; what is known already is not stored twice",
                promised.saturating_sub(self.pieces)
            ),
            Some(_) => Ok(()),
        }
    }
}

impl Trouble {
    fn words(self) -> String {
        match self {
            Self::UnknownGateway(gateway) => format!(
                "an epoch of a gateway that is not enrolled here: {}",
                Fingerprint::new(KeyKind::GatewayIdentity, gateway)
            ),
            Self::HeaderRefused => "a header that no gateway of ours signed".into(),
            Self::OtherService => "an epoch for another service".into(),
            Self::NoRecordKey(key) => format!(
                "a batch sealed to a record key that is gone: {key}\ndo: put its private half back (record_key.previous) and open the file again"
            ),
            Self::NoHeader => "a batch whose header is missing".into(),
            Self::Malformed => "something that is no batch".into(),
            Self::Altered => "a batch that was altered".into(),
            Self::NotUnderstood => {
                "something of a newer version\ndo: update gateway-cloud and open the file again"
                    .into()
            }
        }
    }
}

fn quarantine_words(reason: &str) -> &'static str {
    match reason {
        "suspended" => "the gateway is suspended\ndo: when it is resumed, open the file again",
        "revoked" => "the gateway is revoked, and its clock proves nothing",
        "unannounced" => {
            "no session of the gateway announced this chain\ndo: let the gateway connect once, then open the file again"
        }
        _ => "another batch was first under its number: somebody else holds the epoch's key",
    }
}

fn range((first, last): &(u32, u32)) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first} to {last}")
    }
}

/// Lines of one kind that a person reads.
const PLACES_MAX: usize = 16;
