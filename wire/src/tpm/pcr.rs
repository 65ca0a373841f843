//! Which PCRs a quote is about, and what they held.

use std::collections::BTreeMap;
use std::fmt;

use super::cursor::Cursor;
use super::{ALG_SHA256, TpmError, TpmField};
use crate::mac::hash;

/// A set of PCRs of the SHA-256 bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcrSelection(u32);

/// Values of PCRs of the SHA-256 bank, each under its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcrValues(BTreeMap<u8, [u8; 32]>);

impl PcrSelection {
    /// Reads a `TPML_PCR_SELECTION` (Part 2, *TPML_PCR_SELECTION*) of one bank.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, TpmError> {
        let banks = cursor.u32()?;
        if banks != 1 {
            return Err(TpmError::Banks { banks });
        }
        cursor.expect(TpmField::Bank, &[ALG_SHA256])?;
        let [length] = cursor.array()?;
        let bits = match length {
            3 => {
                let [low, middle, high] = cursor.array()?;
                u32::from_le_bytes([low, middle, high, 0])
            }
            4 => u32::from_le_bytes(cursor.array()?),
            _ => {
                return Err(TpmError::Unsupported {
                    field: TpmField::Selection,
                    value: length.into(),
                });
            }
        };
        Ok(Self(bits))
    }

    /// Whether PCR `number` is one of them.
    #[must_use]
    pub fn contains(self, number: u8) -> bool {
        1_u32
            .checked_shl(number.into())
            .is_some_and(|bit| self.0 & bit != 0)
    }

    /// Their numbers, rising.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PCRS_MAX).filter(move |number| self.contains(*number))
    }
}

/// As tpm2-tools want them: `0,7,16`.
impl fmt::Display for PcrSelection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return formatter.write_str("none");
        }
        for (place, number) in self.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(formatter, "{comma}{number}")?;
        }
        Ok(())
    }
}

impl FromIterator<u8> for PcrSelection {
    /// Numbers from [`PCRS_MAX`] on stand for no PCR and are left out.
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        let bits = numbers
            .into_iter()
            .filter_map(|number| 1_u32.checked_shl(number.into()));
        Self(bits.fold(0, |all, bit| all | bit))
    }
}

impl PcrValues {
    /// The PCRs whose values are here.
    #[must_use]
    pub fn selection(&self) -> PcrSelection {
        self.0.keys().copied().collect()
    }

    /// The value of PCR `number`.
    #[must_use]
    pub fn value(&self, number: u8) -> Option<&[u8; 32]> {
        self.0.get(&number)
    }

    /// What a quote signs of them: SHA-256 of the values, by rising number (Part 1, *Attesting to
    /// PCR*).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let values: Vec<&[u8]> = self.0.values().map(<[u8; 32]>::as_slice).collect();
        hash(&values)
    }
}

impl FromIterator<(u8, [u8; 32])> for PcrValues {
    /// The last value of a number counts; numbers from [`PCRS_MAX`] on are left out.
    fn from_iter<I: IntoIterator<Item = (u8, [u8; 32])>>(values: I) -> Self {
        let values = values.into_iter();
        Self(values.filter(|(number, _)| *number < PCRS_MAX).collect())
    }
}

/// How many PCRs a bank can have: a TPM has 24, the bitmaps of known ones at most 32 bits.
pub const PCRS_MAX: u8 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_the_set_of_its_numbers() {
        let selection: PcrSelection = [16, 0, 7, 7, 32, 255].into_iter().collect();
        assert_eq!(selection.iter().collect::<Vec<_>>(), [0, 7, 16]);
        assert!(selection.contains(7));
        assert!(!selection.contains(8));
        assert!(!selection.contains(32));
        assert_eq!(selection.to_string(), "0,7,16");
        assert_eq!(PcrSelection::default().to_string(), "none");
    }

    #[test]
    fn bitmaps_of_three_and_four_bytes_are_read_and_no_others() {
        let read = |hex: &str| {
            let bytes = hex::decode(hex).unwrap();
            let mut cursor = Cursor(&bytes);
            let selection = PcrSelection::read(&mut cursor)?;
            cursor.end()?;
            Ok(selection.to_string())
        };
        let length = |value| {
            Err(TpmError::Unsupported {
                field: TpmField::Selection,
                value,
            })
        };
        assert_eq!(read("00000001000b03810001"), Ok("0,7,16".into()));
        assert_eq!(read("00000001000b0481000180"), Ok("0,7,16,31".into()));
        assert_eq!(read("00000001000b03000000"), Ok("none".into()));
        assert_eq!(read("00000001000b028100"), length(2));
        assert_eq!(read("00000001000b058100000000"), length(5));
        assert_eq!(read("00000000"), Err(TpmError::Banks { banks: 0 }));
        assert_eq!(
            read("ffffffff000b03810001"),
            Err(TpmError::Banks { banks: u32::MAX })
        );
        assert_eq!(read("00000001000b0381"), Err(TpmError::Truncated));
    }

    #[test]
    fn numbers_that_are_no_pcr_have_no_value() {
        let values: PcrValues = [(0, [1; 32]), (32, [2; 32]), (0, [3; 32])]
            .into_iter()
            .collect();
        assert_eq!(values.selection().to_string(), "0");
        assert_eq!(values.value(0), Some(&[3; 32]));
        assert_eq!(values.value(32), None);
    }
}
