//! The keys: how they are made, kept and used.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::os::unix::fs::PermissionsExt;

use hsm::swtpm::Swtpm;
use hsm::{HsmError, KeyFileError, ParentFault};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use support::{at_rest, digest, hsm, keys, load_key, point, secret_key, tool};

#[tokio::test]
async fn provisioning_is_idempotent_and_survives_restarts() {
    let mut tpm = Swtpm::start().unwrap();
    let first = hsm(&tpm).provision(false).await.unwrap();

    let handle = hsm(&tpm);
    assert_eq!(handle.provision(false).await.unwrap(), first);
    assert_eq!(handle.provision(false).await.unwrap(), first);
    drop(handle);
    tpm.restart().unwrap();

    let handle = hsm(&tpm);
    assert_eq!(handle.load().await.unwrap(), first);
    assert_eq!(handle.provision(false).await.unwrap(), first);
}

#[tokio::test]
async fn new_keys_are_made_only_when_asked_for() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let first = handle.provision(false).await.unwrap();

    let second = handle.provision(true).await.unwrap();

    assert_ne!(second.identity, first.identity);
    assert_ne!(second.channel, first.channel);
    assert_ne!(second.attestation_public, first.attestation_public);
    assert_eq!(handle.load().await.unwrap(), second);
    let signature = handle.sign(digest(0)).await.unwrap();
    verifying_key(&second.identity)
        .verify_prehash(&digest(0), &Signature::from_slice(&signature).unwrap())
        .unwrap();
}

#[tokio::test]
async fn without_keys_every_use_says_that_there_are_none() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);

    let error = handle.load().await.unwrap_err();
    assert!(matches!(error, HsmError::NotProvisioned { .. }));
    assert_eq!(error.advice(), "gatewayctl init");
    let error = handle.sign([0; 32]).await.unwrap_err();
    assert!(matches!(error, HsmError::NotProvisioned { .. }));
    assert_eq!(handle.health().await.state.to_string(), "ok");
}

#[tokio::test]
async fn key_agreement_equals_that_of_another_implementation() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();
    let channel = p256::PublicKey::from_sec1_bytes(&public.channel).unwrap();

    for number in 0..40 {
        let peer = secret_key(number);
        let expected = p256::ecdh::diffie_hellman(peer.to_nonzero_scalar(), channel.as_affine());

        let agreed = handle.ecdh(point(&peer)).await.unwrap();

        assert_eq!(agreed.as_slice(), expected.raw_secret_bytes().as_slice());
    }
}

#[tokio::test]
async fn what_is_no_point_of_the_curve_never_reaches_the_tpm() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    tpm.bus().forget();

    let mut off_curve = point(&secret_key(1));
    off_curve[64] ^= 1;
    for peer in [off_curve, [0; 65], [4; 65]] {
        let error = handle.ecdh(peer).await.unwrap_err();
        assert!(matches!(error, HsmError::NotAPoint));
    }

    let used = support::command::ECDH_ZGEN;
    assert!(!tpm.bus().commands().contains(&used));
}

#[tokio::test]
async fn every_signature_verifies_and_has_low_s() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();
    let identity = verifying_key(&public.identity);

    for number in 0..200 {
        let signature = handle.sign(digest(number)).await.unwrap();

        let signature = Signature::from_slice(&signature).unwrap();
        assert_eq!(signature.normalize_s(), signature, "{number}");
        identity
            .verify_prehash(&digest(number), &signature)
            .unwrap();
    }
}

#[tokio::test]
async fn each_key_is_what_was_promised_and_opens_with_foreign_tools() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();
    at_rest(&tpm);
    let manifest = support::manifest(&tpm);
    let own = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda";

    for (key, point, promised) in [
        ("identity", Some(public.identity), format!("{own}|sign")),
        ("channel", Some(public.channel), format!("{own}|decrypt")),
        ("attestation", None, format!("{own}|restricted|sign")),
    ] {
        load_key(&tpm, key);
        let printed = tool(&tpm, &format!("tpm2_readpublic -c {key}.ctx"));
        assert_eq!(field(&printed, "attributes"), promised, "{key}");
        assert_eq!(field(&printed, "curve-id"), "NIST p256", "{key}");
        assert_eq!(field(&printed, "name-alg"), "sha256", "{key}");
        let scheme = if key == "channel" { "null" } else { "ecdsa" };
        assert_eq!(field(&printed, "scheme"), scheme, "{key}");
        assert_eq!(field(&printed, "name"), manifest[key], "{key}");
        if let Some(point) = point {
            let [x, y] = ["x", "y"].map(|axis| hex::decode(field(&printed, axis)).unwrap());
            assert_eq!([&[4], &x[..], &y[..]].concat(), point, "{key}");
        }
    }

    let printed = tool(&tpm, "tpm2_readpublic -c 0x81000001");
    assert_eq!(
        field(&printed, "attributes"),
        format!("{own}|restricted|decrypt")
    );
    assert_eq!(field(&printed, "sym-alg"), "aes");
    assert_eq!(field(&printed, "sym-mode"), "cfb");
    assert_eq!(field(&printed, "sym-keybits"), "128");
    assert_eq!(field(&printed, "name"), manifest["parent"]);
}

#[tokio::test]
async fn a_fit_parent_of_another_program_is_shared() {
    let tpm = Swtpm::start().unwrap();
    make_parent(&tpm, "|noda");
    let before = tool(&tpm, "tpm2_readpublic -c 0x81000001");

    hsm(&tpm).provision(false).await.unwrap();

    assert_eq!(tool(&tpm, "tpm2_readpublic -c 0x81000001"), before);
}

#[tokio::test]
async fn a_parent_that_power_cuts_would_lock_is_refused_and_nothing_is_written() {
    let tpm = Swtpm::start().unwrap();
    make_parent(&tpm, "");

    let error = hsm(&tpm).provision(false).await.unwrap_err();

    assert!(matches!(
        error,
        HsmError::ParentUnfit(ParentFault::Lockable)
    ));
    assert!(!keys(&tpm).exists());
}

#[tokio::test]
async fn a_parent_that_somebody_removed_comes_back_the_same() {
    let tpm = Swtpm::start().unwrap();
    let public = hsm(&tpm).provision(false).await.unwrap();
    tool(&tpm, "tpm2_evictcontrol -C o -c 0x81000001");

    assert_eq!(hsm(&tpm).load().await.unwrap(), public);
}

#[tokio::test]
async fn an_owner_with_a_password_is_told_how_to_go_on() {
    let tpm = Swtpm::start().unwrap();
    tool(&tpm, "tpm2_changeauth -c owner secret");

    let error = hsm(&tpm).provision(false).await.unwrap_err();

    assert!(matches!(error, HsmError::OwnerPassword(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "the TPM asks for its owner's password to provide its storage root key"
    );
    assert!(error.advice().contains("tpm2_changeauth"));
}

#[tokio::test]
async fn the_key_files_are_for_the_owner_only_and_complete() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();

    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&keys(&tpm)), 0o700);
    let mut names: Vec<_> = keys(&tpm)
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .inspect(|entry| assert_eq!(mode(&entry.path()), 0o600))
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "attestation.pem",
            "channel.pem",
            "identity.pem",
            "manifest.json"
        ]
    );
}

#[tokio::test]
async fn an_exchanged_key_file_is_found_out() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    std::fs::copy(
        keys(&tpm).join("channel.pem"),
        keys(&tpm).join("identity.pem"),
    )
    .unwrap();

    let error = hsm(&tpm).load().await.unwrap_err();

    let HsmError::KeyFile { path, source } = error else {
        panic!("{error}");
    };
    assert_eq!(path, keys(&tpm).join("identity.pem"));
    assert!(matches!(source, KeyFileError::OtherKey));
}

/// Makes a storage root key with tpm2-tools.
fn make_parent(tpm: &Swtpm, more: &str) {
    tool(
        tpm,
        &format!(
            "tpm2_createprimary -C o -G ecc256:aes128cfb -c srk.ctx -a \
             fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt{more}"
        ),
    );
    tool(tpm, "tpm2_evictcontrol -C o -c srk.ctx 0x81000001");
}

/// A value in the YAML that tpm2-tools print: beside its key, or under it as `value`.
fn field(yaml: &str, key: &str) -> String {
    let mut lines = yaml.lines();
    let prefix = format!("{key}:");
    let found = lines
        .find_map(|line| line.trim().strip_prefix(&prefix))
        .unwrap_or_else(|| panic!("no {key} in {yaml}"))
        .trim();
    if !found.is_empty() {
        return found.to_owned();
    }
    let value = lines.next().unwrap().trim();
    value.strip_prefix("value:").unwrap().trim().to_owned()
}

fn verifying_key(point: &[u8; 65]) -> VerifyingKey {
    VerifyingKey::from_sec1_bytes(point).unwrap()
}
