//! Structures that a TPM marshals, or that somebody says it did.

use wire::tpm::{Certification, QualifiedName, Quote, TpmHierarchy, TpmPublic, ecdsa_signature};

/// All of them are tried on the same bytes, with the challenge and the names of the vectors in
/// `wire/src/tpm/vectors.rs`, so that these are accepted.
pub(crate) fn structures(bytes: &[u8]) -> bool {
    public(bytes) | quote(bytes) | certification(bytes) | signature(bytes)
}

fn public(bytes: &[u8]) -> bool {
    let Ok(key) = TpmPublic::parse(bytes) else {
        return false;
    };
    assert_eq!(key.as_bytes(), bytes);
    assert!(bytes.ends_with(significant(&key.point()[33..])));
    let uses = [
        key.check_identity(),
        key.check_channel(),
        key.check_attestation(),
    ];
    assert!(uses.iter().filter(|checked| checked.is_ok()).count() <= 1);
    true
}

/// What is accepted is what its parts make (TPM 2.0 Part 2, 10.12.12).
fn quote(bytes: &[u8]) -> bool {
    let Ok(quote) = Quote::verify(bytes, &signer(), &hex(CHALLENGE)) else {
        return false;
    };
    let clock = quote.clock();
    let signer = signer();
    let parts = [
        b"\xffTCG\x80\x18\x00\x22".as_slice(),
        signer.as_bytes(),
        &[0, 32],
        &hex(CHALLENGE),
        &clock.clock_ms.to_be_bytes(),
        &clock.reset_count.to_be_bytes(),
        &clock.restart_count.to_be_bytes(),
        &[u8::from(clock.safe)],
        &quote.firmware_version().to_be_bytes(),
    ];
    let head = parts.concat();
    assert_eq!(bytes[..head.len()], head);
    let tail = [&[0, 32], &quote.digest()[..]].concat();
    assert!(bytes.ends_with(&tail));
    let selection = &bytes[head.len()..bytes.len() - tail.len()];
    // One bank or none, and of the bank as many bytes of PCRs as the TPM likes.
    let pcrs: Vec<u8> = match selection {
        [0, 0, 0, 1, 0, 0x0b, count, bits @ ..] => {
            assert_eq!(usize::from(*count), bits.len());
            (0..32)
                .filter(|n| {
                    bits.get(usize::from(n / 8))
                        .is_some_and(|byte| byte >> (n % 8) & 1 == 1)
                })
                .collect()
        }
        _ => Vec::new(),
    };
    assert_eq!(quote.pcrs().iter().collect::<Vec<_>>(), pcrs);
    true
}

fn certification(bytes: &[u8]) -> bool {
    let name = hex(CHANNEL_NAME).try_into().unwrap();
    let Ok(certification) = Certification::verify(bytes, &name, &hex("00ff55aa")) else {
        return false;
    };
    assert!(bytes.ends_with(certification.qualified_name().as_bytes()));
    assert_eq!(bytes[8..8 + 34], *certification.signer().as_bytes());
    true
}

/// `TPMT_SIGNATURE` (Part 2, 11.3.4): what is taken off the coordinates is zeros in front.
fn signature(bytes: &[u8]) -> bool {
    let Ok(both) = ecdsa_signature(bytes) else {
        return false;
    };
    let r_bytes = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    let (r, rest) = bytes[6..].split_at(r_bytes);
    for (coordinate, taken) in [(r, &both[..32]), (&rest[2..], &both[32..])] {
        assert_eq!(significant(coordinate), significant(taken));
    }
    true
}

/// Without the zeros in front, which a TPM may leave out.
fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

fn signer() -> QualifiedName {
    let name = |text| hex(text).try_into().unwrap();
    QualifiedName::primary(TpmHierarchy::Owner, &name(ROOT_NAME)).child(&name(ATTESTATION_NAME))
}

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

const CHALLENGE: &str = "1c17bde923e0024739f654285d70ab31002a95f007a7ba2b7347e955aefeee7f";
const ROOT_NAME: &str = "000b814548da241f9492c707b59c35e45ff5b9abfaa906032f99bd4713a005329326";
const ATTESTATION_NAME: &str =
    "000b8644f5ad57c329c8ebdf1348b67753af32462c00642d6f8688f3598b07066181";
const CHANNEL_NAME: &str = "000bfc4e21c169ab1b549dbe4ee2e8dfd76d97fcd189d912d3643cfbeaa07b1e494e";
