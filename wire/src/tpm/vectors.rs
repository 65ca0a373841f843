//! Made by tpm2-tools 5.4 in swtpm 0.7.1, for the tests: `tpm2_quote` and `tpm2_certify` by an
//! attestation key under a P-256 root of the owner hierarchy.

use super::{QualifiedName, TpmHierarchy};

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

pub(super) fn name(hex: &str) -> [u8; 34] {
    bytes(hex).try_into().unwrap()
}

/// The Qualified Name of the attestation key.
pub(super) fn signer() -> QualifiedName {
    QualifiedName::primary(TpmHierarchy::Owner, &name(ROOT_NAME)).child(&name(ATTESTATION_NAME))
}

/// What the quotes answer: `printf 'gatewayd/1 quote\0'`, 32 bytes 0x11 and 32 bytes 0x22 through
/// `sha256sum`.
pub(super) fn quote_challenge() -> &'static [u8; 32] {
    &[
        0x1c, 0x17, 0xbd, 0xe9, 0x23, 0xe0, 0x02, 0x47, 0x39, 0xf6, 0x54, 0x28, 0x5d, 0x70, 0xab,
        0x31, 0x00, 0x2a, 0x95, 0xf0, 0x07, 0xa7, 0xba, 0x2b, 0x73, 0x47, 0xe9, 0x55, 0xae, 0xfe,
        0xee, 0x7f,
    ]
}

/// `tpm2_readpublic -n` of the root.
pub(super) const ROOT_NAME: &str = "000b814548da241f9492c707b59c35e45ff5b9abfaa906032f99bd4713a0\
    05329326";

/// The same of the attestation key.
pub(super) const ATTESTATION_NAME: &str = "000b8644f5ad57c329c8ebdf1348b67753af32462c00642d6f8688f3598b\
    07066181";

/// The same of the key that is certified.
pub(super) const CHANNEL_NAME: &str = "000bfc4e21c169ab1b549dbe4ee2e8dfd76d97fcd189d912d3643cfbeaa0\
    7b1e494e";

/// `tpm2_certify`, which always qualifies with 00ff55aa.
pub(super) const CERTIFICATION: &str = "ff54434780170022000b9fc89152d866dec90954e1b676d9babbd0a4d2b5\
    191b3eabfda623dec5338920000400ff55aa00000000000003dd667646229902569001894ade9a7d9c542f00\
    22000bfc4e21c169ab1b549dbe4ee2e8dfd76d97fcd189d912d3643cfbeaa07b1e494e0022000b1a1c56d430\
    1ecac62ad8a751cef674aaa0bf88e9a8d15859dc8eb724657457ae";

/// `tpm2_quote -l sha256:0,7,16`.
pub(super) const QUOTE: &str = "ff54434780180022000b9fc89152d866dec90954e1b676d9babbd0a4d2b5\
    191b3eabfda623dec533892000201c17bde923e0024739f654285d70ab31002a95f007a7ba2b7347e955aefe\
    ee7f000000000000034f667646229902569001894ade9a7d9c542f00000001000b0381000100208b7e8d24fc\
    ad62da610e16b862b3e724da2aa228bd1a93d051b879876c22bc55";

/// `tpm2_quote -l sha256:0+sha1:0`.
pub(super) const QUOTE_OF_TWO_BANKS: &str = "ff54434780180022000b9fc89152d866dec90954e1b676d9babbd0a4d2b5\
    191b3eabfda623dec533892000201c17bde923e0024739f654285d70ab31002a95f007a7ba2b7347e955aefe\
    ee7f0000000000000373667646229902569001894ade9a7d9c542f00000002000b0301000000040301000000\
    207955cb2de90dd9efc6df9fdbf5f5d10c114f4135a9a6b52db1003be749e32f7a";

/// `tpm2_quote -l sha384:0`.
pub(super) const QUOTE_OF_SHA384: &str = "ff54434780180022000b9fc89152d866dec90954e1b676d9babbd0a4d2b5\
    191b3eabfda623dec533892000201c17bde923e0024739f654285d70ab31002a95f007a7ba2b7347e955aefe\
    ee7f0000000000000399667646229902569001894ade9a7d9c542f00000001000c03010000002017b0761f87\
    b081d5cf10757ccc89f12be355c70e2e29df288b65b30710dcbcd1";

/// `tpm2_pcrread sha256:0,7,16` at that time.
pub(super) const PCRS: [(u8, &str); 3] = [
    (
        0,
        "0000000000000000000000000000000000000000000000000000000000000000",
    ),
    (
        7,
        "a66fc57db12dd0f90d21f7621ac570759bc9410ecea2b5d95a39edd2c2f0860b",
    ),
    (
        16,
        "44ebea924bfad45f7315a1ab8b1b6134885ba7f0734322b295da7416592ab011",
    ),
];
