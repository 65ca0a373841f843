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
use p256::pkcs8::{EncodePublicKey, LineEnding};
use sha2::{Digest, Sha256};
use support::{at_rest, command, digest, file, hsm, hsm_with, make_credential, tool};
use wire::tpm::{
    Certification, PcrSelection, QualifiedName, Quote, TpmError, TpmHierarchy, TpmPublic,
    quote_data,
};

#[tokio::test]
async fn a_certification_by_the_attestation_key_is_accepted_and_nothing_else_is() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();
    let signer = signer(&tpm, &public);

    for (key, area) in [
        (CertifyKey::Identity, &public.identity_public),
        (CertifyKey::Channel, &public.channel_public),
    ] {
        let (attest, signature) = handle.certify(key, digest(9)).await.unwrap();

        let name = TpmPublic::parse(area).unwrap().name();
        let checked = Certification::verify(&attest, &name, &digest(9)).unwrap();
        checked.check_signer(&signer).unwrap();
        assert!(is_signed(&public, &attest, &signature));
        // As other programs see it.
        at_rest(&tpm);
        std::fs::write(tpm.folder().join("attest"), &attest).unwrap();
        std::fs::write(tpm.folder().join("read.py"), READ_WITH_PYTSS).unwrap();
        let read = tool(&tpm, "/usr/bin/python3 read.py attest");
        let said = [&digest(9)[..], &name, signer.as_bytes()].map(hex::encode);
        assert_eq!(read.split_whitespace().collect::<Vec<_>>(), said);
        verify_with_openssl(&tpm, &public, &attest, &signature);

        let other = TpmPublic::parse(&public.attestation_public).unwrap().name();
        let refused = Certification::verify(&attest, &other, &digest(9));
        assert_eq!(refused.unwrap_err(), TpmError::OtherKey);
        let refused = Certification::verify(&attest, &name, &digest(8));
        assert_eq!(refused.unwrap_err(), TpmError::OtherChallenge);
        let refused = Quote::verify(&attest, &signer, &digest(9));
        assert_eq!(refused.unwrap_err(), TpmError::NotQuote);
        assert!(!is_signed(&public, &attest[1..], &signature));
    }
}

#[tokio::test]
async fn a_quote_is_accepted_here_and_by_foreign_tools_and_for_its_own_session_only() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();
    let signer = signer(&tpm, &public);
    at_rest(&tpm);
    tool(
        &tpm,
        &format!("tpm2_pcrextend 7:sha256={}", hex::encode(digest(1))),
    );
    let (nonce, h) = (digest(2), digest(3));
    let qualifying = quote_data(&nonce, &h);

    // Few, one, none, and more than a TPM reads at once.
    for pcrs in [&[0, 7, 16][..], &[23], &[], &(0..24).collect::<Vec<_>>()] {
        let pcrs: PcrSelection = pcrs.iter().copied().collect();
        let quoted = handle.quote(pcrs, qualifying).await.unwrap();

        let quote = Quote::verify(&quoted.attest, &signer, &qualifying).unwrap();
        quote.check_values(&quoted.pcrs).unwrap();
        assert_eq!(quote.pcrs(), pcrs);
        assert!(is_signed(&public, &quoted.attest, &quoted.signature));
    }

    let pcrs: PcrSelection = [0, 7].into_iter().collect();
    let quoted = handle.quote(pcrs, qualifying).await.unwrap();
    at_rest(&tpm);
    let extended = Sha256::digest([[0; 32], digest(1)].concat());
    assert_eq!(quoted.pcrs.value(7).unwrap()[..], extended[..]);
    std::fs::write(tpm.folder().join("attest"), &quoted.attest).unwrap();
    std::fs::write(tpm.folder().join("quote.signature"), &quoted.signature).unwrap();
    std::fs::write(tpm.folder().join("ak.pem"), attestation_pem(&public)).unwrap();
    let check = |qualifying: &[u8; 32]| {
        format!(
            "tpm2_checkquote -u ak.pem -m attest -s quote.signature -g sha256 -q {}",
            hex::encode(qualifying)
        )
    };
    tool(&tpm, &check(&qualifying));
    assert!(support::fails(
        &tpm,
        &check(&quote_data(&nonce, &digest(4)))
    ));

    // Another session, another nonce, another key, other values, another type, another maker.
    let verify = |attest: &[u8], qualifying: &[u8; 32]| Quote::verify(attest, &signer, qualifying);
    for other in [quote_data(&nonce, &digest(4)), quote_data(&digest(4), &h)] {
        let refused = verify(&quoted.attest, &other).unwrap_err();
        assert_eq!(refused, TpmError::OtherChallenge);
    }
    let identity = TpmPublic::parse(&public.identity_public).unwrap().name();
    let refused = Quote::verify(&quoted.attest, &root(&tpm).child(&identity), &qualifying);
    assert_eq!(refused.unwrap_err(), TpmError::OtherSigner);
    let quote = verify(&quoted.attest, &qualifying).unwrap();
    let values = [(0, [0; 32]), (7, digest(1))].into_iter().collect();
    assert_eq!(quote.check_values(&values), Err(TpmError::OtherValues));
    let flipped = |byte: usize| {
        let mut attest = quoted.attest.clone();
        attest[byte] ^= 1;
        attest
    };
    let refused = verify(&flipped(0), &qualifying).unwrap_err();
    assert_eq!(refused, TpmError::NotMadeByTpm);
    let refused = verify(&flipped(5), &qualifying).unwrap_err();
    assert_eq!(refused, TpmError::NotQuote);
    for byte in 0..quoted.attest.len() {
        assert!(!is_signed(&public, &flipped(byte), &quoted.signature));
    }
}

#[tokio::test]
async fn without_a_sha_256_bank_there_is_no_quote_and_it_says_why() {
    let mut tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    tool(&tpm, "tpm2_pcrallocate sha1:all+sha256:none");
    tool(&tpm, "tpm2_shutdown -c");
    tpm.restart().unwrap();

    let quoted = handle.quote([0, 7].into_iter().collect(), digest(1)).await;

    let error = quoted.unwrap_err();
    assert!(matches!(error, HsmError::NoPcrBank), "{error}");
    assert_eq!(handle.health().await.tampered, 0);
}

#[tokio::test]
async fn an_index_among_the_issuers_that_is_none_is_left_alone() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    // One without a value, and one with a password, which would count as wrong.
    tool(
        &tpm,
        "tpm2_nvdefine 0x1c00110 -C o -s 8 -a authread|authwrite|no_da",
    );
    tool(
        &tpm,
        "tpm2_nvdefine 0x1c00111 -C o -s 8 -a authread|authwrite -p hunter2",
    );
    std::fs::write(tpm.folder().join("value"), [0; 8]).unwrap();
    tool(&tpm, "tpm2_nvwrite 0x1c00111 -P hunter2 -i value");

    let endorsement = handle.endorsement(None).await.unwrap();

    assert!(endorsement.certificates.is_empty());
    assert_eq!(handle.health().await.lockout_count, 0);
}

#[tokio::test]
async fn a_pcr_extended_between_quote_and_reading_costs_another_quote() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let pcrs: PcrSelection = [10].into_iter().collect();
    let (socket, mut left) = (tpm.data_socket(), 2);
    tpm.bus().alter_commands(move |code, _| {
        if code == command::PCR_READ && left != 0 {
            left -= 1;
            support::extend_on(&socket, 10);
        }
    });

    let quoted = handle.quote(pcrs, digest(1)).await.unwrap();

    assert!(quoted.attest.ends_with(&quoted.pcrs.digest()));
    let quotes = tpm
        .bus()
        .commands()
        .into_iter()
        .filter(|code| *code == command::QUOTE);
    assert_eq!(quotes.count(), 3);

    let socket = tpm.data_socket();
    tpm.bus().alter_commands(move |code, _| {
        if code == command::PCR_READ {
            support::extend_on(&socket, 10);
        }
    });
    let error = hsm_with(&tpm, std::time::Duration::from_secs(2))
        .quote(pcrs, digest(1))
        .await
        .unwrap_err();
    assert!(
        matches!(error, HsmError::Busy | HsmError::Timeout { .. }),
        "{error}"
    );
    tpm.bus().behave();
    handle.quote(pcrs, digest(1)).await.unwrap();
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

/// Where the gateway's attestation key stands.
fn signer(tpm: &Swtpm, public: &Public) -> QualifiedName {
    let name = TpmPublic::parse(&public.attestation_public).unwrap().name();
    root(tpm).child(&name)
}

fn root(tpm: &Swtpm) -> QualifiedName {
    let name = support::manifest(tpm)["parent"]
        .as_str()
        .unwrap()
        .to_owned();
    let name = hex::decode(name).unwrap().try_into().unwrap();
    QualifiedName::primary(TpmHierarchy::Owner, &name)
}

fn attestation_key(public: &Public) -> VerifyingKey {
    let key = TpmPublic::parse(&public.attestation_public).unwrap();
    VerifyingKey::from_sec1_bytes(&key.point()).unwrap()
}

fn attestation_pem(public: &Public) -> String {
    let key = p256::PublicKey::from(attestation_key(public));
    key.to_public_key_pem(LineEnding::LF).unwrap()
}

fn is_signed(public: &Public, attest: &[u8], signature: &[u8]) -> bool {
    let signature = wire::tpm::ecdsa_signature(signature).unwrap();
    let signature = Signature::from_slice(&signature).unwrap();
    attestation_key(public).verify(attest, &signature).is_ok()
}

fn verify_with_openssl(tpm: &Swtpm, public: &Public, message: &[u8], signature: &[u8]) {
    let signature = wire::tpm::ecdsa_signature(signature).unwrap();
    let signature = Signature::from_slice(&signature).unwrap();
    for (name, content) in [
        ("ak.pem", attestation_pem(public).as_bytes()),
        ("message", message),
        ("signature.der", signature.to_der().as_bytes()),
    ] {
        std::fs::write(tpm.folder().join(name), content).unwrap();
    }
    tool(
        tpm,
        "openssl dgst -sha256 -verify ak.pem -signature signature.der message",
    );
}

/// Reads a certification with tpm2-pytss, another binding to another decoder.
const READ_WITH_PYTSS: &str = "
import sys
from tpm2_pytss import TPM2_GENERATED, TPM2_ST, TPMS_ATTEST
attest, _ = TPMS_ATTEST.unmarshal(open(sys.argv[1], 'rb').read())
assert attest.magic == TPM2_GENERATED.VALUE and attest.type == TPM2_ST.ATTEST_CERTIFY
for part in attest.extraData, attest.attested.certify.name, attest.qualifiedSigner:
    print(bytes(part).hex())
";

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
