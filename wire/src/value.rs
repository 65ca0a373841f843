use std::cmp::Ordering;
use std::fmt;

use data_encoding::HEXLOWER;

/// What a sensor said.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing: the sensor has no value for this channel now.
    Null,
    /// A switch, a contact, an alarm.
    Bool(bool),
    /// An exact whole number.
    Integer(i64),
    /// An exact decimal number, such as a scaled register.
    Decimal(Decimal),
    /// A number that the sensor itself sends as binary floating point.
    ///
    /// NaN and infinities travel, but no JSON number can show them; every NaN travels as the same.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes that nobody has interpreted.
    Bytes(Vec<u8>),
}

/// As people read it: numbers in full, bytes in hexadecimal, nothing as a dash.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => formatter.pad("-"),
            Self::Bool(value) => value.fmt(formatter),
            Self::Integer(value) => value.fmt(formatter),
            Self::Decimal(value) => value.fmt(formatter),
            Self::Float(value) => value.fmt(formatter),
            Self::Text(value) => value.fmt(formatter),
            Self::Bytes(value) => formatter.pad(&HEXLOWER.encode(value)),
        }
    }
}

/// An exact decimal number: mantissa × 10^exponent.
///
/// Kept without trailing zeros, so numbers are equal exactly when their parts are: `1.50` and `1.5`
/// are one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decimal {
    mantissa: i64,
    exponent: i8,
}

impl Decimal {
    /// Makes `mantissa` × 10^`exponent`.
    #[must_use]
    pub const fn new(mut mantissa: i64, mut exponent: i8) -> Self {
        if mantissa == 0 {
            exponent = 0;
        }
        while mantissa != 0 && mantissa % 10 == 0 && exponent < i8::MAX {
            mantissa /= 10;
            exponent += 1;
        }
        Self { mantissa, exponent }
    }

    /// Reads a number as people and TOML write it: `-12`, `0.1`, `1e-3`.
    ///
    /// `None` if it is no decimal number, or does not fit exactly.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i16>().ok()?),
            None => (text, 0),
        };
        let (sign, digits) = match number.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        if whole.is_empty() || fraction.is_empty() {
            return None;
        }
        let digits = [whole, fraction].concat();
        let significant = digits.trim_end_matches('0');

        let mut mantissa = 0_i128;
        for digit in significant.chars() {
            let digit = i128::from(digit.to_digit(10)?);
            mantissa = mantissa.checked_mul(10)?.checked_add(digit)?;
        }
        let zeros = i16::try_from(digits.len() - significant.len()).ok()?;
        let places = i16::try_from(fraction.len()).ok()?;
        let exponent = exponent.checked_add(zeros)?.checked_sub(places)?;
        Self::from_parts(sign * mantissa, exponent)
    }

    /// The mantissa, which does not end in zero unless the number is 0.
    #[must_use]
    pub const fn mantissa(self) -> i64 {
        self.mantissa
    }

    /// The power of ten.
    #[must_use]
    pub const fn exponent(self) -> i8 {
        self.exponent
    }

    /// The exact product, or `None` if it does not fit.
    #[must_use]
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        Self::from_parts(
            i128::from(self.mantissa) * i128::from(other.mantissa),
            i16::from(self.exponent) + i16::from(other.exponent),
        )
    }

    /// The exact sum, or `None` if it does not fit.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        if self.mantissa == 0 {
            return Some(other);
        }
        if other.mantissa == 0 {
            return Some(self);
        }
        let exponent = self.exponent.min(other.exponent);
        let sum = self
            .mantissa_at(exponent)?
            .checked_add(other.mantissa_at(exponent)?)?;
        Self::from_parts(sum, exponent.into())
    }

    /// The nearest binary floating point number.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        // The standard library's parser rounds once; a multiplication would round twice. It takes
        // every number written like this, so NaN never appears.
        format!("{}e{}", self.mantissa, self.exponent)
            .parse()
            .unwrap_or(f64::NAN)
    }

    /// Brings a wide result into range, without changing its value.
    fn from_parts(mut mantissa: i128, mut exponent: i16) -> Option<Self> {
        if mantissa == 0 {
            return Some(Self::new(0, 0));
        }
        while mantissa % 10 == 0
            && (i64::try_from(mantissa).is_err() || exponent < i16::from(i8::MIN))
        {
            mantissa /= 10;
            exponent += 1;
        }
        while i16::from(i8::MAX) < exponent {
            mantissa = mantissa.checked_mul(10)?;
            exponent -= 1;
        }
        Some(Self::new(
            i64::try_from(mantissa).ok()?,
            i8::try_from(exponent).ok()?,
        ))
    }

    /// The mantissa of the same number at a smaller exponent.
    fn mantissa_at(self, exponent: i8) -> Option<i128> {
        let places = u32::try_from(i16::from(self.exponent) - i16::from(exponent)).ok()?;
        10_i128
            .checked_pow(places)?
            .checked_mul(i128::from(self.mantissa))
    }
}

impl From<i64> for Decimal {
    fn from(value: i64) -> Self {
        Self::new(value, 0)
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_sign = self.mantissa.signum().cmp(&other.mantissa.signum());
        if by_sign != Ordering::Equal || self.mantissa == 0 {
            return by_sign;
        }
        let exponent = self.exponent.min(other.exponent);
        match (self.mantissa_at(exponent), other.mantissa_at(exponent)) {
            (Some(left), Some(right)) => left.cmp(&right),
            // One of the two is at `exponent` already, so it fits; the other is out of i128's
            // range, and so the one of larger magnitude.
            (None, _) if 0 < self.mantissa => Ordering::Greater,
            (None, _) => Ordering::Less,
            (_, None) if 0 < self.mantissa => Ordering::Less,
            (_, None) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// In full, without exponent: `-0.05`, `21.5`, `1200`.
impl fmt::Display for Decimal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = self.mantissa.unsigned_abs().to_string();
        match usize::from(self.exponent.unsigned_abs()) {
            zeros if 0 < self.exponent => digits.push_str(&"0".repeat(zeros)),
            0 => {}
            places => {
                if digits.len() <= places {
                    digits.insert_str(0, &"0".repeat(places + 1 - digits.len()));
                }
                digits.insert(digits.len() - places, '.');
            }
        }
        formatter.pad_integral(0 <= self.mantissa, "", &digits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_read_and_show_what_people_write() {
        for (text, shown) in [
            ("0.1", "0.1"),
            ("-0.05", "-0.05"),
            ("+3", "3"),
            ("21.50", "21.5"),
            ("1200", "1200"),
            ("1e-3", "0.001"),
            ("-2.5E3", "-2500"),
            ("0.000", "0"),
            ("-0", "0"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("0.10000000000000000000000000000000000000000", "0.1"),
        ] {
            assert_eq!(Decimal::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_exact_decimal_is_refused() {
        for text in [
            "",
            "-",
            "+",
            ".",
            ".5",
            "5.",
            "1.2.3",
            "e3",
            "1e",
            "1e+-3",
            "--1",
            "+-1",
            "0x10",
            "1_000",
            " 1",
            "1 ",
            "nan",
            "inf",
            "٣",
            "9223372036854775808",
            "1e146",
            "1e-129",
            "1e99999",
            "1.00000000000000000001",
        ] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn extremes_are_kept_exactly() {
        for (mantissa, exponent) in [(i64::MAX, 127), (i64::MIN, -128), (10, 127), (1, -128)] {
            let number = Decimal::new(mantissa, exponent);
            assert_eq!(Decimal::parse(&number.to_string()), Some(number));
        }
        assert_eq!(Decimal::new(1000, 126), Decimal::new(10_000, 125));
    }

    #[test]
    fn scaling_a_register_is_exact() {
        let scale = Decimal::parse("0.1").unwrap();
        let offset = Decimal::parse("-40").unwrap();

        let value = Decimal::from(617).checked_mul(scale).unwrap();

        assert_eq!(value.checked_add(offset).unwrap().to_string(), "21.7");
    }

    #[test]
    fn results_that_do_not_fit_are_none() {
        let large = Decimal::new(i64::MAX, 100);
        assert_eq!(large.checked_mul(large), None);
        assert_eq!(large.checked_add(Decimal::new(1, -100)), None);
        assert_eq!(
            Decimal::new(1, -100).checked_mul(Decimal::new(1, -100)),
            None
        );
    }

    #[test]
    fn order_is_that_of_the_numbers() {
        let rising = [
            Decimal::new(i64::MIN, 127),
            Decimal::new(-1, 127),
            Decimal::new(i64::MIN, -128),
            Decimal::new(-1, -128),
            Decimal::new(0, 0),
            Decimal::new(1, -128),
            Decimal::new(15, -1),
            Decimal::new(2, 0),
            Decimal::new(i64::MAX, 0),
            Decimal::new(1, 127),
            Decimal::new(i64::MAX, 127),
        ];
        assert!(rising.is_sorted());
        for pair in rising.windows(2) {
            assert_eq!(pair[1].cmp(&pair[0]), Ordering::Greater);
        }
    }

    #[test]
    fn to_f64_rounds_once() {
        for text in ["0.1", "0.3", "21.7", "-123456.789", "9007199254740993"] {
            let nearest: f64 = text.parse().unwrap();
            let value = Decimal::parse(text).unwrap().to_f64();
            assert_eq!(value.to_bits(), nearest.to_bits(), "{text}");
        }
    }

    #[test]
    fn values_show_as_people_read_them() {
        for (value, shown) in [
            (Value::Null, "-"),
            (Value::Bool(true), "true"),
            (Value::Integer(-7), "-7"),
            (Value::Decimal(Decimal::new(2150, -2)), "21.5"),
            (Value::Float(0.25), "0.25"),
            (Value::Text("open".into()), "open"),
            (Value::Bytes(vec![0, 0xab]), "00ab"),
        ] {
            assert_eq!(value.to_string(), shown);
        }
        assert_eq!(
            format!("{:>6}", Value::Decimal(Decimal::new(-5, -1))),
            "  -0.5"
        );
    }

    proptest! {
        /// What is shown reads back as the same number.
        #[test]
        fn display_and_parse_are_inverse(mantissa: i64, exponent: i8) {
            let number = Decimal::new(mantissa, exponent);
            prop_assert_eq!(Decimal::parse(&number.to_string()), Some(number));
        }

        /// No text makes the parser panic.
        #[test]
        fn parse_survives_any_text(text in "[0-9.eE+-]{0,40}|.{0,20}") {
            let _ = Decimal::parse(&text);
        }

        /// The sum and the product are those of the exact integers.
        #[test]
        fn arithmetic_agrees_with_integers(left: i32, right: i32) {
            let sum = Decimal::from(i64::from(left)).checked_add(i64::from(right).into());
            prop_assert_eq!(sum, Some((i64::from(left) + i64::from(right)).into()));
            let product = Decimal::from(i64::from(left)).checked_mul(i64::from(right).into());
            prop_assert_eq!(product, Some((i64::from(left) * i64::from(right)).into()));
        }

        /// Order agrees with floating point wherever that can tell.
        #[test]
        fn order_agrees_with_f64(
            left: (i64, i8),
            right: (i64, i8),
        ) {
            let (left, right) = (Decimal::new(left.0, left.1), Decimal::new(right.0, right.1));
            prop_assert_eq!(left.cmp(&right), right.cmp(&left).reverse());
            if left.to_f64() < right.to_f64() {
                prop_assert_eq!(left.cmp(&right), Ordering::Less);
            }
        }
    }
}
