//! `gatewayctl spool export`: sealed batches into a file, to be carried to the service.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use channel::SealedBatch;
use data_encoding::HEXLOWER;
use http_body_util::BodyExt;
use wire::carried::{Piece, Pieces};

use super::{
    client::{Client, Failure},
    screen,
};
use crate::report::{
    EXPORT_BYTES_HEADER, EXPORT_BYTES_MAX, EXPORT_UNSIGNED_HEADER, ExportRequest, ExportedAnswer,
    ExportedRequest,
};

/// Writes the file, and tells the daemon once it is on its medium.
pub(super) async fn run(
    client: &Client,
    to: &Path,
    request: &ExportRequest,
) -> Result<(), Failure> {
    let place = Place::choose(to, request.service.as_deref())?;
    let (headers, mut body) = client.post_stream("/v1/spool/export", request).await?;
    let number = |name: &str| -> u64 {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let mut writing = Writing::begin(&place, number(EXPORT_BYTES_HEADER))?;
    while let Some(frame) = body.frame().await {
        // A daemon that breaks off leaves no end, which is looked for below.
        let Ok(frame) = frame else { break };
        if let Ok(bytes) = frame.into_data() {
            writing.take(&bytes).map_err(|error| place.failed(error))?;
        }
    }
    let written = writing.end(&place)?;
    for epochs in written.epochs.chunks(EPOCHS_AT_ONCE) {
        let noted = ExportedRequest {
            epochs: epochs.to_vec(),
        };
        let _: ExportedAnswer = client.post("/v1/spool/exported", &noted).await?;
    }
    say(&place, &written, number(EXPORT_UNSIGNED_HEADER))?;
    Ok(())
}

fn say(place: &Place, written: &Written, unsigned: u64) -> io::Result<()> {
    writeln!(io::stdout(), "{}", place.file.display())?;
    let mut prose = io::stderr();
    writeln!(
        prose,
        "{} batches of {} epochs, {}. They stay here until the service acknowledges them.\n\
         Next, where the service runs: gateway-cloud open FILE",
        written.batches,
        written.epochs.len(),
        screen::size(written.bytes)
    )?;
    if 0 < unsigned {
        writeln!(
            prose,
            "{unsigned} epochs are not in it: the TPM has not signed for them yet\n\
             do: gatewayctl check tpm; then gatewayctl spool export --new"
        )?;
    }
    if EXPORT_BYTES_MAX <= written.bytes {
        writeln!(
            prose,
            "There is more than one file holds\ndo: gatewayctl spool export --new"
        )?;
    }
    Ok(())
}

/// Where the file goes.
struct Place {
    file: PathBuf,
    /// What it is called until it is whole.
    part: PathBuf,
    folder: PathBuf,
}

impl Place {
    fn choose(to: &Path, service: Option<&str>) -> Result<Self, Failure> {
        let file = if to.is_dir() {
            let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
            to.join(format!("{}-{now}.sealed", service.unwrap_or("gateway")))
        } else {
            to.to_owned()
        };
        if file.exists() {
            return Err(refused(&file, "it exists already", "name another file"));
        }
        let folder = match file.parent() {
            Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
            Some(folder) => folder.to_owned(),
            None => {
                return Err(refused(
                    &file,
                    "it is no name of a file",
                    "name another file",
                ));
            }
        };
        let mut part = file.clone().into_os_string();
        part.push(".part");
        Ok(Self {
            part: part.into(),
            file,
            folder,
        })
    }

    /// Says why the file could not be written; what was written of it is removed.
    fn failed(&self, error: io::Error) -> Failure {
        let _ = fs::remove_file(&self.part);
        let kind = error.kind();
        let advice = if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            "make room, or take another stick"
        } else if kind == ErrorKind::PermissionDenied {
            "use sudo, or another folder"
        } else if kind == ErrorKind::ReadOnlyFilesystem {
            "the stick is write-protected: take off its lock"
        } else {
            "is the stick still there? try again"
        };
        refused(&self.file, &error.to_string(), advice)
    }
}

fn refused(file: &Path, why: &str, advice: &str) -> Failure {
    let file = file.display();
    Failure::Export(format!(
        "error: cannot write the export: {why}\nat: {file}\ndo: {advice}"
    ))
}

/// A file under way.
struct Writing {
    file: File,
    pieces: Pieces,
    seen: u64,
    promised: Option<u64>,
    epochs: BTreeMap<[u8; 32], u32>,
    batches: u64,
    bytes: u64,
    bytes_expected: u64,
    progress: Progress,
}

/// A file that is on its medium.
struct Written {
    epochs: Vec<(String, u32)>,
    batches: u64,
    bytes: u64,
}

impl Writing {
    fn begin(place: &Place, bytes_expected: u64) -> Result<Self, Failure> {
        let file = File::create(&place.part).map_err(|error| place.failed(error))?;
        Ok(Self {
            file,
            pieces: Pieces::default(),
            seen: 0,
            promised: None,
            epochs: BTreeMap::new(),
            batches: 0,
            bytes: 0,
            bytes_expected,
            progress: Progress::default(),
        })
    }

    /// Writes what came, and takes note of what is in it.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        self.pieces.push(bytes);
        while let Some(Ok(piece)) = self.pieces.poll() {
            match piece {
                Piece::End { pieces } => self.promised = Some(pieces),
                Piece::Batch(batch) => {
                    self.seen += 1;
                    self.batches += 1;
                    if let Ok(sealed) = SealedBatch::decode(&batch) {
                        let next = self.epochs.entry(sealed.epoch_id).or_default();
                        *next = (*next).max(sealed.number.saturating_add(1));
                    }
                }
                Piece::Label(_) | Piece::Header(_) | Piece::OtherVersion => self.seen += 1,
            }
        }
        self.progress.show(self.bytes, self.bytes_expected)
    }

    /// Sees to it that all of it is on the medium under its name.
    fn end(self, place: &Place) -> Result<Written, Failure> {
        self.progress.clear().map_err(|error| place.failed(error))?;
        if self.promised != Some(self.seen) {
            let broken = io::Error::other("the daemon broke off");
            return Err(place.failed(broken));
        }
        let durable = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&place.part, &place.file)?;
            File::open(&place.folder)?.sync_all()
        };
        durable().map_err(|error| place.failed(error))?;
        let epochs = self.epochs.iter();
        Ok(Written {
            epochs: epochs
                .map(|(epoch, next)| (HEXLOWER.encode(epoch), *next))
                .collect(),
            batches: self.batches,
            bytes: self.bytes,
        })
    }
}

/// How far it is, on a terminal, after a second.
struct Progress {
    began: Instant,
    shown: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            shown: None,
        }
    }
}

impl Progress {
    fn show(&mut self, bytes: u64, of_bytes: u64) -> io::Result<()> {
        let due = self.shown.unwrap_or(self.began).elapsed() >= PROGRESS_INTERVAL;
        if !due || !io::stderr().is_terminal() {
            return Ok(());
        }
        self.shown = Some(Instant::now());
        let (done, all) = (screen::size(bytes), screen::size(of_bytes));
        write!(io::stderr(), "\r{done} of about {all} ")
    }

    fn clear(&self) -> io::Result<()> {
        match self.shown {
            // EL of ECMA-48: the line is empty again.
            Some(_) => write!(io::stderr(), "\r\u{1b}[K"),
            None => Ok(()),
        }
    }
}

const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// So that a request stays below the daemon's bound of 16 KiB.
const EPOCHS_AT_ONCE: usize = 128;
