//! Sealed secrets open in the states that an authority has signed; the policies are made and signed
//! with tpm2-tools and OpenSSL.

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

use hsm::swtpm::Swtpm;
use hsm::{Hsm, HsmError, SealFault};
use p256::ecdsa::Signature;
use p256::pkcs8::DecodePublicKey;
use support::{at_rest, command, digest, file, hsm, tool};
use wire::tpm::{CounterLimit, PolicyAuthority, PolicyDigest, SignedPolicy};
use zeroize::Zeroizing;

#[tokio::test]
async fn a_secret_opens_in_a_signed_state_and_stays_shut_in_another() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    let sealed = seal(&handle, &authority).await;
    let present = sign(&tpm, "ours", &present_state(&tpm));

    let policies = vec![present.clone()];
    let opened = handle.unseal(&sealed, authority.clone(), policies.clone());
    assert_eq!(opened.await.unwrap().as_slice(), SECRET);

    extend(&tpm, 7);
    let shut = handle.unseal(&sealed, authority.clone(), policies).await;
    assert_eq!(fault(shut), SealFault::State);

    // The update was foreseen: both policies are there, and the order does not matter.
    let updated = sign(&tpm, "ours", &present_state(&tpm));
    for policies in [
        vec![present.clone(), updated.clone()],
        vec![updated, present],
    ] {
        let opened = handle.unseal(&sealed, authority.clone(), policies);
        assert_eq!(opened.await.unwrap().as_slice(), SECRET);
    }
    assert_eq!(handle.health().await.failures, 1);
    at_rest(&tpm);
}

#[tokio::test]
async fn nobody_else_s_signature_opens_a_secret() {
    let (tpm, handle) = provisioned().await;
    let (ours, theirs) = (authority(&tpm, "ours"), authority(&tpm, "theirs"));
    let sealed = seal(&handle, &ours).await;
    let by_them = sign(&tpm, "theirs", &present_state(&tpm));

    let shut = handle.unseal(&sealed, ours.clone(), vec![by_them.clone()]);
    assert_eq!(fault(shut.await), SealFault::State);
    let shut = handle.unseal(&sealed, theirs, vec![by_them]);
    assert_eq!(fault(shut.await), SealFault::OtherAuthority);
    let other_word = PolicyAuthority::new(*ours.key(), b"another word").unwrap();
    let by_us = sign(&tpm, "ours", &present_state(&tpm));
    let shut = handle.unseal(&sealed, other_word, vec![by_us]).await;
    assert_eq!(fault(shut), SealFault::OtherAuthority);
    let shut = handle.unseal(&sealed, ours, Vec::new()).await;
    assert_eq!(fault(shut), SealFault::State);
}

#[tokio::test]
async fn a_policy_ends_when_its_counter_has_passed() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    let sealed = seal(&handle, &authority).await;
    let value = handle.counter(3).await.unwrap();
    let limited = |value_max| {
        let limit = CounterLimit {
            number: 3,
            value_max,
        };
        sign(
            &tpm,
            "ours",
            &State {
                counter: Some(limit),
                ..present_state(&tpm)
            },
        )
    };
    let (old, new) = (limited(value), limited(value + 1));

    let opened = handle.unseal(&sealed, authority.clone(), vec![old.clone()]);
    assert_eq!(opened.await.unwrap().as_slice(), SECRET);
    assert_eq!(handle.increment(3).await.unwrap(), value + 1);
    let mut unfit = new.clone();
    unfit.signature[0] ^= 1;
    for policies in [
        vec![old.clone()],
        vec![old.clone(), unfit.clone()],
        vec![unfit, old.clone()],
    ] {
        let shut = handle.unseal(&sealed, authority.clone(), policies).await;
        assert_eq!(fault(shut), SealFault::Withdrawn);
    }
    let opened = handle.unseal(&sealed, authority.clone(), vec![old, new.clone()]);
    assert_eq!(opened.await.unwrap().as_slice(), SECRET);

    // Whoever states another limit than the signed one gets nowhere.
    let stretched = SignedPolicy {
        counter: Some(CounterLimit {
            number: 3,
            value_max: u64::MAX,
        }),
        ..new
    };
    let shut = handle.unseal(&sealed, authority, vec![stretched]).await;
    assert_eq!(fault(shut), SealFault::State);
}

#[tokio::test]
async fn a_counter_that_is_not_there_or_not_ours_ends_its_policy_and_no_other() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    let sealed = seal(&handle, &authority).await;
    at_rest(&tpm);
    // None at 5; one without a value at 6; another's with a password, which would count as wrong, at 7.
    tool(
        &tpm,
        "tpm2_nvdefine 0x186776a -C o -s 8 -a authread|authwrite|no_da|nt=0x1",
    );
    tool(
        &tpm,
        "tpm2_nvdefine 0x186776b -C o -s 8 -a authread|authwrite -p hunter2",
    );
    std::fs::write(tpm.folder().join("value"), [0; 8]).unwrap();
    tool(&tpm, "tpm2_nvwrite 0x186776b -P hunter2 -i value");
    let fits = sign(&tpm, "ours", &present_state(&tpm));
    for number in [5, 6, 7] {
        let limit = CounterLimit {
            number,
            value_max: 5,
        };
        let state = State {
            counter: Some(limit),
            ..present_state(&tpm)
        };
        let limited = sign(&tpm, "ours", &state);

        let shut = handle.unseal(&sealed, authority.clone(), vec![limited.clone()]);
        assert_eq!(fault(shut.await), SealFault::NoCounter);
        let policies = vec![limited, fits.clone()];
        let opened = handle.unseal(&sealed, authority.clone(), policies).await;
        assert_eq!(opened.unwrap().as_slice(), SECRET);
    }
    let health = handle.health().await;
    assert_eq!(
        (health.lockout_count, health.tampered, health.resets),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn a_pcr_extended_in_between_costs_another_try() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    let sealed = seal(&handle, &authority).await;
    let policies = vec![sign(&tpm, "ours", &present_state(&tpm))];

    // As IMA does: a PCR that no policy is about, right before the secret is opened.
    let left = Arc::new(AtomicU32::new(3));
    let (extended, socket) = (Arc::clone(&left), tpm.data_socket());
    tpm.bus().alter_commands(move |code, _| {
        if code == command::UNSEAL && extended.load(Ordering::SeqCst) != 0 {
            extended.fetch_sub(1, Ordering::SeqCst);
            support::extend_on(&socket, 10);
        }
    });
    let opened = handle.unseal(&sealed, authority.clone(), policies.clone());
    assert_eq!(opened.await.unwrap().as_slice(), SECRET);
    assert_eq!(left.load(Ordering::SeqCst), 0);

    // Without end it is an error, and the next call works.
    left.store(u32::MAX, Ordering::SeqCst);
    let hurried = support::hsm_with(&tpm, std::time::Duration::from_secs(1));
    let stormy = hurried.unseal(&sealed, authority.clone(), policies.clone());
    let error = stormy.await.map(drop).unwrap_err();
    assert!(
        matches!(error, HsmError::Busy | HsmError::Timeout { .. }),
        "{error}"
    );
    tpm.bus().behave();
    handle.unseal(&sealed, authority, policies).await.unwrap();
}

#[tokio::test]
async fn the_secret_is_in_no_frame_and_the_search_would_find_it() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    at_rest(&tpm);
    let policies = vec![sign(&tpm, "ours", &present_state(&tpm))];
    tpm.bus().forget();

    let sealed = seal(&handle, &authority).await;
    let opened = handle.unseal(&sealed, authority, policies).await.unwrap();

    assert_eq!(opened.as_slice(), SECRET);
    assert!(tpm.bus().commands().contains(&command::UNSEAL));
    let found = || {
        tpm.bus()
            .frames()
            .iter()
            .any(|frame| frame.contains(SECRET))
    };
    assert!(!found());

    // The control: the same secret, by a program that does not protect the bus.
    at_rest(&tpm);
    std::fs::write(tpm.folder().join("secret"), SECRET).unwrap();
    tool(
        &tpm,
        "tpm2_create -C 0x81000001 -i secret -u other.pub -r other.priv",
    );
    tool(&tpm, "tpm2_flushcontext -t");
    assert!(found());
}

#[tokio::test]
async fn an_exchanged_parent_is_refused_before_the_policy_session_starts() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    let sealed = seal(&handle, &authority).await;
    let policies = vec![sign(&tpm, "ours", &present_state(&tpm))];
    at_rest(&tpm);
    tpm.bus().forget();
    tpm.bus().alter_answers(|code, answer| {
        if code == command::READ_PUBLIC {
            support::put_parent(answer, &support::point(&support::secret_key(666)));
        }
    });

    let opened = handle.unseal(&sealed, authority, policies).await;

    let error = opened.map(drop).unwrap_err();
    assert!(matches!(error, HsmError::KeyNotOfThisTpm), "{error}");
    // The library had asked before; this was the conversation that opens the secret.
    assert_eq!(tpm.bus().commands(), [command::READ_PUBLIC]);
}

#[tokio::test]
async fn what_is_damaged_or_from_another_tpm_or_too_long_is_told_apart() {
    let (tpm, handle) = provisioned().await;
    let authority = authority(&tpm, "ours");
    let policies = vec![sign(&tpm, "ours", &present_state(&tpm))];
    let (_foreign, other) = provisioned().await;
    let elsewhere = seal(&other, &authority).await;
    for damaged in ["", "-----BEGIN TSS2 PRIVATE KEY-----\n", &elsewhere] {
        let shut = handle.unseal(damaged, authority.clone(), policies.clone());
        assert_eq!(fault(shut.await), SealFault::Damaged);
    }
    let nobody = PolicyAuthority::new([4; 65], b"test data").unwrap();
    let secret = Zeroizing::new(SECRET.to_vec());
    let error = handle.seal(secret, nobody).await.unwrap_err();
    assert!(matches!(error, HsmError::Sealed(SealFault::NotAKey)));
    let long = Zeroizing::new(vec![1; 129]);
    let error = handle.seal(long, authority.clone()).await.unwrap_err();
    assert!(matches!(error, HsmError::Sealed(SealFault::TooLong)));
    let longest = Zeroizing::new(vec![1; 128]);
    let sealed = handle
        .seal(longest.clone(), authority.clone())
        .await
        .unwrap();
    let opened = handle.unseal(&sealed, authority, policies).await.unwrap();
    assert_eq!(opened, longest);
}

/// What a signature is about.
struct State {
    pcrs: wire::tpm::PcrValues,
    counter: Option<CounterLimit>,
}

async fn provisioned() -> (Swtpm, Hsm) {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    (tpm, handle)
}

async fn seal(handle: &Hsm, authority: &PolicyAuthority) -> String {
    let secret = Zeroizing::new(SECRET.to_vec());
    handle.seal(secret, authority.clone()).await.unwrap()
}

/// Makes an authority's key with OpenSSL: `NAME.pem` in the TPM's folder.
fn authority(tpm: &Swtpm, name: &str) -> PolicyAuthority {
    tool(
        tpm,
        &format!("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.pem"),
    );
    let pem = tool(tpm, &format!("openssl pkey -in {name}.pem -pubout"));
    let key = p256::PublicKey::from_public_key_pem(&pem).unwrap();
    let point = key.to_sec1_bytes().as_ref().try_into().unwrap();
    PolicyAuthority::new(point, b"test data").unwrap()
}

/// What PCR 0 and 7 hold now, as tpm2-tools say it.
fn present_state(tpm: &Swtpm) -> State {
    at_rest(tpm);
    tool(tpm, "tpm2_pcrread sha256:0,7 -o pcrs");
    let values = file(tpm, "pcrs");
    let (zero, seven) = values.split_at(32);
    let pcrs = [
        (0, zero.try_into().unwrap()),
        (7, seven.try_into().unwrap()),
    ];
    State {
        pcrs: pcrs.into_iter().collect(),
        counter: None,
    }
}

/// Has OpenSSL sign that a state is approved of.
fn sign(tpm: &Swtpm, name: &str, state: &State) -> SignedPolicy {
    let mut policy = PolicyDigest::new().and_pcrs(&state.pcrs);
    if let Some(limit) = state.counter {
        policy = policy.and_counter(limit);
    }
    let message = [policy.as_bytes(), &b"test data"[..]].concat();
    std::fs::write(tpm.folder().join("message"), message).unwrap();
    tool(
        tpm,
        &format!("openssl dgst -sha256 -sign {name}.pem -out signature message"),
    );
    let signature = Signature::from_der(&file(tpm, "signature")).unwrap();
    SignedPolicy {
        pcrs: state.pcrs.selection(),
        counter: state.counter,
        signature: signature.to_bytes().into(),
    }
}

fn extend(tpm: &Swtpm, pcr: u32) {
    at_rest(tpm);
    let value = hex::encode(digest(pcr));
    tool(tpm, &format!("tpm2_pcrextend {pcr}:sha256={value}"));
}

fn fault(result: Result<Zeroizing<Vec<u8>>, HsmError>) -> SealFault {
    match result {
        Err(HsmError::Sealed(fault)) => fault,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it opened"),
    }
}

const SECRET: &[u8] = b"the data key of thirty-two bytes";
