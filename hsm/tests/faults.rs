//! A TPM that is absent, slow, silent, reset, replaced or without power.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hsm::swtpm::Swtpm;
use hsm::{Hsm, HsmConfig, HsmError, Tpm, TpmChange};
use support::{at_rest, command, digest, hsm, hsm_with, keys, point, secret_key, tool};
use zeroize::Zeroizing;

#[tokio::test]
async fn power_cuts_in_and_after_use_never_count_towards_lockout() {
    let mut tpm = Swtpm::start().unwrap();
    let public = hsm(&tpm).provision(false).await.unwrap();

    // swtpm locks after three failures.
    for round in 0..50_u64 {
        let handle = hsm(&tpm);
        let process = tpm.process_id().unwrap();
        let code = if round % 2 == 0 {
            command::SIGN
        } else {
            command::ECDH_ZGEN
        };
        // Before, somewhere in, or after what takes the TPM half a millisecond.
        let moment = match round % 5 {
            0 => Some(Duration::ZERO),
            1..4 => Some(Duration::from_micros(37 * round % 700)),
            _ => None,
        };
        if let Some(moment) = moment {
            tpm.bus()
                .alter_commands(move |used, _| cut_power(used, code, process, moment));
        }
        let used = match code {
            command::SIGN => handle.sign(digest(0)).await.map(drop),
            _ => handle.ecdh(point(&secret_key(1))).await.map(drop),
        };
        match moment {
            Some(Duration::ZERO) => assert!(used.is_err()),
            Some(_) => {}
            None => used.unwrap(),
        }
        tpm.bus().behave();
        tpm.restart().unwrap();

        let health = hsm(&tpm).health().await;
        assert_eq!((health.lockout_count, health.lockout_max), (0, 3));
        assert_eq!(health.state.to_string(), "ok");
    }
    let handle = hsm(&tpm);
    assert_eq!(handle.load().await.unwrap(), public);
    handle.sign(digest(0)).await.unwrap();
    handle.ecdh(point(&secret_key(0))).await.unwrap();
    at_rest(&tpm);

    // The control: a key without the exemption, used with its right password.
    tool(
        &tpm,
        "tpm2_create -C 0x81000001 -G ecc -p right -u other.pub -r other.priv",
    );
    for _ in 0..3 {
        tool(&tpm, "tpm2_flushcontext -t");
        tool(
            &tpm,
            "tpm2_load -C 0x81000001 -u other.pub -r other.priv -c other.ctx",
        );
        std::fs::write(tpm.folder().join("digest.bin"), digest(0)).unwrap();
        tool(
            &tpm,
            "tpm2_sign -c other.ctx -p right -g sha256 -d -o signature digest.bin",
        );
        tpm.kill().unwrap();
        tpm.restart().unwrap();
        tool(&tpm, "tpm2_startup -c");
    }
    assert_eq!(hsm(&tpm).health().await.state.to_string(), "locked_out");
}

/// Kills the TPM so long after the command with this code was sent.
fn cut_power(used: u32, code: u32, process: u32, moment: Duration) {
    if used != code {
        return;
    }
    if moment.is_zero() {
        support::kill(process);
    } else {
        std::thread::spawn(move || {
            std::thread::sleep(moment);
            support::kill(process);
        });
    }
}

#[tokio::test]
async fn a_tpm_in_lockout_still_serves_the_gateway_and_says_so() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    // Another program's key, without exemption, used with wrong passwords.
    tool(&tpm, "tpm2_createprimary -C o -G ecc -p right -c other.ctx");
    tool(&tpm, "tpm2_flushcontext -t");
    std::fs::write(tpm.folder().join("digest.bin"), digest(0)).unwrap();
    for _ in 0..3 {
        let guess = std::process::Command::new("tpm2_create")
            .args(["-C", "other.ctx", "-P", "wrong", "-u", "a", "-r", "b"])
            .current_dir(tpm.folder())
            .env("TPM2TOOLS_TCTI", tpm.tcti())
            .output()
            .unwrap();
        assert!(!guess.status.success());
        tool(&tpm, "tpm2_flushcontext -t");
    }

    let health = handle.health().await;
    assert_eq!(health.state.to_string(), "locked_out");
    assert_eq!(health.lockout_count, 3);
    handle.sign(digest(0)).await.unwrap();
    handle.ecdh(point(&secret_key(1))).await.unwrap();
}

#[tokio::test]
async fn a_tpm_that_is_not_there_is_named_with_advice() {
    let unbound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = unbound.local_addr().unwrap().port();
    drop(unbound);
    for (tpm, advice) in [
        (Tpm::Device(PathBuf::from("/dev/no-such-tpm")), "dtoverlay"),
        (
            Tpm::Swtpm {
                host: "127.0.0.1".to_owned(),
                port,
            },
            "start swtpm",
        ),
    ] {
        let keys = std::env::temp_dir().join("no-such-folder-of-keys");
        let handle = Hsm::start(HsmConfig {
            tpm: tpm.clone(),
            keys: keys.clone(),
            timeout: Duration::from_secs(30),
        });

        let error = handle.provision(false).await.unwrap_err();

        assert!(matches!(&error, HsmError::NoDevice { tpm: named } if *named == tpm));
        assert_eq!(error.to_string(), format!("there is no TPM at {tpm}"));
        assert!(error.advice().contains(advice), "{}", error.advice());
        let health = handle.health().await;
        assert_eq!(health.state.to_string(), "absent");
        assert!(matches!(health.problem, Some(HsmError::NoDevice { .. })));
        assert!(!keys.exists());
    }
}

#[tokio::test]
async fn keys_of_another_tpm_are_recognised_and_can_be_replaced() {
    let old = Swtpm::start().unwrap();
    let before = hsm(&old).provision(false).await.unwrap();
    let new = Swtpm::start().unwrap();
    copy_keys(&old, &new);

    let handle = hsm(&new);
    for error in [
        handle.load().await.map(drop).unwrap_err(),
        handle.provision(false).await.map(drop).unwrap_err(),
        handle.sign(digest(0)).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, HsmError::KeyNotOfThisTpm), "{error}");
        assert!(error.advice().contains("--force-new"));
    }
    assert_eq!(handle.health().await.state.to_string(), "replaced");

    let after = handle.provision(true).await.unwrap();
    assert_ne!(after.identity, before.identity);
    assert_eq!(handle.health().await.state.to_string(), "ok");
}

#[tokio::test]
async fn a_key_of_another_tpm_under_a_right_manifest_is_recognised() {
    let (old, new) = (Swtpm::start().unwrap(), Swtpm::start().unwrap());
    hsm(&old).provision(false).await.unwrap();
    hsm(&new).provision(false).await.unwrap();
    // As if somebody had edited the pin: only the TPM itself can tell.
    let mut forged = support::manifest(&old);
    forged["parent"] = support::manifest(&new)["parent"].clone();
    copy_keys(&old, &new);
    std::fs::write(keys(&new).join("manifest.json"), forged.to_string()).unwrap();

    let error = hsm(&new).load().await.unwrap_err();

    assert!(matches!(error, HsmError::KeyDamaged { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_key_file_is_not_taken_for_a_replaced_tpm() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    let path = keys(&tpm).join("identity.pem");
    let mut text = std::fs::read(&path).unwrap();
    // In the private part, which no checksum of ours covers.
    let place = text.len() - 60;
    text[place] = if text[place] == b'A' { b'B' } else { b'A' };
    std::fs::write(&path, text).unwrap();

    let handle = hsm(&tpm);
    let error = handle.load().await.unwrap_err();

    assert!(
        matches!(
            error,
            HsmError::KeyDamaged {
                file: "identity.pem"
            }
        ),
        "{error}"
    );
    let looked = handle.examination().await;
    assert_eq!(looked.findings.change, None);
    assert_eq!(looked.health.state.to_string(), "ok");
}

#[tokio::test]
async fn a_cleared_tpm_is_recognised() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    tool(&tpm, "tpm2_clear -c p");

    let error = hsm(&tpm).load().await.unwrap_err();

    assert!(matches!(error, HsmError::KeyNotOfThisTpm), "{error}");
}

#[tokio::test]
async fn a_tpm_that_answers_after_600_ms_works() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    // Every command, as slow as the slowest chip at its slowest.
    tpm.bus().delay_answers(Duration::from_millis(600));
    let started = Instant::now();
    handle.ecdh(point(&secret_key(1))).await.unwrap();
    handle.sign(digest(1)).await.unwrap();

    // Session, two keys, two uses, and one key put away in between.
    assert!(Duration::from_millis(6 * 600) <= started.elapsed());
    assert_eq!(handle.health().await.reconnects, 0);
}

#[tokio::test]
async fn a_tpm_that_never_answers_costs_the_limit_and_heals() {
    let limit = Duration::from_millis(1500);
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    let handle = hsm_with(&tpm, limit);
    recovers(&handle).await;

    for round in 1..=3 {
        tpm.bus().stop_answering();
        let started = Instant::now();
        let error = handle.sign(digest(round)).await.unwrap_err();
        assert!(matches!(error, HsmError::Timeout { after } if after == limit));
        assert!(limit <= started.elapsed() && started.elapsed() < limit * 3);
        assert_eq!(handle.health().await.state.to_string(), "busy");

        tpm.bus().answer_again();
        recovers(&handle).await;
    }
    assert!(0 < handle.health().await.reconnects);
}

#[tokio::test]
async fn a_short_call_does_not_end_a_long_one_that_goes_on() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    let handle = hsm_with(&tpm, Duration::from_secs(1));
    recovers(&handle).await;
    // An endorsement key takes three times as long as a signature may, and has four.
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    tpm.bus().alter_commands(move |code, _| {
        if code == command::CREATE_PRIMARY {
            begun.take().unwrap().send(()).unwrap();
        }
    });
    tpm.bus().delay_answers_by(|code| match code {
        command::CREATE_PRIMARY => Duration::from_secs(3),
        _ => Duration::ZERO,
    });
    let long = handle.clone();
    let long = tokio::spawn(async move { long.endorsement(None).await });
    has_begun.await.unwrap();

    let error = handle.sign(digest(1)).await.unwrap_err();

    assert!(matches!(error, HsmError::Timeout { .. }), "{error}");
    long.await.unwrap().unwrap();
}

#[tokio::test]
async fn while_one_call_is_asked_to_wait_handshakes_are_served() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    handle.counter(0).await.unwrap();
    // The TPM spares its memory: it answers TPM_RC_NV_RATE and does nothing.
    let (throttled, mut is_throttled) = tokio::sync::mpsc::unbounded_channel();
    tpm.bus().alter_commands(|code, frame| {
        if code == command::NV_INCREMENT {
            *frame = vec![0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x7B];
        }
    });
    tpm.bus().alter_answers(move |code, answer| {
        if code == command::NV_INCREMENT {
            *answer = vec![0x80, 1, 0, 0, 0, 10, 0, 0, 0x09, 0x20];
            throttled.send(()).unwrap();
        }
    });
    let counting = handle.clone();
    let counting = tokio::spawn(async move { counting.increment(0).await });
    is_throttled.recv().await.unwrap();

    handle.ecdh(point(&secret_key(1))).await.unwrap();
    handle.sign(digest(1)).await.unwrap();

    assert!(!counting.is_finished());
    tpm.bus().behave();
    counting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_thread_that_was_replaced_sends_the_tpm_nothing_more() {
    let authority = support::authority();
    for hangs in [command::SIGN, command::LOAD_EXTERNAL] {
        let tpm = Swtpm::start().unwrap();
        let patient = hsm(&tpm);
        patient.provision(false).await.unwrap();
        let secret = Zeroizing::new(vec![1; 32]);
        let sealed = patient.seal(secret, authority.clone()).await.unwrap();
        at_rest(&tpm);
        let handle = hsm_with(&tpm, Duration::from_millis(600));
        let late = Duration::from_millis(2500);
        tpm.bus().delay_answers_by(move |code| match code {
            _ if code == hangs => late,
            _ => Duration::ZERO,
        });
        let asked = Instant::now();
        let error = match hangs {
            command::SIGN => handle.sign(digest(1)).await.map(drop),
            _ => handle
                .unseal(
                    &sealed,
                    authority.clone(),
                    vec![support::signed_policy(None)],
                )
                .await
                .map(drop),
        };
        assert!(matches!(error, Err(HsmError::Timeout { .. })));
        let resets = handle.health().await.resets;
        tpm.bus().forget();

        // Its successor is in the midst of a burst when the answer comes.
        while asked.elapsed() < late + Duration::from_millis(500) {
            let _ = handle.ecdh(point(&secret_key(1))).await;
        }

        // Had it put its session away, that would have been the successor's by now.
        assert_eq!(handle.health().await.resets, resets, "{hangs:x}");
        let later = [command::VERIFY_SIGNATURE, command::UNSEAL];
        let commands = tpm.bus().commands();
        assert!(!commands.iter().any(|code| later.contains(code)));
    }
}

#[tokio::test]
async fn calls_that_wait_behind_a_silent_tpm_are_bounded() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    let handle = hsm_with(&tpm, Duration::from_secs(1));
    recovers(&handle).await;
    tpm.bus().stop_answering();

    let mut calls = tokio::task::JoinSet::new();
    for number in 0..100 {
        let handle = handle.clone();
        calls.spawn(async move { handle.sign(digest(number)).await.unwrap_err() });
    }
    let errors = calls.join_all().await;

    let busy = |error: &&HsmError| matches!(error, HsmError::Busy);
    let late = |error: &&HsmError| matches!(error, HsmError::Timeout { .. });
    assert!(60 < errors.iter().filter(busy).count());
    assert!(30 < errors.iter().filter(late).count());
    tpm.bus().answer_again();
    recovers(&handle).await;
}

#[tokio::test]
async fn a_lost_answer_is_an_error_and_the_next_call_works() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    // More often than the TPM has slots for sessions that are never ended.
    for round in 1..=5 {
        at_rest(&tpm);
        tpm.bus().cut_answers(1);
        let error = handle.health().await.problem.unwrap();
        assert!(matches!(error, HsmError::Transport), "{error}");
        handle.sign(digest(round)).await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_under_way_heals_unnoticed_and_is_counted() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    handle.sign(digest(0)).await.unwrap();
    tpm.reset().unwrap();

    handle.sign(digest(1)).await.unwrap();

    assert!(0 < handle.health().await.resets);
}

#[tokio::test]
async fn what_somebody_takes_out_of_the_tpm_is_put_back() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    for round in 0..3 {
        handle.sign(digest(round)).await.unwrap();
        at_rest(&tpm);
        // While the connection knows it.
        tool(&tpm, "tpm2_evictcontrol -C o -c 0x81000001");

        handle.sign(digest(round)).await.unwrap();
    }
}

#[tokio::test]
async fn the_null_root_is_the_kernel_s_and_changes_with_each_restart() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let null_root = async || {
        let looked = handle.examination().await;
        assert!(
            looked.health.problem.is_none(),
            "{:?}",
            looked.health.problem
        );
        looked.findings.null_root.unwrap()
    };
    let before = null_root().await;
    assert_eq!(null_root().await, before);
    at_rest(&tpm);
    // As Linux makes it.
    tool(
        &tpm,
        "tpm2_createprimary -C n -G ecc256:aes128cfb -c null.ctx -a \
         fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt",
    );
    let printed = tool(&tpm, "tpm2_readpublic -c null.ctx");
    assert!(printed.contains(&before), "{printed}");
    tool(&tpm, "tpm2_flushcontext -t");

    let control = tpm.control_socket();
    tool(
        &tpm,
        &format!("swtpm_ioctl --unix {} -i", control.display()),
    );

    assert_ne!(null_root().await, before);
}

#[tokio::test]
async fn a_cleared_tpm_is_told_from_a_replaced_one() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let before = handle.provision(false).await.unwrap();
    let healthy = handle.examination().await;
    assert!(healthy.health.problem.is_none());
    let findings = healthy.findings;
    assert_eq!(findings.change, None);
    assert_eq!(findings.exempt_from_lockout, Some(true));
    assert_eq!(findings.pinned_root, findings.found_root);
    assert_eq!(
        findings.pinned_root.as_deref(),
        support::manifest(&tpm)["parent"].as_str()
    );
    assert!(findings.latency.is_some());
    let about = findings.about.unwrap();
    assert_eq!((about.lockout_count, about.lockout_max), (0, 3));
    let banks: Vec<_> = about.banks.iter().map(|bank| bank.hash.as_str()).collect();
    assert!(banks.contains(&"sha256"), "{banks:?}");

    let other = Swtpm::start().unwrap();
    copy_keys(&tpm, &other);
    let replaced = hsm(&other).examination().await;
    assert_eq!(replaced.findings.change, Some(TpmChange::Replaced));
    assert_eq!(replaced.health.state.to_string(), "replaced");
    assert_ne!(replaced.findings.pinned_root, replaced.findings.found_root);

    at_rest(&tpm);
    tool(&tpm, "tpm2_clear -c p");
    let handle = hsm(&tpm);
    let cleared = handle.examination().await;
    assert_eq!(cleared.findings.change, Some(TpmChange::Cleared));
    assert_eq!(cleared.health.state.to_string(), "replaced");

    // The gateway goes on with a new identity, and needs nothing of the old one.
    for handle in [handle, hsm(&other)] {
        let after = handle.provision(true).await.unwrap();
        assert_ne!(after.identity, before.identity);
        assert_eq!(handle.examination().await.findings.change, None);
        handle.sign(digest(0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_tpm_that_asks_for_patience_gets_it() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    // More refusals (TPM_RC_NV_RATE) than the library's own patience.
    let mut left = 8;
    tpm.bus().alter_answers(move |code, answer| {
        if code == command::SIGN && 0 < left {
            left -= 1;
            *answer = [&[0x80, 0x01, 0, 0, 0, 10][..], &[0, 0, 0x09, 0x20]].concat();
        }
    });

    handle.sign(digest(1)).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_in_the_tpm_while_nobody_works() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    handle.sign(digest(1)).await.unwrap();
    handle.ecdh(point(&secret_key(1))).await.unwrap();
    let health = handle.health().await;
    assert_eq!((health.failures, health.operations), (0, 4));

    at_rest(&tpm);
}

#[tokio::test]
async fn what_another_program_left_in_the_tpm_is_noticed_and_gone_after_a_reset() {
    let tpm = Swtpm::start().unwrap();
    // Without a resource manager the tools leave in the TPM what they saved.
    tool(&tpm, "tpm2_createprimary -C o -c left.ctx");
    let error = tpm.wait_at_rest(Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("0x80000000"), "{error}");

    tpm.reset().unwrap();

    at_rest(&tpm);
}

/// Calls until the TPM serves: on a busy machine a short limit passes now and then, and calls that
/// nobody waits for any more may be before us.
async fn recovers(handle: &Hsm) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while let Err(error) = handle.sign(digest(0)).await {
        assert!(Instant::now() < give_up, "{error}");
        tokio::task::yield_now().await;
    }
}

fn copy_keys(from: &Swtpm, to: &Swtpm) {
    std::fs::create_dir_all(keys(to)).unwrap();
    for entry in keys(from).read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), keys(to).join(entry.file_name())).unwrap();
    }
}
