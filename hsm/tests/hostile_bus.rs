//! What somebody with a probe on the wires between processor and TPM learns and achieves: nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hsm::swtpm::{Direction, Frame, Swtpm};
use hsm::{CertifyKey, EndorsementKind, HsmError};
use sha2::{Digest, Sha256};
use support::{at_rest, command, digest, file, hsm, point, secret_key, tool};

#[tokio::test]
async fn an_agreed_secret_is_in_no_frame_and_the_search_would_find_it() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let public = handle.provision(false).await.unwrap();
    let channel = p256::PublicKey::from_sec1_bytes(&public.channel).unwrap();
    let peer = secret_key(1);
    let expected = p256::ecdh::diffie_hellman(peer.to_nonzero_scalar(), channel.as_affine());
    let peer = point(&peer);
    at_rest(&tpm);

    tpm.bus().forget();
    let secret = handle.ecdh(peer).await.unwrap();
    at_rest(&tpm);
    assert_eq!(secret.as_slice(), expected.raw_secret_bytes().as_slice());
    assert!(tpm.bus().commands().contains(&command::ECDH_ZGEN));
    assert!(!is_on(&tpm, secret.as_slice()));
    assert!(
        !is_on(&tpm, &peer[1..33]),
        "not even whom it was agreed with"
    );

    // The control: the same key and peer, by a program that does not protect the bus.
    support::load_key(&tpm, "channel");
    let sized_point = [&[0, 68, 0, 32], &peer[1..33], &[0, 32], &peer[33..]].concat();
    std::fs::write(tpm.folder().join("peer.bin"), sized_point).unwrap();
    tpm.bus().forget();
    tool(&tpm, "tpm2_ecdhzgen -c channel.ctx -u peer.bin -o z.bin");
    assert!(is_on(&tpm, secret.as_slice()));
    assert!(is_on(&tpm, &peer[1..33]));
}

#[tokio::test]
async fn an_activated_secret_is_in_no_frame_and_the_search_would_find_it() {
    let secret = b"a secret of thirty-two bytes ...";
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    let (credential, encrypted) = support::make_credential(&tpm, "attestation", secret);

    tpm.bus().forget();
    let opened = handle
        .activate(EndorsementKind::P256, credential, encrypted)
        .await
        .unwrap();
    at_rest(&tpm);
    assert_eq!(opened.as_slice(), secret);
    assert!(!is_on(&tpm, secret));

    // The control: the same credential, by a program that does not protect the bus.
    tool(&tpm, "tpm2_flushcontext -t");
    tool(&tpm, "tpm2_startauthsession --policy-session -S policy.ctx");
    tool(&tpm, "tpm2_policysecret -S policy.ctx -c e");
    tpm.bus().forget();
    tool(
        &tpm,
        "tpm2_activatecredential -c attestation.ctx -C ek.ctx -i credential.bin -o opened.bin \
         -P session:policy.ctx",
    );
    assert_eq!(file(&tpm, "opened.bin"), secret);
    assert!(is_on(&tpm, secret));
}

#[tokio::test]
async fn every_session_is_salted_and_every_key_is_used_in_one() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    handle.sign(digest(1)).await.unwrap();
    handle.ecdh(point(&secret_key(1))).await.unwrap();
    handle
        .certify(CertifyKey::Identity, digest(2))
        .await
        .unwrap();
    at_rest(&tpm);
    let mut frames = tpm.bus().frames();
    let (credential, encrypted) = support::make_credential(&tpm, "attestation", b"secret");
    tpm.bus().forget();
    handle
        .activate(EndorsementKind::P256, credential, encrypted)
        .await
        .unwrap();
    frames.extend(tpm.bus().frames());

    let commands = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Command);
    let mut sessions = 0;
    let mut passwords = Vec::new();
    for frame in commands {
        if frame.code() == command::START_AUTH_SESSION {
            sessions += 1;
            assert_ne!(frame.bytes[10..14], NO_KEY, "unsalted session");
        }
        if [command::SIGN, command::ECDH_ZGEN, command::LOAD].contains(&frame.code()) {
            assert_eq!(frame.bytes[..2], WITH_SESSIONS);
        }
        if frame.bytes[..2] == WITH_SESSIONS && frame.contains(&PASSWORD) {
            passwords.push(frame.code());
        }
    }
    assert!(4 < sessions);
    // Only where there is no key yet that a session could be salted to.
    assert_eq!(passwords, [command::CREATE_PRIMARY]);
}

#[tokio::test]
async fn an_exchanged_parent_is_refused_before_any_session_starts() {
    for exchange in [
        Exchange::WithItsName,
        Exchange::KeepingTheName,
        Exchange::Once,
    ] {
        let tpm = Swtpm::start().unwrap();
        hsm(&tpm).provision(false).await.unwrap();
        let handle = hsm(&tpm);
        tpm.bus().forget();
        exchange_parent(&tpm, exchange);

        let error = handle.load().await.unwrap_err();

        assert!(
            matches!(error, HsmError::KeyNotOfThisTpm),
            "{exchange:?}: {error}"
        );
        let error = handle.sign(digest(0)).await.map(drop).err();
        let commands = tpm.bus().commands();
        assert!(commands.contains(&command::READ_PUBLIC));
        if exchange == Exchange::Once {
            assert!(error.is_none(), "the bus is honest again");
        } else {
            assert!(!commands.contains(&command::START_AUTH_SESSION));
            assert_eq!(handle.health().await.state.to_string(), "replaced");
        }
    }
}

#[tokio::test]
async fn the_first_provisioning_notices_an_exchange_that_is_not_kept_up() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    std::fs::remove_dir_all(support::keys(&tpm)).unwrap();
    tpm.bus().forget();
    exchange_parent(&tpm, Exchange::Once);

    let error = hsm(&tpm).provision(false).await.unwrap_err();

    assert!(matches!(error, HsmError::Tampered), "{error}");
    let commands = tpm.bus().commands();
    assert!(!commands.contains(&command::START_AUTH_SESSION));
}

#[tokio::test]
async fn an_altered_signature_is_an_error_and_the_next_call_works() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    // More often than the TPM has slots for sessions that are never ended.
    for round in 1..=5 {
        tpm.bus().alter_answers(|command, answer| {
            if command == command::SIGN {
                answer[30] ^= 1;
            }
        });
        let error = handle.sign(digest(round)).await.unwrap_err();
        assert!(matches!(error, HsmError::Tampered), "{error}");

        tpm.bus().behave();
        handle.sign(digest(round)).await.unwrap();
        let health = handle.health().await;
        assert_eq!(health.tampered, u64::from(round));
        assert_eq!(health.reconnects, u64::from(round));
        assert_eq!(health.state.to_string(), "ok");
    }
}

#[tokio::test]
async fn an_altered_command_is_an_error_and_the_next_call_works() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    tpm.bus().alter_commands(|code, command| {
        if code == command::SIGN {
            // The last byte of the encrypted digest: the scheme and the ticket follow, 10 bytes.
            let end = command.len() - 11;
            command[end] ^= 1;
        }
    });

    let error = handle.sign(digest(1)).await.unwrap_err();

    assert!(matches!(error, HsmError::Tampered), "{error}");
    tpm.bus().behave();
    handle.sign(digest(1)).await.unwrap();
}

#[tokio::test]
async fn an_old_answer_played_again_is_an_error() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let mut old: Option<Vec<u8>> = None;
    tpm.bus().alter_answers(move |command, answer| {
        if command == command::SIGN {
            match &old {
                Some(old) => answer.clone_from(old),
                None => old = Some(answer.clone()),
            }
        }
    });

    handle.sign(digest(1)).await.unwrap();
    let error = handle.sign(digest(1)).await.unwrap_err();

    assert!(matches!(error, HsmError::Tampered), "{error}");
}

/// How the storage root key is exchanged for the attacker's on the bus.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Exchange {
    /// Consistently, with the Name that belongs to it.
    WithItsName,
    /// With the Name that the TPM gave.
    KeepingTheName,
    /// As before, but only when it is read for the first time.
    Once,
}

fn exchange_parent(tpm: &Swtpm, exchange: Exchange) {
    let count = Arc::new(AtomicU32::new(0));
    let attacker = point(&secret_key(666));
    tpm.bus().alter_answers(move |command, answer| {
        if command != command::READ_PUBLIC {
            return;
        }
        if count.fetch_add(1, Ordering::Relaxed) != 0 && exchange == Exchange::Once {
            return;
        }
        support::put_parent(answer, &attacker);
        if exchange == Exchange::WithItsName {
            let end = 12 + usize::from(u16::from_be_bytes([answer[10], answer[11]]));
            let hash = Sha256::digest(&answer[12..end]);
            answer[end + 4..end + 36].copy_from_slice(&hash);
        }
    });
}

fn is_on(tpm: &Swtpm, secret: &[u8]) -> bool {
    let frames: Vec<Frame> = tpm.bus().frames();
    frames.iter().any(|frame| frame.contains(secret))
}

/// `TPM_RH_NULL`.
const NO_KEY: [u8; 4] = 0x4000_0007_u32.to_be_bytes();
/// `TPM_RS_PW`.
const PASSWORD: [u8; 4] = 0x4000_0009_u32.to_be_bytes();
/// `TPM_ST_SESSIONS`.
const WITH_SESSIONS: [u8; 2] = [0x80, 0x02];
