//! `gateway-cloud open`: takes files that `gatewayctl spool export` wrote and somebody carried here
//! (protocol.md 3.5).
//!
//! What is in them is stored as if it had come over a session, once, and later acks cover it.
//! Nothing in a file is believed but what its gateway signed and sealed: whoever carried it could
//! leave something out, and nothing else.

mod report;

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, bail};
use channel::{EpochId, EpochOpener, Fingerprint, Header, KeyKind, OpenError, SealedBatch};
use sha2::{Digest, Sha256};
use wire::{
    Class,
    carried::{Label, Piece, Pieces},
};

pub use self::report::Report;
use self::report::Trouble;
use crate::{
    keys::ServiceKeys,
    receive::intake::{Intake, Taken},
    registry::{GatewayRecord, GatewayState, Registry},
    sink::{
        Stored,
        sqlite::{Reason, SqliteSink, Suspect},
    },
};

/// Where what is opened goes.
pub struct Desk<'a> {
    /// Our keys.
    pub keys: &'a ServiceKeys,
    /// Whose batches are taken.
    pub registry: &'a Registry,
    /// Where they go.
    pub sink: &'a SqliteSink,
}

/// Opens one file and stores what is in it. The report says what became of every piece.
///
/// # Errors
///
/// If the file cannot be read, is no such file, or is for another service, or if the registry or
/// the database fails. What was stored until then stays; the file can be opened again.
pub fn open(path: &Path, desk: &Desk<'_>) -> anyhow::Result<Report> {
    let mut file = File::open(path)?;
    read(&mut file, desk)
}

/// The same for any source of bytes.
fn read(file: &mut impl Read, desk: &Desk<'_>) -> anyhow::Result<Report> {
    let mut opening = Opening {
        desk,
        epochs: Vec::new(),
        report: Report::default(),
    };
    let mut pieces = Pieces::default();
    let mut portion = vec![0; PORTION_BYTES];
    loop {
        let bytes = file
            .read(&mut portion)
            .context("the medium fails; copy it again, or export again")?;
        if bytes == 0 {
            pieces.finish();
        }
        pieces.push(portion.get(..bytes).unwrap_or_default());
        while let Some(piece) = pieces.poll() {
            match piece {
                Ok(piece) => opening.take(piece)?,
                Err(damage) => opening.report.damage(damage),
            }
        }
        if bytes == 0 {
            break;
        }
    }
    opening.end()
}

/// A file under way.
struct Opening<'a> {
    desk: &'a Desk<'a>,
    /// The last epochs whose headers came.
    epochs: Vec<(EpochId, Epoch)>,
    report: Report,
}

/// What is done with an epoch's batches.
enum Epoch {
    /// They are stored.
    Open(Box<GatewayRecord>, EpochOpener),
    /// They are kept apart.
    Suspect([u8; 32], Reason),
    /// They are left in the file.
    Left(Trouble),
}

impl Opening<'_> {
    fn take(&mut self, piece: Piece) -> anyhow::Result<()> {
        match piece {
            Piece::Label(label) => {
                self.check_service(&label)?;
                self.report.label = Some(label);
                self.report.pieces += 1;
            }
            Piece::OtherVersion => {
                bail!("it is of a version that is not known here\ndo: update gateway-cloud")
            }
            Piece::Header(bytes) => {
                self.report.pieces += 1;
                self.header(bytes)?;
            }
            Piece::Batch(bytes) => {
                self.report.pieces += 1;
                self.batch(&bytes)?;
            }
            Piece::End { pieces } => self.report.promised = Some(pieces),
        }
        Ok(())
    }

    fn check_service(&self, label: &Label) -> anyhow::Result<()> {
        let own = self.desk.keys.statement.fingerprint();
        if label.service != *own.bytes() {
            let theirs = Fingerprint::new(KeyKind::ServiceIdentity, label.service);
            bail!(
                "it is for another service, {theirs}; this one is {own}\ndo: open it where that one runs"
            );
        }
        Ok(())
    }

    fn header(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        match self.judge(bytes)? {
            Ok((id, epoch)) => self.keep(id, epoch),
            Err(trouble) => self.report.trouble(trouble),
        }
        Ok(())
    }

    /// Decides what is done with an epoch, and stores its header if its batches are.
    fn judge(&mut self, bytes: Vec<u8>) -> anyhow::Result<Result<(EpochId, Epoch), Trouble>> {
        let gateway = match Header::gateway_of(&bytes) {
            Ok(gateway) => gateway,
            Err(error) => return Ok(Err(refused(error))),
        };
        let Some(record) = self.desk.registry.by_identity(&gateway)? else {
            return Ok(Err(Trouble::UnknownGateway(gateway)));
        };
        let service = self.desk.keys.statement.fingerprint();
        let header = match Header::verify(&bytes, &record.identity, &service) {
            Ok(header) => header,
            Err(error) => return Ok(Err(refused(error))),
        };
        self.report.gateway(&record);
        let id = header.epoch_id();
        if let Some(reason) = self.suspicion(&record, &header)? {
            self.set_aside(&gateway, (id, None), reason, &bytes)?;
            return Ok(Ok((id, Epoch::Suspect(gateway, reason))));
        }
        let class = Class::try_from(header.terms().class)?;
        let intake = self.intake(&record);
        let epoch = match intake.opener(&header) {
            Ok(opener) => {
                intake
                    .store_epoch(&header, class, bytes)
                    .context("the database refuses; what was stored stays, open it again")?;
                Epoch::Open(Box::new(record), opener)
            }
            Err(_) => Epoch::Left(Trouble::NoRecordKey(header.record_key())),
        };
        Ok(Ok((id, epoch)))
    }

    /// protocol.md 3.4, step 1, and 3.5.
    fn suspicion(&self, record: &GatewayRecord, header: &Header) -> anyhow::Result<Option<Reason>> {
        Ok(match record.state {
            GatewayState::Suspended => Some(Reason::Suspended),
            GatewayState::Revoked => Some(Reason::Revoked),
            GatewayState::Enrolled | GatewayState::Retired => {
                let chain_id = &header.terms().chain_id;
                let sink = self.desk.sink;
                let announced = sink.is_announced(&record.fingerprint, chain_id)?;
                (!announced).then_some(Reason::Unannounced)
            }
        })
    }

    fn batch(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let Ok(sealed) = SealedBatch::decode(bytes) else {
            self.report.trouble(Trouble::Malformed);
            return Ok(());
        };
        let id = sealed.epoch_id;
        let Some(mut epoch) = self.epoch(&id)? else {
            self.report.trouble(Trouble::NoHeader);
            return Ok(());
        };
        match &mut epoch {
            Epoch::Open(record, opener) => {
                let taken = self.intake(record).take(opener, &sealed, bytes);
                let taken =
                    taken.context("the database refuses; what was stored stays, open it again")?;
                self.count(&taken);
            }
            Epoch::Suspect(gateway, reason) => {
                self.set_aside(gateway, (id, Some(&sealed)), *reason, bytes)?;
                self.report.quarantined(*reason);
            }
            Epoch::Left(trouble) => self.report.trouble(*trouble),
        }
        self.keep(id, epoch);
        Ok(())
    }

    /// Remembers an epoch, and forgets the one used longest ago if there are too many.
    fn keep(&mut self, id: EpochId, epoch: Epoch) {
        self.epochs.retain(|(known, _)| *known != id);
        if EPOCHS_MAX <= self.epochs.len() {
            self.epochs.remove(0);
        }
        self.epochs.push((id, epoch));
    }

    /// Takes out the epoch of a batch. If its header did not come with this file, as it was damaged
    /// perhaps, the one that came before is used.
    fn epoch(&mut self, id: &EpochId) -> anyhow::Result<Option<Epoch>> {
        if let Some(place) = self.epochs.iter().position(|(known, _)| known == id) {
            return Ok(Some(self.epochs.remove(place).1));
        }
        let Some(bytes) = self.desk.sink.header(id)? else {
            return Ok(None);
        };
        Ok(self.judge(bytes)?.ok().map(|(_, epoch)| epoch))
    }

    fn count(&mut self, taken: &Taken) {
        let report = &mut self.report;
        match taken {
            Taken::Committed { stored, .. } => match stored {
                Stored::New => report.new += 1,
                Stored::Duplicate => report.known += 1,
                Stored::Conflict => report.quarantined(Reason::Conflict),
            },
            Taken::Altered(_) => report.trouble(Trouble::Altered),
            Taken::NotUnderstood(_) => report.trouble(Trouble::NotUnderstood),
        }
    }

    fn set_aside(
        &self,
        gateway: &[u8; 32],
        (epoch_id, batch): (EpochId, Option<&SealedBatch>),
        reason: Reason,
        sealed: &[u8],
    ) -> anyhow::Result<()> {
        let hashed = batch.map_or(sealed, |batch| &batch.ciphertext);
        let suspect = Suspect {
            gateway: *gateway,
            epoch_id,
            number: batch.map(|batch| batch.number),
            hash: Sha256::digest(hashed).into(),
            reason,
            sealed,
        };
        let set_aside = self.desk.sink.set_aside(&suspect);
        set_aside.context("the database refuses; what was stored stays, open it again")
    }

    fn intake<'a>(&'a self, gateway: &'a GatewayRecord) -> Intake<'a> {
        Intake {
            gateway,
            keys: self.desk.keys,
            sink: self.desk.sink,
        }
    }

    fn end(mut self) -> anyhow::Result<Report> {
        if self.report.pieces == 0 {
            bail!("it is no file of gatewayctl spool export\ndo: copy it again, or export again");
        }
        for (gateway, _) in self.report.gateways.clone() {
            self.report.gaps(
                gateway,
                self.desk.sink.gaps(&gateway)?,
                self.desk.sink.forks(&gateway)?,
            );
            if 0 < self.report.new {
                self.desk.registry.note_ack(&gateway)?;
            }
        }
        Ok(self.report)
    }
}

fn refused(error: OpenError) -> Trouble {
    match error {
        OpenError::OtherService => Trouble::OtherService,
        OpenError::Version(_) => Trouble::NotUnderstood,
        OpenError::Malformed
        | OpenError::OtherGateway
        | OpenError::Signature(_)
        | OpenError::OtherRecordKey
        | OpenError::Commitment
        | OpenError::OtherEpoch
        | OpenError::Altered
        | _ => Trouble::HeaderRefused,
    }
}

/// Read at once; a piece has 1.1 MiB at most.
const PORTION_BYTES: usize = 256 * 1024;

/// Epochs known at once: a file has one lane after the other, each epoch once. Each holds up to
/// 65,536 batch keys of 32 bytes.
const EPOCHS_MAX: usize = 4;
