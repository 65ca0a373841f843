//! The endorsement key, by which the vendor vouches for a TPM.

use std::fmt;

use p256::{elliptic_curve::sec1::ToSec1Point, pkcs8::EncodePublicKey};
use rsa::BoxedUint;

/// An endorsement key: made by one of the templates of the *TCG EK Credential Profile* 2.5, so with
/// the attributes, the policy and the ciphers that are written there and nowhere else.
#[derive(Clone, Debug)]
pub struct EndorsementKey {
    public_area: Vec<u8>,
    key: Key,
}

/// By which template an endorsement key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndorsementKind {
    /// Template L-1: RSA with 2048 bits.
    Rsa2048,
    /// Template L-2: NIST P-256.
    P256,
    /// Template H-3: NIST P-384.
    P384,
}

/// The public key itself; points are on their curve.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Rsa2048(rsa::PublicKey),
    P256(p256::PublicKey),
    P384(p384::PublicKey),
}

/// Why a public area is no endorsement key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndorsementError {
    /// Another kind of key, or other attributes, another policy, other ciphers.
    #[error("is made by none of the TCG's templates for RSA-2048, P-256 and P-384")]
    NoTemplate,
    /// A modulus that is not odd with 2048 bits, or no point on the curve.
    #[error("has numbers that are no {0} key")]
    NotAKey(EndorsementKind),
}

impl EndorsementKey {
    /// Reads a `TPMT_PUBLIC`, which must be one of the templates with the key filled in.
    ///
    /// # Errors
    ///
    /// [`EndorsementError`] if it is anything else.
    pub fn parse(public_area: &[u8]) -> Result<Self, EndorsementError> {
        for kind in [
            EndorsementKind::Rsa2048,
            EndorsementKind::P256,
            EndorsementKind::P384,
        ] {
            let Some(unique) = public_area.strip_prefix(kind.template()) else {
                continue;
            };
            let numbers = numbers(unique, kind).ok_or(EndorsementError::NoTemplate)?;
            let key = Key::new(kind, numbers).ok_or(EndorsementError::NotAKey(kind))?;
            return Ok(Self {
                public_area: public_area.to_vec(),
                key,
            });
        }
        Err(EndorsementError::NoTemplate)
    }

    /// By which template it is made.
    #[must_use]
    pub fn kind(&self) -> EndorsementKind {
        match self.key {
            Key::Rsa2048(_) => EndorsementKind::Rsa2048,
            Key::P256(_) => EndorsementKind::P256,
            Key::P384(_) => EndorsementKind::P384,
        }
    }

    /// The `TPMT_PUBLIC`.
    #[must_use]
    pub fn public_area(&self) -> &[u8] {
        &self.public_area
    }

    /// The key as a certificate has it: `SubjectPublicKeyInfo` (RFC 5280, 4.1), DER; `None` only if
    /// it cannot be encoded, which no certificate equals.
    #[must_use]
    pub fn subject_public_key_info(&self) -> Option<Vec<u8>> {
        let encoded = match &self.key {
            Key::Rsa2048(key) => key.to_public_key_der(),
            Key::P256(key) => key.to_public_key_der(),
            Key::P384(key) => key.to_public_key_der(),
        };
        encoded.ok().map(|document| document.as_bytes().to_vec())
    }

    /// `04 ‖ X ‖ Y` of a P-256 key.
    pub(super) fn p256_point(&self) -> Option<Vec<u8>> {
        match &self.key {
            Key::P256(key) => Some(key.to_sec1_point(false).as_bytes().to_vec()),
            Key::Rsa2048(_) | Key::P384(_) => None,
        }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }
}

impl EndorsementKind {
    /// `TPMT_PUBLIC` up to the numbers of the key.
    fn template(self) -> &'static [u8] {
        match self {
            Self::Rsa2048 => &TEMPLATE_L1,
            Self::P256 => &TEMPLATE_L2,
            Self::P384 => &TEMPLATE_H3,
        }
    }

    /// How many numbers the key has, and the size of each.
    fn shape(self) -> (usize, u16) {
        match self {
            Self::Rsa2048 => (1, 256),
            Self::P256 => (2, 32),
            Self::P384 => (2, 48),
        }
    }
}

/// As tpm2-tools and vendors call them.
impl fmt::Display for EndorsementKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Rsa2048 => "RSA-2048",
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        })
    }
}

impl Key {
    /// Of the modulus, or of the two coordinates.
    fn new(kind: EndorsementKind, numbers: Vec<u8>) -> Option<Self> {
        match kind {
            EndorsementKind::Rsa2048 => {
                let modulus = BoxedUint::from_be_slice(&numbers, RSA_BITS).ok()?;
                // Odd, and without leading zeros.
                let size = RSA_SIZE..=RSA_SIZE;
                let exponent = BoxedUint::from(RSA_EXPONENT);
                rsa::PublicKey::new_with_size_limits(modulus, exponent, size)
                    .ok()
                    .map(Self::Rsa2048)
            }
            EndorsementKind::P256 => p256::PublicKey::from_sec1_bytes(&uncompressed(&numbers))
                .ok()
                .map(Self::P256),
            EndorsementKind::P384 => p384::PublicKey::from_sec1_bytes(&uncompressed(&numbers))
                .ok()
                .map(Self::P384),
        }
    }
}

/// The numbers of a `TPMU_PUBLIC_ID`, one after the other without their lengths; `None` if the
/// lengths are not those of the template, or something follows.
fn numbers(mut unique: &[u8], kind: EndorsementKind) -> Option<Vec<u8>> {
    let (count, bytes) = kind.shape();
    let mut numbers = Vec::new();
    for _ in 0..count {
        let rest = unique.strip_prefix(&bytes.to_be_bytes())?;
        let (number, rest) = rest.split_at_checked(bytes.into())?;
        numbers.extend_from_slice(number);
        unique = rest;
    }
    unique.is_empty().then_some(numbers)
}

/// A point as SEC 1, 2.3.3 has it.
fn uncompressed(coordinates: &[u8]) -> Vec<u8> {
    [&[4], coordinates].concat()
}

/// Template L-1: RSA, SHA-256, the attributes, PolicyA = PolicySecret(endorsement hierarchy),
/// AES-128-CFB, no scheme, 2048 bits, the default exponent.
const TEMPLATE_L1: [u8; 56] = [
    0x00, 0x01, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2, 0x00, 0x20, 0x83, 0x71, 0x97, 0x67, 0x44, 0x84,
    0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52,
    0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA, 0x00, 0x06, 0x00, 0x80, 0x00, 0x43,
    0x00, 0x10, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// Template L-2: the same, ECC, P-256, no KDF.
const TEMPLATE_L2: [u8; 54] = [
    0x00, 0x23, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2, 0x00, 0x20, 0x83, 0x71, 0x97, 0x67, 0x44, 0x84,
    0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52,
    0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA, 0x00, 0x06, 0x00, 0x80, 0x00, 0x43,
    0x00, 0x10, 0x00, 0x03, 0x00, 0x10,
];

/// Template H-3: ECC, SHA-384, the attributes with userWithAuth, PolicyB, AES-256-CFB, no scheme,
/// P-384, no KDF.
const TEMPLATE_H3: [u8; 70] = [
    0x00, 0x23, 0x00, 0x0C, 0x00, 0x03, 0x00, 0xF2, 0x00, 0x30, 0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A,
    0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A, 0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3,
    0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA, 0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96,
    0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12, 0x00, 0x06, 0x01, 0x00, 0x00, 0x43,
    0x00, 0x10, 0x00, 0x04, 0x00, 0x10,
];

const RSA_BITS: u32 = 2048;
const RSA_SIZE: usize = 2048;

/// What exponent 0 of a template stands for (Part 2, 12.2.3.5).
const RSA_EXPONENT: u64 = 65_537;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    // Made by `tpm2_createek -G rsa | ecc | ecc384` of tpm2-tools 5.4 in swtpm 0.7.1.

    #[test]
    fn each_template_is_its_kind_of_endorsement_key() {
        for (kind, area) in areas() {
            let key = EndorsementKey::parse(&area).unwrap();
            assert_eq!(key.kind(), kind);
            assert_eq!(key.public_area(), area);
        }
    }

    #[test]
    fn only_the_templates_of_the_tcg_are_endorsement_keys() {
        for (kind, area) in areas() {
            // The template, and the lengths of the numbers behind it.
            let (count, bytes) = kind.shape();
            let numbers = kind.template().len();
            let lengths = (0..count).map(|number| numbers + number * (2 + usize::from(bytes)));
            for place in (0..numbers).chain(lengths.flat_map(|at| [at, at + 1])) {
                for bit in 0..8 {
                    let mut other = area.clone();
                    other[place] ^= 1 << bit;
                    let refused = EndorsementKey::parse(&other).err();
                    assert_eq!(
                        refused,
                        Some(EndorsementError::NoTemplate),
                        "{kind} {place}"
                    );
                }
            }
            for length in 0..area.len() {
                let refused = EndorsementKey::parse(&area[..length]).err();
                assert_eq!(refused, Some(EndorsementError::NoTemplate));
            }
            let longer = [area.as_slice(), &[0]].concat();
            let refused = EndorsementKey::parse(&longer).err();
            assert_eq!(refused, Some(EndorsementError::NoTemplate));
        }
    }

    #[test]
    fn points_off_the_curve_are_no_keys() {
        for (kind, area) in areas().into_iter().skip(1) {
            let mut other = area.clone();
            *other.last_mut().unwrap() ^= 1;
            let refused = EndorsementKey::parse(&other).err();
            assert_eq!(refused, Some(EndorsementError::NotAKey(kind)));

            // Coordinates not below the prime.
            let mut other = area.clone();
            let start = kind.template().len() + 2;
            other[start..start + 32].fill(0xFF);
            let refused = EndorsementKey::parse(&other).err();
            assert_eq!(refused, Some(EndorsementError::NotAKey(kind)));
        }
    }

    #[test]
    fn a_modulus_that_is_even_or_short_is_no_key() {
        let [(kind, area), ..] = areas();
        let refused = Some(EndorsementError::NotAKey(kind));
        let mut even = area.clone();
        *even.last_mut().unwrap() &= 0xFE;
        assert_eq!(EndorsementKey::parse(&even).err(), refused);
        let mut short = area.clone();
        short[kind.template().len() + 2] &= 0x7F;
        assert_eq!(EndorsementKey::parse(&short).err(), refused);
        let mut zero = area.clone();
        zero[kind.template().len() + 2..].fill(0);
        assert_eq!(EndorsementKey::parse(&zero).err(), refused);
    }

    #[test]
    fn keys_are_encoded_as_openssl_does() {
        for (kind, area) in areas() {
            let key = EndorsementKey::parse(&area).unwrap();
            let encoded = key.subject_public_key_info().unwrap();
            assert_eq!(openssl(&encoded), encoded, "{kind}");
            let numbers = numbers(&area[kind.template().len()..], kind).unwrap();
            assert!(encoded.windows(numbers.len()).any(|part| part == numbers));
        }
    }

    /// Has openssl read a public key and write it again.
    fn openssl(der: &[u8]) -> Vec<u8> {
        let mut openssl = Command::new("openssl")
            .args(["pkey", "-pubin", "-inform", "DER", "-outform", "DER"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        openssl.stdin.take().unwrap().write_all(der).unwrap();
        openssl.wait_with_output().unwrap().stdout
    }

    fn areas() -> [(EndorsementKind, Vec<u8>); 3] {
        [
            (EndorsementKind::Rsa2048, RSA_2048),
            (EndorsementKind::P256, P_256),
            (EndorsementKind::P384, P_384),
        ]
        .map(|(kind, hex)| {
            let hex = hex.as_bytes();
            (kind, data_encoding::HEXLOWER.decode(hex).unwrap())
        })
    }

    const RSA_2048: &str = "0001000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e\
        06520b64f2a1da1b331469aa000600800043001008000000000001009f8e1de2a6aead441503eb58\
        d7a45cc9fde170d33bb3fd6ce7cde9c0446a520183a65afb09e164cd743f311cab944de0381525f9\
        87bba3aab3fb141683da2fef6285127f44af4c84194b2b6341a50108195b37fcadd0177190d3349b\
        35bfdef5afc33a3011e813ae307d2de0327dc0497ebd187f6abee2a43c8b06391aa01cbd5e9aaecb\
        2f4da1a3d30f5b62723ff8f3c5160a31066d0bf20ce8d8ee9943a8ee93aa7a6db90869c737d5d634\
        8f7d97221e9d1d7b62113af7ffd1b10903e1b8475b3ba3ef973b49034bf3011a6153e9945886f3db\
        b006a4160da5ca9f13b212cc9a949c2ddfb520e76c3d81f4f8e9736d093c7392746c02fcffdbc5e2\
        f43e831f";
    const P_256: &str = "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e\
        06520b64f2a1da1b331469aa0006008000430010000300100020e3deca7812b38ec9217482995bbb\
        fe2547837637e2c961ad47e92d91109d67f60020d70e9b7fd021e10431d015484d36cafc058f49d5\
        f209564e7353dd3081b46f4c";
    const P_384: &str = "0023000c000300f20030b26e7d28d11a50bc53d882bcf5fd3a1a074148bb\
        35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12000601000043001000040010\
        00303567189902521c0ae740b23540a28d737563af15d74de2a69c1ce5f344d2f3d4facccfa6732c\
        a1ebeea7ec7328034b060030259ab400aced309b478ab6d894dbdec5ef9a3cb8f98909c2b1fa5eb9\
        3fc812990634718c16910a89e150e35b857f7f8f";
}
