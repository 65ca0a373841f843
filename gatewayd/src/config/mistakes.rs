//! Where a mistake is, and how it is told.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use toml::de::DeTable;

/// Every mistake in the configuration, in the order of files and lines; at least one.
///
/// Displays as one line each, then how many there are; no line break at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Goes through them in the order of files and lines.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        let files: BTreeSet<_> = self.0.iter().map(|mistake| &mistake.path).collect();
        let mistakes = counted(self.0.len(), "mistake");
        write!(f, "{mistakes} in {}.", counted(files.len(), "file"))
    }
}

/// One mistake; displays as `FILE:LINE: KEY: WHY; WHAT TO DO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file it is in.
    pub path: PathBuf,
    /// The line it is on, from 1.
    pub line: usize,
    /// What is wrong with which key, and what to do.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.text)
    }
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// One file of the configuration, as it was read.
pub(super) struct File {
    path: PathBuf,
    text: String,
    /// Why there is more of the file than `text`.
    cut: Option<&'static str>,
    /// Where each line begins.
    lines: Vec<usize>,
    /// Its place in the order of the files.
    number: usize,
}

impl File {
    /// Takes the bytes of the `number`th file, up to the first that is not text.
    pub(super) fn new(number: usize, path: PathBuf, mut bytes: Vec<u8>) -> Self {
        let mut cut = None;
        if BYTES_MAX < bytes.len() {
            bytes.clear();
            cut = Some("the file has more than 4 MiB; is it the right one?");
        }
        let text = String::from_utf8(bytes).unwrap_or_else(|error| {
            cut = Some("this is not UTF-8; save the file as UTF-8");
            let (fine, mut bytes) = (error.utf8_error().valid_up_to(), error.into_bytes());
            bytes.truncate(fine);
            String::from_utf8(bytes).unwrap_or_default()
        });
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Self {
            path,
            text,
            cut,
            lines,
            number,
        }
    }

    /// Reads it as TOML; notes the first place where it is none.
    pub(super) fn parse(&self, notebook: &Notebook) -> Option<DeTable<'_>> {
        if let Some(why) = self.cut {
            notebook.note(self.place(self.text.len()), why.to_owned());
            return None;
        }
        match DeTable::parse(&self.text) {
            Ok(table) => Some(table.into_inner()),
            Err(error) => {
                let offset = error.span().map_or(self.text.len(), |span| span.start);
                let why = error.message().replace('\n', " ");
                notebook.note(self.place(offset), format!("this is not TOML: {why}"));
                None
            }
        }
    }

    /// The place of the byte at `offset`.
    pub(super) fn place(&self, offset: usize) -> Place<'_> {
        Place { file: self, offset }
    }
}

/// A place in a file.
#[derive(Clone, Copy)]
pub(super) struct Place<'f> {
    file: &'f File,
    offset: usize,
}

impl Place<'_> {
    /// The line, from 1.
    fn line(self) -> usize {
        self.file.lines.partition_point(|line| *line <= self.offset)
    }

    /// How a mistake at `from` refers to this place: `line 33`, with the file if it is another.
    pub(super) fn seen_from(self, from: Place<'_>) -> String {
        if self.file.number == from.file.number {
            format!("line {}", self.line())
        } else {
            format!("{}:{}", self.file.path.display(), self.line())
        }
    }
}

/// Where all readers write down the mistakes they find.
#[derive(Default)]
pub(super) struct Notebook(RefCell<Vec<((usize, usize), Mistake)>>);

impl Notebook {
    /// Notes a mistake.
    pub(super) fn note(&self, place: Place<'_>, text: String) {
        let mistake = Mistake {
            path: place.file.path.clone(),
            line: place.line(),
            text,
        };
        let order = (place.file.number, place.offset);
        self.0.borrow_mut().push((order, mistake));
    }

    /// Returns all of them in the order of the files; `None` if there is none.
    pub(super) fn close(&self) -> Option<Mistakes> {
        let mut found = self.0.take();
        // Stable: what is wrong at one place stays in the order in which it was found.
        found.sort_by_key(|(order, _)| *order);
        let found: Vec<_> = found.into_iter().map(|(_, mistake)| mistake).collect();
        (!found.is_empty()).then_some(Mistakes(found))
    }
}

/// Thousands of sensors; more is not a configuration.
pub(super) const BYTES_MAX: usize = 4 << 20;
