//! What an attestation key says: of any attest the head, and about another key the rest.

use super::cursor::{COORDINATE_BYTES, Cursor};
use super::{ALG_ECDSA, ALG_SHA256, QualifiedName, TpmError, TpmField};

/// Where in a TPM a certified key stands, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certification {
    signer: QualifiedName,
    qualified_name: QualifiedName,
}

/// A TPM's clock, and how often it was started: `TPMS_CLOCK_INFO` (Part 2, 10.11.1).
///
/// In attests by a key outside the endorsement and platform hierarchies, the TPM adds a secret
/// constant, one for each attestation key, to both counts and to the version of the firmware (Part
/// 3, *Attestation Commands*). So differences between two quotes of one key count; the numbers
/// themselves say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds for which the TPM has had power, since its owner last cleared it.
    pub clock_ms: u64,
    /// How often it was reset; wraps.
    pub reset_count: u32,
    /// How often it was resumed or restarted since then; wraps.
    pub restart_count: u32,
    /// Whether no larger `clock_ms` can have been reported before.
    pub safe: bool,
}

impl Certification {
    /// Checks what `TPM2_Certify` attested: a `TPMS_ATTEST` (Part 2, 10.12.12) that a TPM made,
    /// about the key with this `name`, in answer to `qualifying`.
    ///
    /// That the signature over `attest` is the attestation key's is for the caller to verify.
    ///
    /// # Errors
    ///
    /// [`TpmError::NotMadeByTpm`], [`TpmError::NotCertification`], [`TpmError::OtherChallenge`] and
    /// [`TpmError::OtherKey`]; [`TpmError::Unsupported`] for Names over another hash;
    /// [`TpmError::Truncated`] and [`TpmError::Trailing`].
    pub fn verify(attest: &[u8], name: &[u8; 34], qualifying: &[u8]) -> Result<Self, TpmError> {
        let mut head = Attest::read(attest, ATTEST_CERTIFY, TpmError::NotCertification)?;
        let certified = head.rest.sized()?;
        let qualified_name = head.rest.name()?;
        head.rest.end()?;
        head.check_challenge(qualifying)?;
        if certified != name {
            return Err(TpmError::OtherKey);
        }
        Ok(Self {
            signer: head.signer,
            qualified_name: QualifiedName::from_bytes(qualified_name),
        })
    }

    /// Checks that the attestation key with this Qualified Name made it.
    ///
    /// # Errors
    ///
    /// [`TpmError::OtherSigner`].
    pub fn check_signer(&self, signer: &QualifiedName) -> Result<(), TpmError> {
        if self.signer == *signer {
            Ok(())
        } else {
            Err(TpmError::OtherSigner)
        }
    }

    /// The attestation key, as it names itself.
    #[must_use]
    pub fn signer(&self) -> QualifiedName {
        self.signer
    }

    /// The certified key.
    #[must_use]
    pub fn qualified_name(&self) -> QualifiedName {
        self.qualified_name
    }
}

/// The head that every `TPMS_ATTEST` has (Part 2, 10.12.12), and the rest to be read.
pub(super) struct Attest<'b> {
    pub(super) signer: QualifiedName,
    pub(super) clock: ClockInfo,
    pub(super) firmware_version: u64,
    pub(super) rest: Cursor<'b>,
    extra_data: &'b [u8],
}

impl<'b> Attest<'b> {
    /// Reads the head of an attest of this `kind`, a `TPM_ST`; of another kind it is `otherwise`.
    pub(super) fn read(bytes: &'b [u8], kind: u16, otherwise: TpmError) -> Result<Self, TpmError> {
        let mut rest = Cursor(bytes);
        if rest.array()? != GENERATED {
            return Err(TpmError::NotMadeByTpm);
        }
        if rest.u16()? != kind {
            return Err(otherwise);
        }
        Ok(Self {
            signer: QualifiedName::from_bytes(rest.name()?),
            extra_data: rest.sized()?,
            clock: ClockInfo {
                clock_ms: rest.u64()?,
                reset_count: rest.u32()?,
                restart_count: rest.u32()?,
                safe: rest.yes_no(TpmField::Safe)?,
            },
            firmware_version: rest.u64()?,
            rest,
        })
    }

    /// Checks that it answers `qualifying`.
    pub(super) fn check_challenge(&self, qualifying: &[u8]) -> Result<(), TpmError> {
        if self.extra_data == qualifying {
            Ok(())
        } else {
            Err(TpmError::OtherChallenge)
        }
    }
}

/// Reads a `TPMT_SIGNATURE` (Part 2, 11.3.4) of ECDSA over SHA-256 with P-256, as `r ‖ s`.
///
/// A TPM does not normalise `s`; whoever verifies it does so first.
///
/// # Errors
///
/// [`TpmError::Unsupported`] for another kind of signature; [`TpmError::Truncated`] and
/// [`TpmError::Trailing`].
pub fn ecdsa_signature(signature: &[u8]) -> Result<[u8; 64], TpmError> {
    let mut cursor = Cursor(signature);
    cursor.expect(TpmField::Scheme, &[ALG_ECDSA])?;
    cursor.expect(TpmField::Scheme, &[ALG_SHA256])?;
    let mut both = [0; 64];
    for half in both.chunks_exact_mut(COORDINATE_BYTES) {
        cursor.padded(half)?;
    }
    cursor.end()?;
    Ok(both)
}

/// `TPM_GENERATED_VALUE` (Part 2, 6.2): a restricted key signs nothing else that starts so.
const GENERATED: [u8; 4] = [0xff, b'T', b'C', b'G'];

/// `TPM_ST_ATTEST_CERTIFY` (Part 2, 6.9).
const ATTEST_CERTIFY: u16 = 0x8017;

#[cfg(test)]
mod tests {
    use super::super::TpmHierarchy;
    use super::super::vectors::{self, bytes};
    use super::*;

    // Made by `tpm2_certify` of tpm2-tools 5.4 in swtpm 0.7.1, which always qualifies with
    // 00ff55aa; the keys are those of the parent module's tests.

    #[test]
    fn a_certification_by_a_tpm_is_accepted() {
        let attest = hex::decode(ATTEST).unwrap();
        assert!(Certification::verify(&attest, &NAME, &QUALIFYING).is_ok());
    }

    #[test]
    fn a_certification_for_something_else_is_refused() {
        let attest = hex::decode(ATTEST).unwrap();
        let with = |at: usize| {
            let mut other = attest.clone();
            other[at] ^= 1;
            Certification::verify(&other, &NAME, &QUALIFYING)
        };
        assert_eq!(
            Certification::verify(&bytes(vectors::QUOTE), &NAME, &QUALIFYING),
            Err(TpmError::NotCertification)
        );
        assert_eq!(with(0), Err(TpmError::NotMadeByTpm));
        assert_eq!(with(5), Err(TpmError::NotCertification));
        let qualifying = attest
            .windows(4)
            .position(|four| four == QUALIFYING)
            .unwrap();
        assert_eq!(with(qualifying), Err(TpmError::OtherChallenge));
        let name = attest.windows(34).position(|name| name == NAME).unwrap();
        assert_eq!(with(name + 33), Err(TpmError::OtherKey));

        assert_eq!(
            Certification::verify(&attest, &NAME, &QUALIFYING[..3]),
            Err(TpmError::OtherChallenge)
        );
        assert_eq!(
            Certification::verify(&[attest.as_slice(), &[0]].concat(), &NAME, &QUALIFYING),
            Err(TpmError::Trailing { bytes: 1 })
        );
        for length in 0..attest.len() {
            assert_eq!(
                Certification::verify(&attest[..length], &NAME, &QUALIFYING),
                Err(TpmError::Truncated)
            );
        }
    }

    #[test]
    fn a_certification_says_where_both_keys_stand() {
        let attest = bytes(vectors::CERTIFICATION);
        let name = vectors::name(vectors::CHANNEL_NAME);
        let root = vectors::name(vectors::ROOT_NAME);
        let root = QualifiedName::primary(TpmHierarchy::Owner, &root);

        let certification = Certification::verify(&attest, &name, &QUALIFYING).unwrap();

        assert_eq!(certification.signer(), vectors::signer());
        assert_eq!(certification.check_signer(&vectors::signer()), Ok(()));
        assert_eq!(certification.qualified_name(), root.child(&name));
        assert_eq!(
            certification.check_signer(&root.child(&name)),
            Err(TpmError::OtherSigner)
        );
    }

    #[test]
    fn names_over_other_hashes_and_a_clock_between_yes_and_no_are_refused() {
        let attest = bytes(vectors::CERTIFICATION);
        let name = vectors::name(vectors::CHANNEL_NAME);
        let with = |at: usize, value: u8| {
            let mut other = attest.clone();
            other[at] = value;
            Certification::verify(&other, &name, &QUALIFYING)
        };
        let unsupported = |field, value| Err(TpmError::Unsupported { field, value });
        let last = attest.len() - 34;
        assert_eq!(with(9, 0x0c), unsupported(TpmField::Name, 0x0c));
        assert_eq!(with(last + 1, 0x04), unsupported(TpmField::Name, 0x04));
        assert_eq!(with(64, 2), unsupported(TpmField::Safe, 2));
        assert!(with(64, 0).is_ok());
        assert_eq!(with(7, 0x21), unsupported(TpmField::Name, 0x21));
    }

    #[test]
    fn a_signature_is_its_two_halves() {
        let signature = hex::decode(SIGNATURE).unwrap();
        let halves = [&SIGNATURE[12..76], &SIGNATURE[80..]].concat();
        assert_eq!(hex::encode(ecdsa_signature(&signature).unwrap()), halves);

        let short = SIGNATURE.replacen("0020fed2", "001fd2", 1);
        let padded = halves.replacen("fe", "00", 1);
        let short = ecdsa_signature(&hex::decode(short).unwrap()).unwrap();
        assert_eq!(hex::encode(short), padded);
    }

    #[test]
    fn other_signatures_are_refused() {
        let with = |from: &str, to: &str| {
            ecdsa_signature(&hex::decode(SIGNATURE.replacen(from, to, 1)).unwrap())
        };
        let scheme = |value| {
            Err(TpmError::Unsupported {
                field: TpmField::Scheme,
                value,
            })
        };
        assert_eq!(with("0018", "0014"), scheme(0x14));
        assert_eq!(with("000b", "0004"), scheme(0x04));
        assert_eq!(
            with("2c72ae", "2c72ae00"),
            Err(TpmError::Trailing { bytes: 1 })
        );
        assert_eq!(with("2c72ae", "2c72"), Err(TpmError::Truncated));
    }

    const NAME: [u8; 34] = [
        0x00, 0x0b, 0x34, 0x18, 0xd5, 0x1c, 0x55, 0x07, 0x3b, 0x81, 0xb4, 0xa2, 0x3d, 0x48, 0x6e,
        0xed, 0x35, 0xc1, 0x19, 0xe2, 0x2e, 0xff, 0x73, 0x8d, 0x0b, 0x0f, 0xbd, 0x57, 0x28, 0x46,
        0xc7, 0xab, 0xa3, 0xec,
    ];
    const QUALIFYING: [u8; 4] = [0x00, 0xff, 0x55, 0xaa];
    const ATTEST: &str = "ff54434780170022000bb87c8df18d534777735eec7fb0e82a767f8a492db86d9dae2b\
        a944cddaa32629000400ff55aa0000000000000470a3522b04e76662b900527441f43b749ad60022000b34\
        18d51c55073b81b4a23d486eed35c119e22eff738d0b0fbd572846c7aba3ec0022000b669f7b2ee101aca5\
        58b418ceeed85be3d5ce9ae26cfe59bbd554f6977d62534d";
    const SIGNATURE: &str = "0018000b0020fed2b6e5c4a5a24d5480bd6be53a36e757e539f2dc85c044c066ccfa\
        5737f7dd0020d655be7b3fa71dae051a5cd35a9cec96ef2be78ae4363d41e28577aa5d2c72ae";
}
