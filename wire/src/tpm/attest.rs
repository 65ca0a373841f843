//! What an attestation key says about another key.

use super::{ALG_ECDSA, ALG_SHA256, COORDINATE_BYTES, Cursor, TpmError, TpmField};

/// Checks what `TPM2_Certify` attested: a `TPMS_ATTEST` (Part 2, 10.12.12) that a TPM made, about
/// the key with this `name`, in answer to `qualifying`.
///
/// That the signature over `attest` is the attestation key's is for the caller to verify.
///
/// # Errors
///
/// [`TpmError::NotMadeByTpm`], [`TpmError::NotCertification`], [`TpmError::OtherChallenge`] and
/// [`TpmError::OtherKey`]; [`TpmError::Truncated`] and [`TpmError::Trailing`].
pub fn check_certification(
    attest: &[u8],
    name: &[u8; 34],
    qualifying: &[u8],
) -> Result<(), TpmError> {
    let mut cursor = Cursor(attest);
    if cursor.array()? != GENERATED {
        return Err(TpmError::NotMadeByTpm);
    }
    if cursor.array()? != ATTEST_CERTIFY {
        return Err(TpmError::NotCertification);
    }
    let _qualified_signer = cursor.sized()?;
    let extra_data = cursor.sized()?;
    let _clock_and_firmware: [u8; CLOCK_INFO_BYTES + FIRMWARE_VERSION_BYTES] = cursor.array()?;
    let certified_name = cursor.sized()?;
    let _qualified_name = cursor.sized()?;
    cursor.end()?;
    if extra_data != qualifying {
        return Err(TpmError::OtherChallenge);
    }
    if certified_name != name {
        return Err(TpmError::OtherKey);
    }
    Ok(())
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
const ATTEST_CERTIFY: [u8; 2] = [0x80, 0x17];

/// `TPMS_CLOCK_INFO` (Part 2, 10.11.1): clock, reset count, restart count, safe.
const CLOCK_INFO_BYTES: usize = 8 + 4 + 4 + 1;

/// `firmwareVersion` (Part 2, 10.12.12).
const FIRMWARE_VERSION_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    // Made by `tpm2_certify` of tpm2-tools 5.4 in swtpm 0.7.1, which always qualifies with
    // 00ff55aa; the keys are those of the parent module's tests.

    #[test]
    fn a_certification_by_a_tpm_is_accepted() {
        let attest = hex::decode(ATTEST).unwrap();
        assert_eq!(check_certification(&attest, &NAME, &QUALIFYING), Ok(()));
    }

    #[test]
    fn a_certification_for_something_else_is_refused() {
        let attest = hex::decode(ATTEST).unwrap();
        let with = |at: usize| {
            let mut other = attest.clone();
            other[at] ^= 1;
            check_certification(&other, &NAME, &QUALIFYING)
        };
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
            check_certification(&attest, &NAME, &QUALIFYING[..3]),
            Err(TpmError::OtherChallenge)
        );
        assert_eq!(
            check_certification(&[attest.as_slice(), &[0]].concat(), &NAME, &QUALIFYING),
            Err(TpmError::Trailing { bytes: 1 })
        );
        for length in 0..attest.len() {
            assert_eq!(
                check_certification(&attest[..length], &NAME, &QUALIFYING),
                Err(TpmError::Truncated)
            );
        }
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
