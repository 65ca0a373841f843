//! Durations and sizes as text: a whole number with its unit, `"500ms"` or `"64MiB"`.

use wire::Decimal;

/// A kind of quantity: its units, each as a multiple of the smallest.
pub(super) struct Kind {
    /// What it is called, with an article.
    pub(super) name: &'static str,
    /// How it is written.
    pub(super) like: &'static str,
    /// From small to large.
    units: &'static [(&'static str, u64)],
    /// What a number without unit most likely means.
    usual: u64,
}

/// Durations, in milliseconds.
pub(super) const DURATION: Kind = Kind {
    name: "a duration",
    like: r#""500ms", "30s", "1min", "1h" or "7d""#,
    units: &[
        ("ms", 1),
        ("s", 1000),
        ("min", 60 * 1000),
        ("h", 60 * 60 * 1000),
        ("d", 24 * 60 * 60 * 1000),
    ],
    usual: 1000,
};

/// Sizes, in bytes.
pub(super) const SIZE: Kind = Kind {
    name: "a size",
    like: r#""512KiB", "64MiB" or "1GiB""#,
    units: &[
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ],
    usual: 1 << 20,
};

impl Kind {
    /// Reads `text`; `None` if it is not a whole number and a unit, or is more than 64 bits hold.
    pub(super) fn parse(&self, text: &str) -> Option<u64> {
        let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit())?);
        let (_, multiple) = self.units.iter().find(|(name, _)| *name == unit)?;
        number.parse::<u64>().ok()?.checked_mul(*multiple)
    }

    /// Writes `value` with the largest unit of which it is a multiple.
    pub(super) fn write(&self, value: u64) -> String {
        let units = self.units.iter().rev();
        let mut fitting = units.filter(|(_, multiple)| value.is_multiple_of(*multiple));
        match fitting.next() {
            Some((name, multiple)) if value != 0 => format!("{}{name}", value / multiple),
            Some(_) | None => format!("0{}", self.unit_of_zero()),
        }
    }

    /// What somebody may have meant who wrote a number without unit: in the usual unit if that
    /// `fits`, else in the smallest that does.
    pub(super) fn meant(&self, number: &str, fits: impl Fn(u64) -> bool) -> Option<String> {
        let number = Decimal::parse(number)?;
        let multiples = self.units.iter().map(|(_, multiple)| *multiple);
        let mut values = std::iter::once(self.usual)
            .chain(multiples)
            .filter_map(|multiple| {
                let value = number.checked_mul(i64::try_from(multiple).ok()?.into())?;
                whole(value)
            });
        let value = values.find(|value| fits(*value))?;
        Some(self.write(value))
    }

    fn unit_of_zero(&self) -> &'static str {
        let mut units = self.units.iter();
        let usual = units.find(|(_, multiple)| *multiple == self.usual);
        usual.map_or("", |(name, _)| name)
    }
}

/// The number, if it has no fraction and fits.
fn whole(number: Decimal) -> Option<u64> {
    let power = 10_u64.checked_pow(u32::try_from(number.exponent()).ok()?)?;
    u64::try_from(number.mantissa()).ok()?.checked_mul(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_whole_numbers_with_a_unit() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("1min", 60_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(DURATION.parse(text), Some(milliseconds), "{text}");
            assert_eq!(DURATION.write(milliseconds), text);
        }
        assert_eq!(SIZE.parse("4MiB"), Some(4_194_304));
        assert_eq!(SIZE.parse("1TiB"), Some(1_099_511_627_776));
        assert_eq!(SIZE.write(512 << 20), "512MiB");
        for text in [
            "",
            "5",
            "s",
            "1.5h",
            "-1s",
            "+1s",
            "1 s",
            "1S",
            "1sec",
            "99999999999999999d",
        ] {
            assert_eq!(DURATION.parse(text), None, "{text}");
        }
        assert_eq!(SIZE.parse("64MB"), None);
    }

    #[test]
    fn a_bare_number_is_guessed_by_its_bounds() {
        let guess = |number| DURATION.meant(number, |it| (1000..=3_600_000).contains(&it));
        assert_eq!(guess("5").as_deref(), Some("5s"));
        assert_eq!(guess("1.5").as_deref(), Some("1500ms"));
        assert_eq!(guess("5000").as_deref(), Some("5s"));
        assert_eq!(guess("0"), None);
        assert_eq!(guess("-5"), None);
        let guess = |number| SIZE.meant(number, |it| (4 << 20..=1 << 40).contains(&it));
        assert_eq!(guess("256").as_deref(), Some("256MiB"));
        assert_eq!(guess("268435456").as_deref(), Some("256MiB"));
    }
}
