//! Deterministic CBOR (RFC 8949, 4.2.1) for arrays and for maps with small integer keys.
//!
//! A decoder reads the fields in the one order that is allowed, then encodes what it read and
//! compares the bytes ([`check`]). So it refuses every other encoding of a value, unknown and
//! doubled keys, and trailing bytes, without knowing how many ways there are.

use std::convert::Infallible;

use minicbor::{Decoder, decode};

/// Returns the bytes that `write` writes.
pub(crate) fn encode(write: impl FnOnce(&mut Encoder<'_>) -> Written) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A `Vec` takes every byte (its error is `Infallible`), so the result says nothing.
    let _ = write(&mut minicbor::Encoder::new(&mut bytes));
    bytes
}

/// Writes to a vector of bytes.
pub(crate) type Encoder<'a> = minicbor::Encoder<&'a mut Vec<u8>>;

/// What writing to a vector returns: always `Ok`.
pub(crate) type Written = Result<(), minicbor::encode::Error<Infallible>>;

/// Reads the head of a map of exactly `fields` entries.
pub(crate) fn map(decoder: &mut Decoder<'_>, fields: u64) -> Result<(), Malformed> {
    demand(decoder.map()? == Some(fields))
}

/// Reads the key of the next map entry, which must be `key`.
pub(crate) fn key(decoder: &mut Decoder<'_>, key: u64) -> Result<(), Malformed> {
    demand(decoder.u64()? == key)
}

/// Reads the head of an array of exactly `items`.
pub(crate) fn array(decoder: &mut Decoder<'_>, items: u64) -> Result<(), Malformed> {
    demand(decoder.array()? == Some(items))
}

/// Reads an array of `min` to `max` items, each with `item`.
pub(crate) fn list<'b, T>(
    decoder: &mut Decoder<'b>,
    (min, max): (usize, usize),
    item: impl Fn(&mut Decoder<'b>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let items = decoder.array()?.ok_or(Malformed)?;
    let items = usize::try_from(items).map_err(|_| Malformed)?;
    demand((min..=max).contains(&items))?;
    (0..items).map(|_| item(decoder)).collect()
}

/// Reads a byte string of exactly `N` bytes.
pub(crate) fn bytes<const N: usize>(decoder: &mut Decoder<'_>) -> Result<[u8; N], Malformed> {
    decoder.bytes()?.try_into().map_err(|_| Malformed)
}

/// Refuses `offered` if it is not the deterministic encoding of what was read from it.
pub(crate) fn check(offered: &[u8], encoded: &[u8]) -> Result<(), Malformed> {
    demand(offered == encoded)
}

/// Turns what must hold into a result.
pub(crate) fn demand(holds: bool) -> Result<(), Malformed> {
    holds.then_some(()).ok_or(Malformed)
}

/// Not what the format allows. One error for all: whoever sent it knows what it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<decode::Error> for Malformed {
    fn from(_: decode::Error) -> Self {
        Self
    }
}
