//! What a gateway's TPM says about the software that was started.

use channel::PublicKey;
use wire::tpm::{QualifiedName, Quote};

use super::{EvidenceError, signed_by};

/// Checks a quote (attest and signature, as a TPM writes them) by the attestation key `attestation`,
/// whose Qualified Name is `signer`, in answer to `qualifying` ([`wire::tpm::quote_data`]).
///
/// Whether the PCRs held what they should is for the caller to ask the [`Quote`].
///
/// # Errors
///
/// [`EvidenceError::Quote`] or [`EvidenceError::QuoteNotSigned`].
pub fn verify(
    attestation: &PublicKey,
    signer: &QualifiedName,
    (attest, signature): (&[u8], &[u8]),
    qualifying: &[u8; 32],
) -> Result<Quote, EvidenceError> {
    let quote = Quote::verify(attest, signer, qualifying).map_err(EvidenceError::Quote)?;
    if signed_by(attestation, attest, signature).map_err(EvidenceError::Quote)? {
        Ok(quote)
    } else {
        Err(EvidenceError::QuoteNotSigned)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use wire::tpm::{TpmHierarchy, TpmPublic, quote_data};

    use super::*;

    // Made by `tpm2_quote -l sha256:0,7,16` of tpm2-tools 5.4 in swtpm 0.7.1, by an attestation key
    // under a P-256 root of the owner hierarchy.

    #[test]
    fn a_quote_of_a_tpm_is_verified() {
        let quote = verify_with(&bytes(ATTEST), &bytes(SIGNATURE)).unwrap();
        assert_eq!(quote.pcrs().to_string(), "0,7,16");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_of_attest_or_signature_is_accepted() {
        let (attest, signature) = (bytes(ATTEST), bytes(SIGNATURE));
        for bit in 0..attest.len() * 8 {
            let other = flipped(&attest, bit);
            assert!(verify_with(&other, &signature).is_err(), "attest {bit}");
        }
        for bit in 0..signature.len() * 8 {
            let other = flipped(&signature, bit);
            assert!(verify_with(&attest, &other).is_err(), "signature {bit}");
        }
        for length in 0..attest.len() {
            assert!(verify_with(&attest[..length], &signature).is_err());
        }
        for length in 0..signature.len() {
            assert!(verify_with(&attest, &signature[..length]).is_err());
        }
        for (attest, signature) in [
            ([attest.as_slice(), &[0]].concat(), signature.clone()),
            (attest.clone(), [signature.as_slice(), &[0]].concat()),
        ] {
            assert!(verify_with(&attest, &signature).is_err());
        }
    }

    #[test]
    fn a_quote_signed_by_another_key_is_refused() {
        let attest = bytes(ATTEST);
        // What it says of its PCRs, the firmware and the clock is protected by nothing else.
        let last = flipped(&attest, attest.len() * 8 - 1);
        assert!(matches!(
            verify_with(&last, &bytes(SIGNATURE)),
            Err(EvidenceError::QuoteNotSigned)
        ));
        let (_, signer) = attestation();
        let other = TpmPublic::parse(&bytes(CHANNEL)).unwrap().point();
        let other = PublicKey::parse(&other).unwrap();
        let (attest, signature) = (attest.as_slice(), &bytes(SIGNATURE)[..]);
        assert!(matches!(
            verify(&other, &signer, (attest, signature), &challenge()),
            Err(EvidenceError::QuoteNotSigned)
        ));
    }

    fn verify_with(attest: &[u8], signature: &[u8]) -> Result<Quote, EvidenceError> {
        let (key, signer) = attestation();
        verify(&key, &signer, (attest, signature), &challenge())
    }

    fn attestation() -> (PublicKey, QualifiedName) {
        let key = TpmPublic::parse(&bytes(ATTESTATION)).unwrap();
        let root = bytes(ROOT_NAME).try_into().unwrap();
        let root = QualifiedName::primary(TpmHierarchy::Owner, &root);
        let point = PublicKey::parse(&key.point()).unwrap();
        (point, root.child(&key.name()))
    }

    fn challenge() -> [u8; 32] {
        quote_data(&[0x22; 32], &[0x11; 32])
    }

    fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
        let mut other = bytes.to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        other
    }

    fn bytes(hex: &str) -> Vec<u8> {
        HEXLOWER.decode(hex.as_bytes()).unwrap()
    }

    const ROOT_NAME: &str = "000b814548da241f9492c707b59c35e45ff5b9abfaa906032f99bd4713a0\
        05329326";
    const ATTESTATION: &str = "0023000b00050472000000100018000b00030010002062927d38e526d797\
        1cf149733801e890108cf26359110424453bf2b3d389f25e0020e7a3e9b6b9bf280158a9b14510f6\
        b70d49b6d9bc1cdfb6ae39bafaa2bfc3ab96";
    const CHANNEL: &str = "0023000b000204720000001000100003001000205d9e3762c397fc02e8b7\
        784e12506de9980cef1b13fb57eddcbd7a95008f129f002009dd67d9d9c4acc385ad1529f1b3592f\
        415639c22be5c031ee3d385dd56c412c";
    const ATTEST: &str = "ff54434780180022000b9fc89152d866dec90954e1b676d9babbd0a4d2b5\
        191b3eabfda623dec533892000201c17bde923e0024739f654285d70ab31002a95f007a7ba2b7347\
        e955aefeee7f000000000000034f667646229902569001894ade9a7d9c542f00000001000b038100\
        0100208b7e8d24fcad62da610e16b862b3e724da2aa228bd1a93d051b879876c22bc55";
    const SIGNATURE: &str = "0018000b00205b493c11bd8938ac23b369639e02d831fc9408a9083a0a0d\
        0a505ee89f67dab20020aad2cae2dec0d4c5496a85f73783d6b31e4f40c9470ad074c4dd5fc2dd74\
        bbb6";
}
