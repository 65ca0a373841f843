//! The kinds of values, each with its bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};
use wire::Decimal;

use super::quantity::{self, Kind};
use super::table::{At, Table, kind_of};
use super::words::{instead, quoted};

/// What a duration may be: within the bounds, and perhaps zero instead.
pub(super) struct Span {
    pub(super) bounds: RangeInclusive<Duration>,
    pub(super) or_zero: bool,
}

impl<'f> Table<'f> {
    /// A text that may be anything.
    pub(super) fn text(&mut self, key: &'static str) -> Option<At<'f, &'f str>> {
        let value = self.find(key)?;
        self.string(value, key, "a string")
    }

    /// A text that `parse` takes; `want` says what it is, `like` how it is written.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Option<T>,
        (want, like): (&str, &str),
    ) -> Option<At<'f, T>> {
        let value = self.find(key)?;
        let text = self.string(value, key, want)?;
        self.parse(text, key, parse, (want, like))
    }

    /// A list of texts, each as in [`parsed`](Self::parsed).
    pub(super) fn parsed_list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Option<T>,
        (want, like): (&str, &str),
    ) -> Option<Vec<At<'f, T>>> {
        let values = self.list(key)?;
        let parsed = values.into_iter().filter_map(|value| {
            let text = self.string(value, key, want)?;
            self.parse(text, key, &parse, (want, like))
        });
        Some(parsed.collect())
    }

    /// The name of the item that the table describes. Required; returned even if it is none, so
    /// that others can refer to it.
    pub(super) fn item_name(&mut self) -> Option<At<'f, &'f str>> {
        if !self.has("name") {
            self.missing("name", r#"name = "...""#);
        }
        let name = self.text("name")?;
        self.check_name(name, "name");
        Some(name)
    }

    /// Notes it if `name` is none.
    pub(super) fn check_name(&self, name: At<'f, &'f str>, key: &str) -> bool {
        let fine = wire::is_name(name.it);
        if !fine {
            let found = quoted(name.it);
            let why = format!(
                "{found} is no name; write 1 to 63 of a-z 0-9 _ - that begin with a letter or digit"
            );
            self.wrong(name.place, key, why);
        }
        fine
    }

    /// One of `words`. Those in `later` exist, but not in this version.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        later: &[&str],
    ) -> Option<At<'f, T>> {
        let text = self.text(key)?;
        let place = text.place;
        if let Some((_, it)) = words.iter().find(|(word, _)| *word == text.it) {
            return Some(At { it: *it, place });
        }
        let found = quoted(text.it);
        let known = words.iter().map(|(word, _)| *word);
        let why = if later.contains(&text.it) {
            let known: Vec<_> = known.collect();
            let known = known.join(", ");
            format!("{found} is not supported by this version; there are: {known}")
        } else {
            format!("{found} is unknown{}", instead(text.it, known))
        };
        self.wrong(place, key, why);
        None
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.find(key)?;
        let found = value.it.as_bool();
        if found.is_none() {
            let why = format_args!("wants true or false, not {}", kind_of(value.it));
            self.wrong(value.place, key, why);
        }
        found
    }

    /// A whole number within `bounds`.
    pub(super) fn integer<T>(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<T>,
    ) -> Option<At<'f, T>>
    where
        T: TryFrom<i128> + PartialOrd + std::fmt::Display,
    {
        let value = self.find(key)?;
        self.bounded(value, key, &bounds)
    }

    /// A list of whole numbers, each within `bounds`.
    pub(super) fn integers<T>(
        &mut self,
        key: &'static str,
        bounds: &RangeInclusive<T>,
    ) -> Option<Vec<At<'f, T>>>
    where
        T: TryFrom<i128> + PartialOrd + std::fmt::Display,
    {
        let values = self.list(key)?;
        let found = values
            .into_iter()
            .filter_map(|value| self.bounded(value, key, bounds));
        Some(found.collect())
    }

    /// An exact decimal number.
    pub(super) fn decimal(&mut self, key: &'static str) -> Option<At<'f, Decimal>> {
        let value = self.find(key)?;
        self.exact(value, key)
    }

    /// Two exact decimal numbers, the smaller one first.
    pub(super) fn decimal_range(&mut self, key: &'static str) -> Option<(Decimal, Decimal)> {
        let whole = self.find(key)?;
        let list = self.list(key)?;
        let [min, max] = *list.as_slice() else {
            self.wrong(
                whole.place,
                key,
                "wants two numbers; write [SMALLEST, LARGEST]",
            );
            return None;
        };
        let (min, max) = (self.exact(min, key), self.exact(max, key));
        let (min, max) = (min?.it, max?.it);
        if max < min {
            let why = format_args!("begins above its end; write [{max}, {min}]");
            self.wrong(whole.place, key, why);
        }
        Some((min, max))
    }

    /// A duration.
    pub(super) fn duration(&mut self, key: &'static str, span: &Span) -> Option<Duration> {
        let milliseconds = |it: &Duration| u64::try_from(it.as_millis()).unwrap_or(u64::MAX);
        let bounds = milliseconds(span.bounds.start())..=milliseconds(span.bounds.end());
        let found = self.quantity(key, &quantity::DURATION, &bounds, span.or_zero)?;
        Some(Duration::from_millis(found))
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, key: &'static str, bounds: &RangeInclusive<u64>) -> Option<u64> {
        self.quantity(key, &quantity::SIZE, bounds, false)
    }

    /// The values of a list.
    pub(super) fn list(&mut self, key: &'static str) -> Option<Vec<At<'f, &'f DeValue<'f>>>> {
        let value = self.find(key)?;
        let Some(list) = value.it.as_array() else {
            let why = format_args!("wants a list, not {}; put it in [ ]", kind_of(value.it));
            self.wrong(value.place, key, why);
            return None;
        };
        Some(list.iter().map(|value| self.at(value)).collect())
    }

    /// Takes the text of a value.
    fn string(
        &self,
        value: At<'f, &'f DeValue<'f>>,
        key: &str,
        want: &str,
    ) -> Option<At<'f, &'f str>> {
        let Some(it) = value.it.as_str() else {
            let why = format_args!("wants {want} in quotation marks, not {}", kind_of(value.it));
            self.wrong(value.place, key, why);
            return None;
        };
        let place = value.place;
        Some(At { it, place })
    }

    fn parse<T>(
        &self,
        text: At<'f, &'f str>,
        key: &str,
        parse: impl Fn(&str) -> Option<T>,
        (want, like): (&str, &str),
    ) -> Option<At<'f, T>> {
        let Some(it) = parse(text.it) else {
            let why = format!("{} is not {want}; write {like}", quoted(text.it));
            self.wrong(text.place, key, why);
            return None;
        };
        let place = text.place;
        Some(At { it, place })
    }

    fn bounded<T>(
        &self,
        value: At<'f, &'f DeValue<'f>>,
        key: &str,
        bounds: &RangeInclusive<T>,
    ) -> Option<At<'f, T>>
    where
        T: TryFrom<i128> + PartialOrd + std::fmt::Display,
    {
        let Some(number) = value.it.as_integer() else {
            let why = format_args!("wants a whole number, not {}", kind_of(value.it));
            self.wrong(value.place, key, why);
            return None;
        };
        let found = whole(number).and_then(|number| T::try_from(number).ok());
        let Some(it) = found.filter(|number| bounds.contains(number)) else {
            let (min, max) = (bounds.start(), bounds.end());
            let why = format!("{number} is out of bounds; write {min} to {max}");
            self.wrong(value.place, key, why);
            return None;
        };
        let place = value.place;
        Some(At { it, place })
    }

    /// The number exactly as it is written: a binary fraction in between would change it.
    fn exact(&self, value: At<'f, &'f DeValue<'f>>, key: &str) -> Option<At<'f, Decimal>> {
        let place = value.place;
        let found = match value.it {
            DeValue::Integer(number) => exact_whole(number),
            DeValue::Float(number) => Decimal::parse(number.as_str()),
            DeValue::String(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => {
                let why = format_args!("wants a number, not {}", kind_of(value.it));
                self.wrong(place, key, why);
                return None;
            }
        };
        if found.is_none() {
            self.wrong(
                place,
                key,
                "is not a number that can be kept exactly; write fewer digits",
            );
        }
        found.map(|it| At { it, place })
    }

    fn quantity(
        &mut self,
        key: &'static str,
        kind: &Kind,
        bounds: &RangeInclusive<u64>,
        or_zero: bool,
    ) -> Option<u64> {
        let value = self.find(key)?;
        let fits = |value| bounds.contains(&value) || or_zero && value == 0;
        let bare = match value.it {
            DeValue::Integer(number) => Some(number.to_string()),
            DeValue::Float(number) => Some(number.to_string()),
            DeValue::String(text) => text
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.to_string())
                .filter(|text| !text.is_empty()),
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                None
            }
        };
        if let Some(number) = bare {
            let meant = kind.meant(&number, fits).map(|text| quoted(&text));
            let meant = meant.unwrap_or_else(|| format!("it like {}", kind.like));
            let shown = quoted(&number);
            let shown = if value.it.is_str() {
                &shown
            } else {
                shown.trim_matches('"')
            };
            let why = format!("{shown} is a bare number; write {meant}");
            self.wrong(value.place, key, why);
            return None;
        }

        let text = self.string(value, key, kind.name)?;
        let like = format!("it like {}", kind.like);
        let found = self.parse(text, key, |text| kind.parse(text), (kind.name, &like))?;
        if !fits(found.it) {
            let (min, max) = (kind.write(*bounds.start()), kind.write(*bounds.end()));
            let zero = if or_zero {
                format!("{}, or ", kind.write(0))
            } else {
                String::new()
            };
            let found = quoted(text.it);
            let why = format!("{found} is out of bounds; write {zero}{min} to {max}");
            self.wrong(text.place, key, why);
        }
        Some(found.it)
    }
}

fn exact_whole(number: &DeInteger<'_>) -> Option<Decimal> {
    Some(i64::try_from(whole(number)?).ok()?.into())
}

/// The number, wide enough for all that 64 bits can mean.
fn whole(number: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}
