//! `COSE_Sign1` (RFC 9052, 4.2) in the one form that is used here: protected header `{1: -7}`
//! (ES256), nothing unprotected, an attached payload, no tag.

use minicbor::Decoder;

use crate::cbor::{self, Malformed};
use crate::keys::{PublicKey, SignatureError, verify};

/// The bytes to be signed: the `Sig_structure` of RFC 9052, 4.4.
pub(crate) fn to_be_signed(payload: &[u8], aad: &[u8]) -> Vec<u8> {
    cbor::encode(|e| {
        e.array(4)?.str("Signature1")?;
        e.bytes(PROTECTED)?.bytes(aad)?.bytes(payload)?.ok()
    })
}

/// Puts payload and signature together.
pub(crate) fn assemble(payload: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    cbor::encode(|e| {
        e.array(4)?.bytes(PROTECTED)?.map(0)?;
        e.bytes(payload)?.bytes(signature)?.ok()
    })
}

/// A payload and the signature that came with it, not yet verified.
pub(crate) struct Signed<'a> {
    /// What somebody says. Believe it after [`verify`](Self::verify).
    pub(crate) payload: &'a [u8],
    signature: [u8; 64],
}

impl<'a> Signed<'a> {
    /// Takes a `COSE_Sign1` apart; refuses any other form than [`assemble`] makes.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        cbor::array(&mut decoder, 4)?;
        cbor::demand(decoder.bytes()? == PROTECTED)?;
        cbor::map(&mut decoder, 0)?;
        let payload = decoder.bytes()?;
        let signature = cbor::bytes(&mut decoder)?;
        cbor::check(bytes, &assemble(payload, &signature))?;
        Ok(Self { payload, signature })
    }

    /// Verifies the signature by `key` with the external data `aad`.
    pub(crate) fn verify(&self, aad: &[u8], key: &PublicKey) -> Result<(), SignatureError> {
        verify(key, &to_be_signed(self.payload, aad), &self.signature)
    }
}

/// `{1: -7}`: algorithm ES256 (RFC 9053, 2.1), deterministically encoded.
const PROTECTED: &[u8] = &[0xA1, 0x01, 0x26];

#[cfg(test)]
mod tests {
    use coset::{CborSerializable as _, CoseSign1, CoseSign1Builder, HeaderBuilder, iana};

    use super::*;
    use crate::fixture::vector;

    const SIGNATURE: [u8; 64] = [0x5A; 64];

    #[test]
    fn pycose_would_sign_the_same_bytes() {
        let payload = vector("header_payload");
        assert_eq!(
            to_be_signed(&payload, b"gatewayd/1 epoch"),
            vector("to_be_signed")
        );
    }

    #[test]
    fn coset_makes_and_reads_the_same_form() {
        for payload in [b"".as_slice(), b"payload", &[7; 70_000]] {
            let theirs = CoseSign1Builder::new()
                .protected(
                    HeaderBuilder::new()
                        .algorithm(iana::Algorithm::ES256)
                        .build(),
                )
                .payload(payload.to_vec())
                .signature(SIGNATURE.to_vec())
                .build();
            assert_eq!(theirs.tbs_data(b"aad"), to_be_signed(payload, b"aad"));

            let ours = assemble(payload, &SIGNATURE);
            assert_eq!(
                CoseSign1::from_slice(&ours).unwrap().payload,
                theirs.payload
            );
            assert_eq!(theirs.to_vec().unwrap(), ours);
            assert_eq!(Signed::decode(&ours).unwrap().payload, payload);
        }
    }

    #[test]
    fn any_other_form_is_refused() {
        let rest = [&[0x41, 0x70, 0x58, 0x40], SIGNATURE.as_slice()].concat();
        let with = |start: &str, rest: &[u8]| [&*hex::decode(start).unwrap(), rest].concat();
        assert!(Signed::decode(&with("8443a10126a0", &rest)).is_ok());

        for (start, why) in [
            ("d28443a10126a0", "tag"),
            ("9f43a10126a0", "array of unknown length"),
            ("98 0443a10126a0", "length of the array in two bytes"),
            ("8443a10127a0", "EdDSA"),
            ("8440a0", "no protected header"),
            ("8441a0a0", "empty protected header"),
            ("8446a2012604413100", "key id"),
            ("844401a10126a0", "bytes around the protected header"),
            ("8444a1013806a0", "-7 in two bytes"),
            (
                "845803a10126a0",
                "length of the protected header in two bytes",
            ),
            ("8443a10126a10126", "unprotected header"),
            ("8443a10126bfff", "map of unknown length"),
            ("83a10126", "three items"),
        ] {
            let bytes = with(&start.replace(' ', ""), &rest);
            assert!(Signed::decode(&bytes).is_err(), "{why}");
        }
        for (rest, why) in [
            (
                [&[0xF6, 0x58, 0x40], SIGNATURE.as_slice()].concat(),
                "detached payload",
            ),
            (
                [&[0x41, 0x70, 0x58, 0x41, 0], SIGNATURE.as_slice()].concat(),
                "65 bytes",
            ),
            ([&*rest, &[0]].concat(), "trailing byte"),
            (rest[..67].to_vec(), "cut"),
            (
                [&[0x58, 0x01, 0x70, 0x58, 0x40], SIGNATURE.as_slice()].concat(),
                "long length",
            ),
            (
                [&[0x5F, 0x41, 0x70, 0xFF, 0x58, 0x40], SIGNATURE.as_slice()].concat(),
                "pieces",
            ),
        ] {
            assert!(
                Signed::decode(&with("8443a10126a0", &rest)).is_err(),
                "{why}"
            );
        }
    }
}
