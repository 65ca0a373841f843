//! Reads TPM structures from front to back.

use super::{ALG_SHA256, TpmError, TpmField};

/// What is left to read of a structure.
pub(super) struct Cursor<'b>(pub(super) &'b [u8]);

impl<'b> Cursor<'b> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], TpmError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(TpmError::Truncated)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, TpmError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, TpmError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, TpmError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `bytes` bytes.
    pub(super) fn slice(&mut self, bytes: usize) -> Result<&'b [u8], TpmError> {
        let (slice, rest) = self.0.split_at_checked(bytes).ok_or(TpmError::Truncated)?;
        self.0 = rest;
        Ok(slice)
    }

    /// One of the `allowed` values of a field.
    pub(super) fn expect(&mut self, field: TpmField, allowed: &[u16]) -> Result<u16, TpmError> {
        let value = self.u16()?;
        if allowed.contains(&value) {
            Ok(value)
        } else {
            Err(TpmError::Unsupported { field, value })
        }
    }

    /// A `TPM2B`: a length, then as many bytes.
    pub(super) fn sized(&mut self) -> Result<&'b [u8], TpmError> {
        let bytes = self.u16()?;
        self.slice(bytes.into())
    }

    /// A `TPMS_ECC_POINT`, as `04 ‖ X ‖ Y`.
    pub(super) fn point(&mut self) -> Result<[u8; 65], TpmError> {
        let mut point = [0; 65];
        let (head, coordinates) = point.split_at_mut(1);
        head.fill(UNCOMPRESSED);
        for coordinate in coordinates.chunks_exact_mut(COORDINATE_BYTES) {
            self.padded(coordinate)?;
        }
        Ok(point)
    }

    /// A `TPM2B` number into the end of `number`; a TPM may leave out leading zeros.
    pub(super) fn padded(&mut self, number: &mut [u8]) -> Result<(), TpmError> {
        let bytes = self.sized()?;
        let Some(zeros) = number.len().checked_sub(bytes.len()) else {
            return Err(TpmError::Unsupported {
                field: TpmField::Coordinate,
                value: u16::try_from(bytes.len()).unwrap_or(u16::MAX),
            });
        };
        for (to, from) in number.iter_mut().skip(zeros).zip(bytes) {
            *to = *from;
        }
        Ok(())
    }

    /// A `TPMI_YES_NO`.
    pub(super) fn yes_no(&mut self, field: TpmField) -> Result<bool, TpmError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [value] => Err(TpmError::Unsupported {
                field,
                value: value.into(),
            }),
        }
    }

    /// A `TPM2B` of exactly `N` bytes.
    pub(super) fn sized_array<const N: usize>(
        &mut self,
        field: TpmField,
    ) -> Result<[u8; N], TpmError> {
        let bytes = self.sized()?;
        bytes.try_into().map_err(|_| TpmError::Unsupported {
            field,
            value: u16::try_from(bytes.len()).unwrap_or(u16::MAX),
        })
    }

    /// A `TPM2B_NAME` over SHA-256.
    pub(super) fn name(&mut self) -> Result<[u8; 34], TpmError> {
        let name = self.sized_array(TpmField::Name)?;
        Cursor(&name).expect(TpmField::Name, &[ALG_SHA256])?;
        Ok(name)
    }

    pub(super) fn end(&self) -> Result<(), TpmError> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(TpmError::Trailing { bytes }),
        }
    }
}

/// Size of a coordinate of P-256.
pub(super) const COORDINATE_BYTES: usize = 32;

/// Starts an uncompressed point (SEC 1, 2.3.3).
const UNCOMPRESSED: u8 = 4;
