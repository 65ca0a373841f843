//! What the TPM proves about its keys, checked with other software.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use hsm::swtpm::Swtpm;
use hsm::{CertifyKey, EndorsementKind, HsmError, Public};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use support::{at_rest, digest, file, hsm, make_credential, tool};

#[tokio::test]
async fn a_certificate_of_the_attestation_key_names_the_key_and_verifies() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();

    for (key, area) in [
        (CertifyKey::Identity, &public.identity_public),
        (CertifyKey::Channel, &public.channel_public),
    ] {
        let (attest, signature) = handle.certify(key, digest(9)).await.unwrap();

        // TPMT_SIGNATURE: ECDSA, SHA-256, then r and s with their sizes.
        assert_eq!(signature[..6], [0x00, 0x18, 0x00, 0x0B, 0x00, 0x20]);
        assert_eq!(signature[38..40], [0x00, 0x20]);
        assert_eq!(signature.len(), 72);
        let signature =
            Signature::from_slice(&[&signature[6..38], &signature[40..]].concat()).unwrap();
        attestation_key(&public)
            .verify(&attest, &signature)
            .unwrap();

        // TPMS_ATTEST: magic, TPM_ST_ATTEST_CERTIFY, signer, the qualifying data, ...
        assert_eq!(attest[..6], *b"\xffTCG\x80\x17");
        let signer = 2 + usize::from(u16::from_be_bytes([attest[6], attest[7]]));
        assert_eq!(attest[6 + signer..][..2], [0, 32]);
        assert_eq!(attest[8 + signer..][..32], digest(9));
        // ... clock (17 bytes), firmware version (8), then Name and qualified Name of the key.
        let certified = &attest[8 + signer + 32 + 17 + 8..];
        assert_eq!(certified[..4], [0x00, 0x22, 0x00, 0x0B]);
        assert_eq!(certified[4..36], Sha256::digest(area)[..]);
    }
}

#[tokio::test]
async fn a_credential_made_with_foreign_tools_opens() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    for secret in [&b"short"[..], &digest(5)] {
        at_rest(&tpm);
        let (credential, encrypted) = make_credential(&tpm, "attestation", secret);
        let opened = handle
            .activate(EndorsementKind::P256, credential, encrypted)
            .await
            .unwrap();
        assert_eq!(opened.as_slice(), secret);
    }
}

#[tokio::test]
async fn a_credential_for_another_key_stays_shut() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    let (credential, encrypted) = make_credential(&tpm, "identity", b"secret");

    let error = handle
        .activate(EndorsementKind::P256, credential, encrypted)
        .await
        .unwrap_err();

    assert!(matches!(error, HsmError::Refused { .. }), "{error}");
    assert!(!error.to_string().contains("0x"), "{error}");
}

#[tokio::test]
async fn each_endorsement_key_is_the_one_that_every_program_makes() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    for (kind, foreign) in [
        (EndorsementKind::P256, "ecc"),
        (EndorsementKind::P384, "ecc384"),
        (EndorsementKind::Rsa2048, "rsa"),
    ] {
        let endorsement = handle.endorsement(Some(kind)).await.unwrap();
        assert_eq!(endorsement.kind, kind);
        at_rest(&tpm);
        tool(
            &tpm,
            &format!("tpm2_createek -G {foreign} -c ek.ctx -u ek.pub"),
        );
        tool(&tpm, "tpm2_flushcontext -t");

        // TPM2B_PUBLIC: the area with its size in front.
        assert_eq!(file(&tpm, "ek.pub")[2..], endorsement.public, "{kind:?}");
    }
}

#[tokio::test]
async fn the_endorsement_key_that_the_vendor_certified_is_chosen() {
    let tpm = Swtpm::start_certified().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    let chosen = handle.endorsement(None).await.unwrap();
    assert_eq!(chosen.kind, EndorsementKind::P384);
    assert_eq!(chosen.certificates.len(), 1);
    at_rest(&tpm);
    tool(&tpm, "tpm2_nvundefine -C p 0x1c00016");
    let chosen = handle.endorsement(None).await.unwrap();
    assert_eq!(chosen.kind, EndorsementKind::Rsa2048);

    at_rest(&tpm);
    std::fs::write(tpm.folder().join("leaf.der"), &chosen.certificates[0]).unwrap();
    let [root, issuer] = tpm.authority().map(|path| path.display().to_string());
    let verified = tool(
        &tpm,
        &format!("openssl verify -CAfile {root} -untrusted {issuer} leaf.der"),
    );
    assert_eq!(verified.trim(), "leaf.der: OK");
}

#[tokio::test]
async fn the_vendor_s_certificates_are_read_without_their_padding() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let certificates = handle.endorsement(None).await.unwrap().certificates;
    assert!(certificates.is_empty());
    at_rest(&tpm);
    let [leaf, issuer, root] =
        [(900_u16, 1), (600, 2), (700, 3)].map(|(length, fill)| der(length, fill));
    store(&tpm, "0x1c0000a", &[&leaf[..], &[0xFF; 100]].concat());
    // The chain runs on from one index to the next.
    let chain = [&issuer[..], &root].concat();
    store(&tpm, "0x1c00100", &chain[..1000]);
    store(&tpm, "0x1c00101", &chain[1000..]);

    let endorsement = handle.endorsement(None).await.unwrap();

    assert_eq!(endorsement.kind, EndorsementKind::P256);
    assert_eq!(endorsement.certificates, [leaf, issuer, root]);
}

fn attestation_key(public: &Public) -> VerifyingKey {
    let area = &public.attestation_public;
    let (x, y) = (area.len() - 66, area.len() - 32);
    let point = [&[4], &area[x..x + 32], &area[y..]].concat();
    VerifyingKey::from_sec1_bytes(&point).unwrap()
}

/// As long as a certificate, and of its outer form.
fn der(length: u16, fill: u8) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [vec![0x30, 0x82, high, low], vec![fill; length.into()]].concat()
}

fn store(tpm: &Swtpm, index: &str, content: &[u8]) {
    std::fs::write(tpm.folder().join("nv.bin"), content).unwrap();
    let size = content.len();
    tool(
        tpm,
        &format!(
            "tpm2_nvdefine {index} -C o -s {size} -a ownerwrite|ownerread|authread|ppread|no_da"
        ),
    );
    tool(tpm, &format!("tpm2_nvwrite {index} -C o -i nv.bin"));
}
