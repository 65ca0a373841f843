//! Deterministic CBOR (RFC 8949, 4.2.1): each message has one encoding, and no other is accepted.
//!
//! [`Writer`] can write nothing else. [`decode`] reads a message, writes it again and compares, so
//! no reader has to watch for long forms, unsorted keys or duplicates.

use minicbor::data::Type;
use minicbor::decode::{Decoder, Error};
use zeroize::Zeroizing;

use crate::WireError;

/// Something with one encoding.
pub(crate) trait Message: Sized {
    /// Writes it.
    fn write(&self, writer: &mut Writer);

    /// Reads what `write` wrote; may be lenient where writing again would differ.
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError>;
}

/// The one encoding of `message`.
pub(crate) fn encode(message: &impl Message) -> Vec<u8> {
    let mut writer = Writer::default();
    message.write(&mut writer);
    writer.0
}

/// Reads the one encoding of a message.
pub(crate) fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    let mut reader = Reader::new(bytes);
    let message = M::read(&mut reader)?;
    reader.end()?;

    // Tickets and readings pass here, so the copy is wiped; its capacity avoids further copies.
    let mut again = Writer(Vec::with_capacity(bytes.len()));
    message.write(&mut again);
    if *Zeroizing::new(again.0) == bytes {
        Ok(message)
    } else {
        Err(WireError::NotDeterministic)
    }
}

/// As [`decode`], for a message that has at most `bytes_max` bytes.
pub(crate) fn decode_bounded<M: Message>(bytes: &[u8], bytes_max: usize) -> Result<M, WireError> {
    if bytes_max < bytes.len() {
        return Err(WireError::Oversized {
            bytes: bytes.len(),
            bytes_max,
        });
    }
    decode(bytes)
}

/// Writes CBOR in its shortest form.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// A writer that does not move its bytes before there are more than `bytes_max`.
    pub(crate) fn with_capacity(bytes_max: usize) -> Self {
        Self(Vec::with_capacity(bytes_max))
    }

    /// What was written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Writes an item that is encoded already: a map key.
    pub(crate) fn key(&mut self, encoded: &[u8]) -> &mut Self {
        self.0.extend_from_slice(encoded);
        self
    }

    pub(crate) fn uint(&mut self, value: impl Into<u64>) -> &mut Self {
        self.head(UNSIGNED, value.into())
    }

    pub(crate) fn int(&mut self, value: i64) -> &mut Self {
        match u64::try_from(value) {
            Ok(value) => self.head(UNSIGNED, value),
            Err(_) => self.head(NEGATIVE, value.unsigned_abs() - 1),
        }
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.head(BYTES, value.len() as u64);
        self.key(value)
    }

    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        self.head(TEXT, value.len() as u64);
        self.key(value.as_bytes())
    }

    pub(crate) fn array(&mut self, items: usize) -> &mut Self {
        self.head(ARRAY, items as u64)
    }

    pub(crate) fn map(&mut self, pairs: usize) -> &mut Self {
        self.head(MAP, pairs as u64)
    }

    /// An array of `items`, each written by `write`.
    pub(crate) fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) -> &mut Self {
        self.array(items.len());
        for item in items {
            write(self, item);
        }
        self
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.head(SIMPLE, if value { TRUE } else { FALSE })
    }

    pub(crate) fn null(&mut self) -> &mut Self {
        self.head(SIMPLE, NULL)
    }

    /// A byte string, or null.
    pub(crate) fn nullable(&mut self, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(value) => self.bytes(value),
            None => self.null(),
        }
    }

    /// A decimal fraction, tag 4 (RFC 8949, 3.4.4): the exponent goes first.
    pub(crate) fn decimal(&mut self, mantissa: i64, exponent: i8) -> &mut Self {
        self.head(TAG, DECIMAL_FRACTION)
            .array(2)
            .int(exponent.into())
            .int(mantissa)
    }

    /// The shortest of half, single and double precision that keeps the value.
    ///
    /// NaN is always `f97e00`: RFC 8949, 4.2.2 asks for one choice, payloads mean nothing to us.
    pub(crate) fn float(&mut self, value: f64) -> &mut Self {
        if value.is_nan() {
            return self.key(&HALF_NAN);
        }
        if let Some(half) = narrow(value, 5, 10).and_then(|bits| u16::try_from(bits).ok()) {
            return self.key(&[HALF]).key(&half.to_be_bytes());
        }
        if let Some(single) = narrow(value, 8, 23).and_then(|bits| u32::try_from(bits).ok()) {
            return self.key(&[SINGLE]).key(&single.to_be_bytes());
        }
        self.key(&[DOUBLE]).key(&value.to_be_bytes())
    }

    fn head(&mut self, major: u8, value: u64) -> &mut Self {
        let major = major << 5;
        if let Ok(value) = u8::try_from(value) {
            match value {
                0..24 => self.key(&[major | value]),
                24.. => self.key(&[major | 24, value]),
            }
        } else if let Ok(value) = u16::try_from(value) {
            self.key(&[major | 25]).key(&value.to_be_bytes())
        } else if let Ok(value) = u32::try_from(value) {
            self.key(&[major | 26]).key(&value.to_be_bytes())
        } else {
            self.key(&[major | 27]).key(&value.to_be_bytes())
        }
    }
}

/// The bits of `value` in a smaller IEEE 754 format, if that loses nothing. `value` is no NaN.
///
/// A format has a sign bit, then `exponent_bits`, then `fraction_bits`.
fn narrow(value: f64, exponent_bits: u32, fraction_bits: u32) -> Option<u64> {
    let bits = value.to_bits();
    let sign = bits >> 63 << (exponent_bits + fraction_bits);
    let exponent = bits >> 52 & 0x7ff;
    let fraction = bits & ((1 << 52) - 1);
    let exponent_all_ones = (1_u64 << exponent_bits) - 1;
    let bias_difference = 1023 - (exponent_all_ones >> 1);

    if exponent == 0 && fraction == 0 {
        return Some(sign);
    }
    if exponent == 0x7ff {
        return Some(sign | exponent_all_ones << fraction_bits);
    }
    let (significand, dropped_bits) = match exponent.checked_sub(bias_difference) {
        Some(narrow) if exponent_all_ones <= narrow => return None,
        Some(narrow) if 0 < narrow => (narrow << 52 | fraction, 52 - fraction_bits),
        // Subnormal: the leading one becomes explicit and moves right.
        Some(_) | None => {
            let moved = u32::try_from(bias_difference + 1 - exponent).ok()?;
            (1 << 52 | fraction, 52 - fraction_bits + moved)
        }
    };
    (dropped_bits <= significand.trailing_zeros()).then(|| sign | significand >> dropped_bits)
}

/// Reads CBOR items; every error says where.
pub(crate) struct Reader<'b>(Decoder<'b>);

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self(Decoder::new(bytes))
    }

    /// Whether everything is read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.rest().is_empty()
    }

    /// Checks that everything is read.
    pub(crate) fn end(&self) -> Result<(), WireError> {
        match self.rest().len() {
            0 => Ok(()),
            bytes => Err(WireError::Trailing { bytes }),
        }
    }

    /// The error for what stands here.
    pub(crate) fn malformed(&self) -> WireError {
        WireError::Malformed {
            at: self.0.position(),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.item(Decoder::u8)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.item(Decoder::u32)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.item(Decoder::u64)
    }

    pub(crate) fn int(&mut self) -> Result<i64, WireError> {
        self.item(Decoder::i64)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, WireError> {
        self.item(Decoder::bool)
    }

    pub(crate) fn float(&mut self) -> Result<f64, WireError> {
        self.item(Decoder::f64)
    }

    pub(crate) fn text(&mut self) -> Result<String, WireError> {
        self.item(Decoder::str).map(str::to_owned)
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, WireError> {
        self.item(Decoder::bytes).map(<[u8]>::to_vec)
    }

    /// A byte string of at most `bytes_max` bytes.
    pub(crate) fn bytes_up_to(
        &mut self,
        field: &'static str,
        bytes_max: usize,
    ) -> Result<Vec<u8>, WireError> {
        let bytes = self.item(Decoder::bytes)?;
        if bytes.len() > bytes_max {
            return Err(WireError::Value { field });
        }
        Ok(bytes.to_vec())
    }

    /// A byte string of exactly `N` bytes.
    pub(crate) fn sized<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let at = self.malformed();
        self.item(Decoder::bytes)?.try_into().map_err(|_| at)
    }

    /// A small number that stands for a value of a closed set.
    pub(crate) fn code<T: TryFrom<u8, Error = WireError>>(&mut self) -> Result<T, WireError> {
        self.u8()?.try_into()
    }

    /// A word that stands for a value of a closed set.
    pub(crate) fn word<T: std::str::FromStr<Err = WireError>>(&mut self) -> Result<T, WireError> {
        self.item(Decoder::str)?.parse()
    }

    /// A decimal fraction, tag 4, as (mantissa, exponent).
    pub(crate) fn decimal(&mut self) -> Result<(i64, i8), WireError> {
        let at = self.malformed();
        if self.item(Decoder::tag)?.as_u64() != DECIMAL_FRACTION {
            return Err(at);
        }
        self.array(2)?;
        let exponent = self.item(Decoder::i8)?;
        Ok((self.int()?, exponent))
    }

    /// The kind of the next item.
    pub(crate) fn kind(&self) -> Result<Type, WireError> {
        self.0.datatype().map_err(|_| self.malformed())
    }

    /// The head of an array of exactly `items`.
    pub(crate) fn array(&mut self, items: u64) -> Result<(), WireError> {
        let at = self.malformed();
        match self.item(Decoder::array)? {
            Some(found) if found == items => Ok(()),
            Some(_) | None => Err(at),
        }
    }

    /// The head of an array that starts with what kind of message it is, as (kind, items).
    pub(crate) fn kind_of_array(&mut self) -> Result<(u8, u64), WireError> {
        let at = self.malformed();
        let items = self.item(Decoder::array)?.ok_or(at)?;
        Ok((self.u8()?, items))
    }

    /// An array of any length. Nothing is reserved ahead: the sender may lie about the length.
    pub(crate) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let at = self.malformed();
        let items = self.item(Decoder::array)?.ok_or(at)?;
        (0..items).map(|_| read(self)).collect()
    }

    /// Null, or what `read` reads.
    pub(crate) fn nullable<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        if self.take(&[SIMPLE << 5 | 22]) {
            Ok(None)
        } else {
            read(self).map(Some)
        }
    }

    /// The head of a map, whose pairs are then asked for in the order of their encoded keys.
    pub(crate) fn map(&mut self) -> Result<Pairs<'_, 'b>, WireError> {
        let at = self.malformed();
        let left = self.item(Decoder::map)?.ok_or(at)?;
        Ok(Pairs { reader: self, left })
    }

    fn item<T>(
        &mut self,
        read: impl FnOnce(&mut Decoder<'b>) -> Result<T, Error>,
    ) -> Result<T, WireError> {
        let at = self.malformed();
        read(&mut self.0).map_err(|_| at)
    }

    /// Takes `encoded` if it is what stands here.
    fn take(&mut self, encoded: &[u8]) -> bool {
        let found = self.rest().starts_with(encoded);
        if found {
            self.0.set_position(self.0.position() + encoded.len());
        }
        found
    }

    fn rest(&self) -> &'b [u8] {
        self.0.input().get(self.0.position()..).unwrap_or_default()
    }
}

/// The pairs of a map that are not read yet.
pub(crate) struct Pairs<'r, 'b> {
    reader: &'r mut Reader<'b>,
    left: u64,
}

impl<'b> Pairs<'_, 'b> {
    /// The value of `key`, given in its encoding, if that is the next key.
    pub(crate) fn optional<T>(
        &mut self,
        key: &[u8],
        read: impl FnOnce(&mut Reader<'b>) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        match self.left.checked_sub(1) {
            Some(left) if self.reader.take(key) => {
                self.left = left;
                read(self.reader).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// The value of `key`, which must be the next.
    pub(crate) fn required<T>(
        &mut self,
        key: &[u8],
        read: impl FnOnce(&mut Reader<'b>) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let at = self.reader.malformed();
        self.optional(key, read)?.ok_or(at)
    }

    /// Checks that no pair is left: an unknown, doubled or misplaced key stays here.
    pub(crate) fn end(self) -> Result<(), WireError> {
        match self.left {
            0 => Ok(()),
            _ => Err(self.reader.malformed()),
        }
    }
}

// Major types (RFC 8949, 3.1).
const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

// Simple values and floating point heads (RFC 8949, 3.3).
const FALSE: u64 = 20;
const TRUE: u64 = 21;
const NULL: u64 = 22;
const HALF: u8 = 0xf9;
const SINGLE: u8 = 0xfa;
const DOUBLE: u8 = 0xfb;
const HALF_NAN: [u8; 3] = [HALF, 0x7e, 0x00];

/// The tag of decimal fractions (RFC 8949, 3.4.4).
const DECIMAL_FRACTION: u64 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 8949, appendix A.
    #[test]
    fn integers_are_written_as_in_rfc_8949() {
        for (value, hex) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (100, "1864"),
            (1000, "1903e8"),
            (1_000_000, "1a000f4240"),
            (1_000_000_000_000, "1b000000e8d4a51000"),
            (-1, "20"),
            (-10, "29"),
            (-100, "3863"),
            (-1000, "3903e7"),
            (i64::MIN, "3b7fffffffffffffff"),
        ] {
            assert_eq!(written(|writer| writer.int(value)), hex);
        }
        assert_eq!(
            written(|writer| writer.uint(u64::MAX)),
            "1bffffffffffffffff"
        );
    }

    /// RFC 8949, appendix A; its longer encodings of 0.0, infinities and NaN are not preferred.
    #[test]
    fn floats_are_written_as_in_rfc_8949() {
        for (value, hex) in [
            (0.0, "f90000"),
            (-0.0, "f98000"),
            (1.0, "f93c00"),
            (1.1, "fb3ff199999999999a"),
            (1.5, "f93e00"),
            (65_504.0, "f97bff"),
            (100_000.0, "fa47c35000"),
            (3.402_823_466_385_288_6e38, "fa7f7fffff"),
            (1.0e300, "fb7e37e43c8800759c"),
            (5.960_464_477_539_063e-8, "f90001"),
            (0.000_061_035_156_25, "f90400"),
            (-4.0, "f9c400"),
            (-4.1, "fbc010666666666666"),
            (f64::INFINITY, "f97c00"),
            (f64::NAN, "f97e00"),
            (f64::NEG_INFINITY, "f9fc00"),
            // The edges of single precision (IEEE 754), which the appendix leaves out.
            (1.401_298_464_324_817e-45, "fa00000001"),
            (7.006_492_321_624_085e-46, "fb3690000000000000"),
            (f64::MIN_POSITIVE, "fb0010000000000000"),
            (5e-324, "fb0000000000000001"),
            (6.8e38, "fb47fff933c78cdfad"),
        ] {
            assert_eq!(written(|writer| writer.float(value)), hex, "{value}");
        }
    }

    /// RFC 8949, appendix A and 3.4.4.
    #[test]
    fn other_items_are_written_as_in_rfc_8949() {
        assert_eq!(written(|writer| writer.bool(false)), "f4");
        assert_eq!(written(|writer| writer.bool(true)), "f5");
        assert_eq!(written(Writer::null), "f6");
        assert_eq!(written(|writer| writer.bytes(&[1, 2, 3, 4])), "4401020304");
        assert_eq!(written(|writer| writer.text("ü")), "62c3bc");
        assert_eq!(written(|writer| writer.array(25)), "9819");
        assert_eq!(written(|writer| writer.map(2)), "a2");
        assert_eq!(written(|writer| writer.decimal(27_315, -2)), "c48221196ab3");
    }

    proptest! {
        /// Whatever precision is chosen, the value comes back bit by bit.
        #[test]
        fn floats_come_back_exactly(bits: u64, dropped in 0_u32..=52) {
            // Short fractions reach the smaller formats.
            let value = f64::from_bits(bits >> dropped << dropped);
            let mut writer = Writer::default();
            writer.float(value);
            let bytes = writer.into_bytes();
            let read = Reader::new(&bytes).float().unwrap();
            if value.is_nan() {
                prop_assert_eq!(bytes, HALF_NAN);
            } else {
                prop_assert_eq!(read.to_bits(), value.to_bits());
            }
        }

        /// Single precision is always enough for what was single precision.
        #[test]
        fn singles_stay_short(bits: u32) {
            let mut writer = Writer::default();
            writer.float(f32::from_bits(bits).into());
            prop_assert!(writer.into_bytes().len() <= 5);
        }
    }

    fn written(write: impl FnOnce(&mut Writer) -> &mut Writer) -> String {
        let mut writer = Writer::default();
        write(&mut writer);
        hex::encode(writer.into_bytes())
    }
}
