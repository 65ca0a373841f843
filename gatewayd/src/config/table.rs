//! One TOML table: which keys it has, which were asked for, and how its mistakes are told.

use std::fmt::Display;

use toml::de::{DeTable, DeValue};

use super::mistakes::{File, Notebook, Place};
use super::words::{instead, quoted};

/// A table of a file, read key by key.
///
/// Each method that asks for a key notes what is wrong with its value, and then returns nothing;
/// [`finish`](Self::finish) notes the keys for which nobody asked. A caller may go on with any
/// value in place of a wrong one: once a mistake is noted there will be no configuration.
pub(super) struct Table<'f> {
    file: &'f File,
    notebook: &'f Notebook,
    entries: &'f DeTable<'f>,
    place: Place<'f>,
    owner: Owner,
    asked: Vec<&'static str>,
}

/// How the keys of a table are told.
#[derive(Clone, Default)]
struct Owner {
    /// The bus, sensor or service they belong to, such as `sensor "climate"`.
    item: Option<String>,
    /// The tables between that, or the file, and the key, such as `spool.`.
    prefix: String,
}

/// Something with the place where it was found.
#[derive(Clone, Copy)]
pub(super) struct At<'f, T> {
    pub(super) it: T,
    pub(super) place: Place<'f>,
}

impl<'f> Table<'f> {
    /// The whole of a file.
    pub(super) fn root(file: &'f File, notebook: &'f Notebook, entries: &'f DeTable<'f>) -> Self {
        Self {
            file,
            notebook,
            entries,
            place: file.place(0),
            owner: Owner::default(),
            asked: Vec::new(),
        }
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> Place<'f> {
        self.place
    }

    /// The bus, sensor or service that the table describes, as mistakes name it.
    pub(super) fn item(&self) -> String {
        self.owner.item.clone().unwrap_or_default()
    }

    /// Names the item by what its `name` says, whether or not that may be a name.
    pub(super) fn named(mut self, noun: &str) -> Self {
        let name = self.entries.get("name").map(|name| name.get_ref());
        self.owner.item = Some(match name.and_then(DeValue::as_str) {
            Some(name) => format!("{noun} {}", quoted(name)),
            None => noun.to_owned(),
        });
        self
    }

    /// The value of `key`.
    pub(super) fn find(&mut self, key: &'static str) -> Option<At<'f, &'f DeValue<'f>>> {
        self.asked.push(key);
        let value = self.entries.get(key)?;
        Some(self.at(value))
    }

    /// Whether `key` is there; asks for it no further.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// A value inside a value of this table.
    pub(super) fn at(&self, value: &'f toml::Spanned<DeValue<'f>>) -> At<'f, &'f DeValue<'f>> {
        At {
            it: value.get_ref(),
            place: self.file.place(value.span().start),
        }
    }

    /// Notes a mistake in the value of `key`; `why` follows the key.
    pub(super) fn wrong(&self, place: Place<'f>, key: &str, why: impl Display) {
        let Owner { item, prefix } = &self.owner;
        let text = match item {
            Some(item) => format!("{item}: {prefix}{key} {why}"),
            None => format!("{prefix}{key}: {why}"),
        };
        self.notebook.note(place, text);
    }

    /// Notes that `key` is not there, and what to write.
    pub(super) fn missing(&self, key: &str, like: &str) {
        self.wrong(self.place, key, format_args!("is missing; write {like}"));
    }

    /// The table `key` in this one; `None` if it is not there.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Self> {
        let value = self.find(key)?;
        let mut inner = self.inner(value, key)?;
        inner.owner.prefix = format!("{}{key}.", self.owner.prefix);
        Some(inner)
    }

    /// The tables `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.find(key) else {
            return Vec::new();
        };
        let Some(list) = value.it.as_array() else {
            let kind = kind_of(value.it);
            let why = format_args!("wants a list of tables, not {kind}; write [[{key}]]");
            self.wrong(value.place, key, why);
            return Vec::new();
        };
        let inner = list
            .iter()
            .filter_map(|value| self.inner(self.at(value), key));
        inner.map(|table| table.named(key)).collect()
    }

    /// The tables in the table `key`, by names that people choose.
    pub(super) fn named_tables(&mut self, key: &'static str) -> Vec<(At<'f, &'f str>, Self)> {
        let Some(outer) = self.find(key) else {
            return Vec::new();
        };
        let Some(table) = self.inner(outer, key) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in table.entries {
            let place = self.file.place(name.span().start);
            let name = name.get_ref().as_ref();
            if let Some(inner) = self.inner(self.at(value), &format!("{key}.{name}")) {
                found.push((At { it: name, place }, inner));
            }
        }
        found
    }

    /// Notes each of `keys` that is there, with why it must not be.
    pub(super) fn refuse(&mut self, keys: &[&'static str], why: impl Display) {
        for key in keys {
            self.asked.push(key);
            if let Some((key, _)) = self.entries.get_key_value(*key) {
                let place = self.file.place(key.span().start);
                self.wrong(place, key.get_ref(), &why);
            }
        }
    }

    /// Notes each key for which nobody asked.
    pub(super) fn finish(self) {
        for key in self.entries.keys() {
            let name = key.get_ref().as_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let Owner { item, prefix } = &self.owner;
            let item = item
                .as_ref()
                .map(|item| format!("{item}: "))
                .unwrap_or_default();
            // A key may hold anything if it is in quotation marks.
            let shown = if is_bare(name) {
                name.to_owned()
            } else {
                quoted(name)
            };
            let instead = instead(name, self.asked.iter().copied());
            let text = format!("{item}{prefix}{shown}: unknown key{instead}");
            self.notebook.note(self.file.place(key.span().start), text);
        }
    }

    fn inner(&self, value: At<'f, &'f DeValue<'f>>, key: &str) -> Option<Self> {
        let Some(entries) = value.it.as_table() else {
            let why = format_args!("wants a table, not {}", kind_of(value.it));
            self.wrong(value.place, key, why);
            return None;
        };
        Some(Self {
            file: self.file,
            notebook: self.notebook,
            entries,
            place: value.place,
            owner: self.owner.clone(),
            asked: Vec::new(),
        })
    }
}

/// What a value is, in words, with an article.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Whether TOML lets the key stand without quotation marks, and it is of sensible length.
fn is_bare(key: &str) -> bool {
    key.len() <= wire::NAME_BYTES_MAX
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Why a key that exists elsewhere is refused here.
pub(super) const LATER: &str = "is not supported by this version; leave it out";
