//! TPM structures, checked with arithmetic alone: no TPM and no TPM library is needed.
//!
//! Numbers and layouts are those of the *TPM 2.0 Library Specification*, Part 2: Structures.

use std::fmt;

pub use attest::{Certification, ClockInfo, ecdsa_signature};
pub use pcr::{PCRS_MAX, PcrSelection, PcrValues};
pub use policy::{
    CounterLimit, PolicyAuthority, PolicyDigest, SignedPolicy, UNSIGNED_LE, counter_index,
    counter_name,
};
pub use qualified::{QualifiedName, TpmHierarchy};
pub use quote::{Quote, quote_data};

use cursor::Cursor;

mod attest;
mod cursor;
mod pcr;
mod policy;
mod qualified;
mod quote;
#[cfg(test)]
mod vectors;

/// The public area of an ECC P-256 key in a TPM: a `TPMT_PUBLIC` (Part 2, 12.2.4).
///
/// That the point is on the curve is for whoever uses it as a key to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmPublic {
    bytes: Vec<u8>,
    attributes: TpmAttributes,
    scheme: TpmScheme,
    point: [u8; 65],
}

/// What a key may be used for, and where: `TPMA_OBJECT` (Part 2, 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TpmAttributes(u32);

/// One bit of [`TpmAttributes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmAttribute {
    /// The key never leaves this TPM.
    FixedTpm,
    /// The key never gets another parent.
    FixedParent,
    /// The TPM itself made the private half.
    SensitiveDataOrigin,
    /// The key treats only what the TPM made or framed itself.
    Restricted,
    /// The key decrypts, or agrees on secrets.
    Decrypt,
    /// The key signs.
    Sign,
}

/// What a key is bound to do: `TPMT_ECC_SCHEME` (Part 2, 11.2.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmScheme {
    /// Chosen with each use.
    Null,
    /// ECDSA over SHA-256.
    EcdsaSha256,
    /// ECDH, with SHA-256 where a key is derived.
    EcdhSha256,
}

/// Why a TPM structure was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The structure ends too early.
    #[error("TPM structure is cut off")]
    Truncated,

    /// Something follows the structure.
    #[error("TPM structure is followed by {bytes} more bytes")]
    Trailing {
        /// How many bytes follow.
        bytes: usize,
    },

    /// A field has a value that this version does not take.
    #[error("{field} {value:#06x} of the TPM structure is not supported")]
    Unsupported {
        /// The field.
        field: TpmField,
        /// The TPM's number for its value, or a length.
        value: u16,
    },

    /// The key lacks an attribute.
    #[error("key does not have the attribute {0}")]
    Lacks(TpmAttribute),

    /// The key has an attribute that it must not have.
    #[error("key must not have the attribute {0}")]
    MustNotHave(TpmAttribute),

    /// The key is bound to another scheme, or to none.
    #[error("key has the wrong scheme")]
    Scheme,

    /// The attest does not start like what a TPM makes itself.
    #[error("attest was not made by a TPM")]
    NotMadeByTpm,

    /// The attest is about something other than a key.
    #[error("attest is not the certification of a key")]
    NotCertification,

    /// The attest is about something other than PCRs.
    #[error("attest is not a quote")]
    NotQuote,

    /// The attest answers another challenge.
    #[error("attest answers another challenge")]
    OtherChallenge,

    /// The attest is about another key.
    #[error("attest is about another key")]
    OtherKey,

    /// Another key made the attest, or one in another place of the TPM.
    #[error("attest was made by another key")]
    OtherSigner,

    /// A quote is about PCRs of no bank, or of more than one.
    #[error("quote is about {banks} banks of PCRs instead of one")]
    Banks {
        /// How many.
        banks: u32,
    },

    /// A quote is about other PCRs than those whose values are there.
    #[error("quote is about the PCRs {quoted}, not {expected}")]
    OtherPcrs {
        /// Those of the quote.
        quoted: PcrSelection,
        /// Those whose values are there.
        expected: PcrSelection,
    },

    /// The values of the PCRs are not those that were quoted.
    #[error("PCRs have other values than those quoted")]
    OtherValues,
}

/// A field of a public area, a signature or an attest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmField {
    /// The kind of key; must be ECC.
    Type,
    /// The hash of the Name; must be SHA-256.
    NameAlgorithm,
    /// The symmetric cipher of a storage key; must be AES or none.
    Symmetric,
    /// The scheme, or its hash.
    Scheme,
    /// The curve; must be NIST P-256.
    Curve,
    /// The key derivation; must be none.
    KeyDerivation,
    /// A coordinate of the point, or half a signature; must have at most 32 bytes.
    Coordinate,
    /// A Name in an attest; must be one over SHA-256, so have 34 bytes.
    Name,
    /// Whether the clock can be trusted; must be yes or no.
    Safe,
    /// The bank of quoted PCRs; must be SHA-256.
    Bank,
    /// The bitmap of quoted PCRs; must have 3 or 4 bytes.
    Selection,
    /// The digest of quoted PCRs; must have 32 bytes.
    Digest,
}

impl TpmPublic {
    /// Reads a `TPMT_PUBLIC` of an ECC P-256 key with SHA-256 as name algorithm.
    ///
    /// # Errors
    ///
    /// [`TpmError::Truncated`], [`TpmError::Trailing`] or [`TpmError::Unsupported`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        let mut cursor = Cursor(bytes);
        cursor.expect(TpmField::Type, &[ALG_ECC])?;
        cursor.expect(TpmField::NameAlgorithm, &[ALG_SHA256])?;
        let attributes = TpmAttributes(u32::from_be_bytes(cursor.array()?));
        let _auth_policy = cursor.sized()?;
        if cursor.expect(TpmField::Symmetric, &[ALG_NULL, ALG_AES])? == ALG_AES {
            let _key_bits_and_mode: [u8; 4] = cursor.array()?;
        }
        let scheme = match cursor.expect(TpmField::Scheme, &[ALG_NULL, ALG_ECDSA, ALG_ECDH])? {
            ALG_NULL => TpmScheme::Null,
            scheme => {
                cursor.expect(TpmField::Scheme, &[ALG_SHA256])?;
                if scheme == ALG_ECDSA {
                    TpmScheme::EcdsaSha256
                } else {
                    TpmScheme::EcdhSha256
                }
            }
        };
        cursor.expect(TpmField::Curve, &[CURVE_P256])?;
        cursor.expect(TpmField::KeyDerivation, &[ALG_NULL])?;
        let point = cursor.point()?;
        cursor.end()?;
        Ok(Self {
            bytes: bytes.to_vec(),
            attributes,
            scheme,
            point,
        })
    }

    /// The structure as it was read.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key's Name: the hash algorithm, then SHA-256 of the structure (Part 1, 16).
    #[must_use]
    pub fn name(&self) -> [u8; 34] {
        qualified::sha256_name(&[&self.bytes])
    }

    /// The public key as `04 ‖ X ‖ Y`.
    #[must_use]
    pub fn point(&self) -> [u8; 65] {
        self.point
    }

    /// What the key may be used for.
    #[must_use]
    pub fn attributes(&self) -> TpmAttributes {
        self.attributes
    }

    /// What the key is bound to do.
    #[must_use]
    pub fn scheme(&self) -> TpmScheme {
        self.scheme
    }

    /// Checks that this can be a gateway's identity key (`protocol.md` 5.3, item 3).
    ///
    /// # Errors
    ///
    /// [`TpmError::Lacks`], [`TpmError::MustNotHave`] or [`TpmError::Scheme`].
    pub fn check_identity(&self) -> Result<(), TpmError> {
        self.check_origin()?;
        self.attributes.require(TpmAttribute::Sign)?;
        self.attributes.forbid(TpmAttribute::Restricted)?;
        self.attributes.forbid(TpmAttribute::Decrypt)?;
        self.check_scheme(&[TpmScheme::EcdsaSha256])
    }

    /// Checks that this can be a gateway's channel key (`protocol.md` 5.3, item 3).
    ///
    /// # Errors
    ///
    /// [`TpmError::Lacks`], [`TpmError::MustNotHave`] or [`TpmError::Scheme`].
    pub fn check_channel(&self) -> Result<(), TpmError> {
        self.check_origin()?;
        self.attributes.require(TpmAttribute::Decrypt)?;
        self.attributes.forbid(TpmAttribute::Restricted)?;
        self.attributes.forbid(TpmAttribute::Sign)?;
        self.check_scheme(&[TpmScheme::Null, TpmScheme::EcdhSha256])
    }

    /// Checks that this can be a gateway's attestation key (`protocol.md` 5.3, item 3).
    ///
    /// # Errors
    ///
    /// [`TpmError::Lacks`], [`TpmError::MustNotHave`] or [`TpmError::Scheme`].
    pub fn check_attestation(&self) -> Result<(), TpmError> {
        self.check_origin()?;
        self.attributes.require(TpmAttribute::Restricted)?;
        self.attributes.require(TpmAttribute::Sign)?;
        self.attributes.forbid(TpmAttribute::Decrypt)?;
        self.check_scheme(&[TpmScheme::EcdsaSha256])
    }

    /// The key was made in its TPM, and stays there.
    fn check_origin(&self) -> Result<(), TpmError> {
        self.attributes.require(TpmAttribute::FixedTpm)?;
        self.attributes.require(TpmAttribute::FixedParent)?;
        self.attributes.require(TpmAttribute::SensitiveDataOrigin)
    }

    fn check_scheme(&self, allowed: &[TpmScheme]) -> Result<(), TpmError> {
        if allowed.contains(&self.scheme) {
            Ok(())
        } else {
            Err(TpmError::Scheme)
        }
    }
}

impl TpmAttributes {
    /// All bits, as the TPM has them.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether `attribute` is set.
    #[must_use]
    pub fn has(self, attribute: TpmAttribute) -> bool {
        self.0 & attribute.mask() != 0
    }

    fn require(self, attribute: TpmAttribute) -> Result<(), TpmError> {
        if self.has(attribute) {
            Ok(())
        } else {
            Err(TpmError::Lacks(attribute))
        }
    }

    fn forbid(self, attribute: TpmAttribute) -> Result<(), TpmError> {
        if self.has(attribute) {
            Err(TpmError::MustNotHave(attribute))
        } else {
            Ok(())
        }
    }
}

impl TpmAttribute {
    /// The attribute's bit (Part 2, 8.3.2).
    fn mask(self) -> u32 {
        match self {
            Self::FixedTpm => 1 << 1,
            Self::FixedParent => 1 << 4,
            Self::SensitiveDataOrigin => 1 << 5,
            Self::Restricted => 1 << 16,
            Self::Decrypt => 1 << 17,
            Self::Sign => 1 << 18,
        }
    }
}

/// As the specification and tpm2-tools spell it.
impl fmt::Display for TpmAttribute {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::FixedTpm => "fixedTPM",
            Self::FixedParent => "fixedParent",
            Self::SensitiveDataOrigin => "sensitiveDataOrigin",
            Self::Restricted => "restricted",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
        })
    }
}

impl fmt::Display for TpmField {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Type => "key type",
            Self::NameAlgorithm => "name algorithm",
            Self::Symmetric => "symmetric cipher",
            Self::Scheme => "scheme",
            Self::Curve => "curve",
            Self::KeyDerivation => "key derivation",
            Self::Coordinate => "coordinate length",
            Self::Name => "name length or algorithm",
            Self::Safe => "clock state",
            Self::Bank => "bank of PCRs",
            Self::Selection => "PCR bitmap length",
            Self::Digest => "digest length",
        })
    }
}

// `TPM_ALG_ID` (Part 2, 6.3).
const ALG_AES: u16 = 0x0006;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDH: u16 = 0x0019;
const ALG_ECC: u16 = 0x0023;

/// `TPM_ECC_NIST_P256` (Part 2, 6.4).
const CURVE_P256: u16 = 0x0003;

#[cfg(test)]
mod tests {
    use super::*;

    // The keys and Names below were made by tpm2-tools 5.4 in swtpm 0.7.1: `tpm2_create -u`
    // without the leading length, and `tpm2_readpublic -n`.

    #[test]
    fn names_are_those_of_the_tpm() {
        for (key, name) in [
            (
                IDENTITY,
                "000bc670382df1e2f8bc8fe34084b0fa71f5d407bc4809bbbefb009db771f5ea7b10",
            ),
            (
                CHANNEL,
                "000b3418d51c55073b81b4a23d486eed35c119e22eff738d0b0fbd572846c7aba3ec",
            ),
            (
                ATTESTATION,
                "000b0b658b3d72462ee1949f467f8beba63dba48f3b32a96f58cd37fc3f19e3fb4fe",
            ),
            (
                ENDORSEMENT,
                "000bb21b1ce401714fcf633811936c2c181d1ffa0d58a9364e2e5cc42add9fe26be6",
            ),
        ] {
            assert_eq!(hex::encode(parse(key).name()), name);
        }
    }

    #[test]
    fn fields_are_those_of_the_tpm() {
        let key = parse(IDENTITY);
        let unique = &IDENTITY[IDENTITY.len() - 132..];
        let (x, y) = (&unique[..64], &unique[68..]);
        assert_eq!(hex::encode(key.point()), format!("04{x}{y}"));
        assert_eq!(key.attributes().bits(), 0x0004_0472);
        assert_eq!(key.scheme(), TpmScheme::EcdsaSha256);
        assert_eq!(parse(CHANNEL).scheme(), TpmScheme::Null);
        assert_eq!(parse(CHANNEL_ECDH).scheme(), TpmScheme::EcdhSha256);
        assert_eq!(hex::encode(key.as_bytes()), IDENTITY);
    }

    #[test]
    fn each_key_passes_its_own_check_only() {
        assert_eq!(parse(IDENTITY).check_identity(), Ok(()));
        assert_eq!(parse(CHANNEL).check_channel(), Ok(()));
        assert_eq!(parse(CHANNEL_ECDH).check_channel(), Ok(()));
        assert_eq!(parse(ATTESTATION).check_attestation(), Ok(()));

        for (error, checks) in [
            (
                TpmError::Lacks(TpmAttribute::Sign),
                [
                    parse(CHANNEL).check_identity(),
                    parse(ENDORSEMENT).check_attestation(),
                ],
            ),
            (
                TpmError::MustNotHave(TpmAttribute::Restricted),
                [
                    parse(ATTESTATION).check_identity(),
                    parse(ENDORSEMENT).check_channel(),
                ],
            ),
            (
                TpmError::Lacks(TpmAttribute::Decrypt),
                [
                    parse(IDENTITY).check_channel(),
                    parse(ATTESTATION).check_channel(),
                ],
            ),
            (
                TpmError::Lacks(TpmAttribute::Restricted),
                [
                    parse(IDENTITY).check_attestation(),
                    parse(CHANNEL).check_attestation(),
                ],
            ),
            (
                TpmError::Scheme,
                [parse(SIGN_ANYHOW).check_identity(), Err(TpmError::Scheme)],
            ),
            (
                TpmError::Lacks(TpmAttribute::FixedTpm),
                [
                    parse(MOVABLE).check_identity(),
                    Err(TpmError::Lacks(TpmAttribute::FixedTpm)),
                ],
            ),
        ] {
            assert_eq!(checks, [Err(error), Err(error)]);
        }
    }

    #[test]
    fn each_wrong_attribute_has_its_own_error() {
        use TpmAttribute::{Decrypt, FixedParent, FixedTpm, Restricted, SensitiveDataOrigin, Sign};
        use TpmError::{Lacks, MustNotHave};
        type Check = fn(&TpmPublic) -> Result<(), TpmError>;
        let keys: [(&str, Check, [TpmError; 6]); 3] = [
            (
                IDENTITY,
                TpmPublic::check_identity,
                [
                    Lacks(FixedTpm),
                    Lacks(FixedParent),
                    Lacks(SensitiveDataOrigin),
                    Lacks(Sign),
                    MustNotHave(Restricted),
                    MustNotHave(Decrypt),
                ],
            ),
            (
                CHANNEL,
                TpmPublic::check_channel,
                [
                    Lacks(FixedTpm),
                    Lacks(FixedParent),
                    Lacks(SensitiveDataOrigin),
                    MustNotHave(Sign),
                    MustNotHave(Restricted),
                    Lacks(Decrypt),
                ],
            ),
            (
                ATTESTATION,
                TpmPublic::check_attestation,
                [
                    Lacks(FixedTpm),
                    Lacks(FixedParent),
                    Lacks(SensitiveDataOrigin),
                    Lacks(Sign),
                    Lacks(Restricted),
                    MustNotHave(Decrypt),
                ],
            ),
        ];
        // Bit numbers of Part 2, 8.3.2, in the order of the errors above.
        let bits = [1, 4, 5, 18, 16, 17];
        for (key, check, errors) in keys {
            for (bit, error) in bits.into_iter().zip(errors) {
                let mut bytes = hex::decode(key).unwrap();
                bytes[7 - bit / 8] ^= 1 << (bit % 8);
                assert_eq!(check(&TpmPublic::parse(&bytes).unwrap()), Err(error));
            }
        }
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let bytes = hex::decode(IDENTITY).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(TpmPublic::parse(&bytes[..length]), Err(TpmError::Truncated));
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(
            TpmPublic::parse(&longer),
            Err(TpmError::Trailing { bytes: 1 })
        );
    }

    #[test]
    fn other_kinds_of_key_are_refused() {
        let unsupported = |field, value| Err(TpmError::Unsupported { field, value });
        let changed = |from: &str, to: &str| {
            TpmPublic::parse(&hex::decode(IDENTITY.replacen(from, to, 1)).unwrap())
        };
        assert_eq!(
            TpmPublic::parse(&hex::decode(P384).unwrap()),
            unsupported(TpmField::Curve, 4)
        );
        assert_eq!(changed("0023", "0001"), unsupported(TpmField::Type, 1));
        assert_eq!(
            changed("000b", "000c"),
            unsupported(TpmField::NameAlgorithm, 0x0c)
        );
        assert_eq!(
            changed("00100018", "00260018"),
            unsupported(TpmField::Symmetric, 0x26)
        );
        assert_eq!(
            changed("0018000b", "001a000b"),
            unsupported(TpmField::Scheme, 0x1a)
        );
        assert_eq!(
            changed("0018000b", "0018000c"),
            unsupported(TpmField::Scheme, 0x0c)
        );
        assert_eq!(
            changed("00030010", "00030020"),
            unsupported(TpmField::KeyDerivation, 0x20)
        );
        assert_eq!(
            changed("00100020f3", "0010002100f3"),
            unsupported(TpmField::Coordinate, 33)
        );
    }

    #[test]
    fn a_short_coordinate_is_filled_up_on_the_left() {
        let short = IDENTITY.replacen("0020f304", "001f04", 1);
        let point = TpmPublic::parse(&hex::decode(short).unwrap())
            .unwrap()
            .point();
        assert_eq!(point[..3], [0x04, 0x00, 0x04]);
        assert_eq!(point[3..], parse(IDENTITY).point()[3..]);
    }

    fn parse(hex: &str) -> TpmPublic {
        TpmPublic::parse(&hex::decode(hex).unwrap()).unwrap()
    }

    const IDENTITY: &str = "0023000b00040472000000100018000b000300100020f304786226cfafd3e0aed69c4a6e8476bdb4b586\
        2116ef02f2f1bbd6b91285220020369cbdcb294ba241f15568b0793925370069a3f77d7f5af760bbe757\
        6d5071ee";
    const CHANNEL: &str = "0023000b00020472000000100010000300100020751794989be5fbdff00abab196f518433d6ce48f67aa\
        177ab3378f64efbb82c10020a7c67806d37a0ab9296f331dfea5fc3112143549f2741fb21196035b549c\
        6fa4";
    const CHANNEL_ECDH: &str = "0023000b00020472000000100019000b00030010002085d676fa6a6e96e6f31c4d1f41e383d7d286b337\
        ee3372556520bdbd01c86b5d0020d6e4aea922154393997f07b7d6e3c325cae623afdc6ec995419f3045\
        652a8b2f";
    const ATTESTATION: &str = "0023000b00050472000000100018000b000300100020c1263efd83445e1e3c717bd8f043097176310dc2\
        dabc40125a79d8ebe6d683df0020177c1872a83c684075556a60af008455fa933a0897c5dc47ea290d91\
        0d539925";
    const SIGN_ANYHOW: &str = "0023000b00040472000000100010000300100020792eb76a4dfc3794655698ece14ed59d6ec23b15aaa1\
        39cb556e281404163afe00202f8a950f143e37a1a0132374c5db8a1fc2e002c2cf3fb2ac2acd682ad17d\
        9f0d";
    const MOVABLE: &str = "0023000b00040460000000100018000b00030010002051e86386e7361343aef618ec0c0f0d99ca5b29c7\
        420809da15b5d6571c4edaf500202ddfc34f99542b43e5333801c6c72a6b56d79736cb5bc0b193548ff9\
        80da2a63";
    const ENDORSEMENT: &str = "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa\
        00060080004300100003001000205c763297d7bfcdc4af884ba209001181e1c1f63b7d4084e0cb2fa33e\
        801e4d620020b0d796df428f719fdbfd9d679dc3ca4ccd3b928036af0dc9611ef02781fe0003";
    const P384: &str = "0023000b00040472000000100018000b00040010003037be4048980cfeed70161eb0ae83648e1d857a61\
        a85a74c848f39f8f28830051a173727e7878d27f81e9300f895a5a990030825c0c215db7098d4cd89303\
        3d75bb8324c66f56cd706775b83f4c1ba1a36e7429a9ab04491234cdbe049d33c443f31d";
}
