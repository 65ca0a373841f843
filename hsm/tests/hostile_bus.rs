//! What somebody with a probe on the wires between processor and TPM learns and achieves: nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aes::Aes128;
use cfb_mode::BufDecryptor;
use cfb_mode::cipher::KeyIvInit as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hsm::swtpm::{Direction, Frame, Swtpm};
use hsm::{CertifyKey, EndorsementKind, Hsm, HsmError};
use sha2::{Digest, Sha256};
use support::{at_rest, command, digest, file, hsm, point, secret_key, tool};
use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    EccParameter, EccPoint, EccScheme, KeyDerivationFunctionScheme, PublicBuilder,
    PublicEccParameters, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::{NetworkTPMConfig, TctiNameConf};
use wire::tpm::CounterLimit;
use zeroize::Zeroizing;

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
async fn every_session_is_salted_every_key_used_in_one_and_every_password_empty() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    let (credential, encrypted) = support::make_credential(&tpm, "attestation", b"secret");
    tool(&tpm, "tpm2_flushcontext -t");
    let mut frames = tpm.bus().frames();
    frames.retain(|frame| frame.direction == Direction::Command);
    frames.truncate(commands_until_foreign(&frames));
    tpm.bus().forget();

    every_operation(&handle, (credential, encrypted)).await;

    frames.extend(tpm.bus().frames());
    let commands = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Command);
    let (mut sessions, mut passwords) = (0, BTreeSet::new());
    for frame in commands {
        if frame.code() == command::START_AUTH_SESSION {
            sessions += 1;
            assert_ne!(frame.bytes[10..14], NO_KEY, "unsalted session");
        }
        if [command::SIGN, command::ECDH_ZGEN, command::UNSEAL].contains(&frame.code()) {
            assert_eq!(frame.bytes[..2], WITH_SESSIONS);
        }
        if frame.bytes[..2] == WITH_SESSIONS
            && let Some(place) = find(&frame.bytes, &PASSWORD)
        {
            passwords.insert(frame.code());
            // No nonce, no attributes, no password.
            assert_eq!(frame.bytes[place + 4..place + 9], [0; 5]);
        }
    }
    assert!(8 < sessions);
    // The root key where there is none yet that a session could be salted to; and what needs some
    // authorization although it has no secret: a sealed object's private part is encrypted.
    let allowed = [command::CREATE_PRIMARY, command::LOAD, command::POLICY_NV];
    assert!(
        passwords.iter().all(|code| allowed.contains(code)),
        "{passwords:x?}"
    );

    // The control: a program that uses a password.
    tpm.bus().forget();
    at_rest(&tpm);
    tool(
        &tpm,
        "tpm2_createprimary -C o -G ecc -p hunter2-hunter2 -c other.ctx",
    );
    tool(&tpm, "tpm2_flushcontext -t");
    tool(
        &tpm,
        "tpm2_create -C other.ctx -P hunter2-hunter2 -G ecc -u a -r b",
    );
    assert!(is_on(&tpm, b"hunter2-hunter2"));
}

/// The commands before those that tpm2-tools sent: they begin with a question for all algorithms.
fn commands_until_foreign(frames: &[Frame]) -> usize {
    let asked = frames
        .iter()
        .position(|frame| frame.code() == command::GET_CAPABILITY && frame.bytes[10..14] == [0; 4]);
    asked.unwrap_or(frames.len())
}

async fn every_operation(handle: &Hsm, (credential, encrypted): (Vec<u8>, Vec<u8>)) {
    handle.load().await.unwrap();
    handle.sign(digest(1)).await.unwrap();
    handle.ecdh(point(&secret_key(1))).await.unwrap();
    handle
        .certify(CertifyKey::Identity, digest(2))
        .await
        .unwrap();
    handle
        .quote([0, 7].into_iter().collect(), digest(3))
        .await
        .unwrap();
    for kind in [EndorsementKind::P256, EndorsementKind::P384] {
        handle.endorsement(Some(kind)).await.unwrap();
    }
    let opened = handle.activate(EndorsementKind::P256, credential.clone(), encrypted.clone());
    assert_eq!(opened.await.unwrap().as_slice(), b"secret");
    let opened = handle.activate(EndorsementKind::P384, credential, encrypted);
    opened.await.unwrap_err();
    let value_max = handle.increment(0).await.unwrap();
    let authority = support::authority();
    let sealed = handle
        .seal(Zeroizing::new(vec![1; 32]), authority.clone())
        .await
        .unwrap();
    let number = 0;
    let limit = CounterLimit { number, value_max };
    let policy = support::signed_policy(Some(limit));
    handle
        .unseal(&sealed, authority, vec![policy])
        .await
        .unwrap();
    handle.examination().await;
    handle.provision(true).await.unwrap();
}

#[tokio::test]
async fn whoever_listens_breaks_an_unsalted_session_and_not_ours() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    let peer = point(&secret_key(1));

    tpm.bus().forget();
    let secret = handle.ecdh(peer).await.unwrap();
    at_rest(&tpm);
    let listened = listen(&tpm);
    assert!(find(&listened, secret.as_slice()).is_none());

    // The control: the same command with a session as much software starts it.
    tpm.bus().forget();
    let secret = agree_in_an_unsalted_session(&tpm, &peer);
    assert!(!is_on(&tpm, &secret), "it is encrypted, too");
    let listened = listen(&tpm);
    assert!(find(&listened, &secret).is_some());
}

/// Decrypts the answer to `TPM2_ECDH_ZGen` with what is on the bus alone: the nonces.
fn listen(tpm: &Swtpm) -> Vec<u8> {
    let frames = tpm.bus().frames();
    // The last: a TPM that still tests itself asks for a repetition.
    let asked = frames
        .iter()
        .rposition(|frame| {
            frame.direction == Direction::Command && frame.code() == command::ECDH_ZGEN
        })
        .unwrap();
    let (command, answer) = (&frames[asked].bytes, &frames[asked + 1].bytes);
    // Header, key, size of the authorization, session; then nonceCaller.
    let nonce_caller = &command[24..56];
    assert_eq!(command[22..24], [0, 32]);
    // Header, size of the parameters, parameters; then nonceTPM.
    let size = usize::try_from(u32::from_be_bytes(answer[10..14].try_into().unwrap())).unwrap();
    let (parameters, authorization) = answer[14..].split_at(size);
    assert_eq!(authorization[..2], [0, 32]);
    let nonce_tpm = &authorization[2..34];
    // KDFa with the key of a session without salt and binding: none (TPM 2.0 Part 1, 19.6.8, 21.3).
    let mac = Hmac::<Sha256>::new_from_slice(&[])
        .unwrap()
        .chain_update([0, 0, 0, 1])
        .chain_update(b"CFB\0")
        .chain_update(nonce_tpm)
        .chain_update(nonce_caller)
        .chain_update([0, 0, 1, 0]);
    let key_and_iv = mac.finalize().into_bytes();
    let mut content = parameters[2..].to_vec();
    let mut cipher =
        BufDecryptor::<Aes128>::new_from_slices(&key_and_iv[..16], &key_and_iv[16..]).unwrap();
    cipher.decrypt(&mut content);
    content
}

/// What `Context::execute_with_nullauth_session` and its like do.
fn agree_in_an_unsalted_session(tpm: &Swtpm, peer: &[u8; 65]) -> Vec<u8> {
    let address = NetworkTPMConfig::from_str(tpm.tcti().trim_start_matches("swtpm:")).unwrap();
    let mut context = Context::new(TctiNameConf::Swtpm(address)).unwrap();
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_decrypt(true)
        .build()
        .unwrap();
    let template = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(PublicEccParameters::new(
            SymmetricDefinitionObject::Null,
            EccScheme::Null,
            EccCurve::NistP256,
            KeyDerivationFunctionScheme::Null,
        ))
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
        .unwrap();
    let key = context
        .execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Null, template, None, None, None, None)
        })
        .unwrap()
        .key_handle;
    let session = context
        .start_auth_session(
            None,
            None,
            None,
            SessionType::Hmac,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
        .unwrap();
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_decrypt(true)
        .with_encrypt(true)
        .build();
    context
        .tr_sess_set_attributes(session.unwrap(), attributes, mask)
        .unwrap();
    let point = EccPoint::new(
        EccParameter::try_from(&peer[1..33]).unwrap(),
        EccParameter::try_from(&peer[33..]).unwrap(),
    );
    let agreed = context
        .execute_with_session(session, |context| context.ecdh_z_gen(key, point))
        .unwrap();
    agreed.x().value().to_vec()
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
async fn nothing_is_made_under_another_parent_than_the_pinned_one() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    // Another parent in the same TPM, and a bus that leads there: by the Name in the answer that
    // the library believes, and the handle in the command.
    tool(
        &tpm,
        "tpm2_createprimary -C e -G ecc256:aes128cfb -c other.ctx -a \
         fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt",
    );
    tool(&tpm, "tpm2_evictcontrol -C o -c other.ctx 0x81000005");
    tool(&tpm, "tpm2_flushcontext -t");
    tool(&tpm, "tpm2_readpublic -c 0x81000005 -n other.name");
    let other = file(&tpm, "other.name");
    tpm.bus().alter_answers(move |code, answer| {
        if code == command::READ_PUBLIC {
            let end = 12 + usize::from(u16::from_be_bytes([answer[10], answer[11]]));
            answer[end + 2..end + 36].copy_from_slice(&other);
        }
    });
    tpm.bus().alter_commands(|code, frame| {
        if code == command::CREATE {
            frame[10..14].copy_from_slice(&0x8100_0005_u32.to_be_bytes());
        }
    });
    let authority = support::authority();

    let astray = hsm(&tpm);
    let secret = Zeroizing::new(vec![1; 32]);
    let error = astray.seal(secret, authority).await.unwrap_err();
    assert!(matches!(error, HsmError::Tampered), "{error}");
    let error = astray.provision(true).await.unwrap_err();
    assert!(matches!(error, HsmError::Tampered), "{error}");

    tpm.bus().behave();
    hsm(&tpm).load().await.unwrap();
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

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// `TPM_RH_NULL`.
const NO_KEY: [u8; 4] = 0x4000_0007_u32.to_be_bytes();
/// `TPM_RS_PW`.
const PASSWORD: [u8; 4] = 0x4000_0009_u32.to_be_bytes();
/// `TPM_ST_SESSIONS`.
const WITH_SESSIONS: [u8; 2] = [0x80, 0x02];
