//! Monotonic counters: they never go back, and no increment is made twice.

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
use std::time::Duration;

use hsm::HsmError;
use hsm::swtpm::Swtpm;
use support::{at_rest, command, hsm, hsm_with, tool};

#[tokio::test]
async fn a_counter_is_made_once_and_adds_one_as_other_programs_see_it() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();

    let first = handle.counter(0).await.unwrap();
    assert_eq!(handle.counter(0).await.unwrap(), first);
    assert_eq!(handle.increment(0).await.unwrap(), first + 1);
    assert_eq!(hsm(&tpm).increment(0).await.unwrap(), first + 2);
    at_rest(&tpm);
    tool(&tpm, "tpm2_nvread 0x1867764 -o value");
    let value = support::file(&tpm, "value");
    assert_eq!(value, (first + 2).to_be_bytes());
    let printed = tool(&tpm, "tpm2_nvreadpublic 0x1867764");
    assert!(printed.contains("authwrite|nt=0x1|authread|no_da|written"));

    // Not even whoever removes it takes it back.
    tool(&tpm, "tpm2_nvundefine 0x1867764 -C o");
    assert!(first + 2 < handle.counter(0).await.unwrap());
}

#[tokio::test]
async fn power_cuts_never_take_a_counter_back() {
    let mut tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    let mut known = hsm(&tpm).counter(0).await.unwrap();

    for round in 0..20 {
        let handle = hsm(&tpm);
        handle.counter(0).await.unwrap();
        // Before or after the TPM has carried it out.
        let killed = tpm.process_id().unwrap();
        if round % 2 == 0 {
            tpm.bus().alter_commands(move |code, _| {
                if code == command::NV_INCREMENT {
                    support::kill(killed);
                }
            });
        } else {
            tpm.bus().alter_answers(move |code, _| {
                if code == command::NV_INCREMENT {
                    support::kill(killed);
                }
            });
        }
        let raised = handle.increment(0).await;
        assert!(raised.is_err());
        tpm.bus().behave();
        tpm.restart().unwrap();

        let value = hsm(&tpm).counter(0).await.unwrap();
        assert!(known <= value && value <= known + 1, "{known} {value}");
        known = hsm(&tpm).increment(0).await.unwrap();
        assert_eq!(known, value + 1);
    }
}

#[tokio::test]
async fn an_increment_whose_answer_was_lost_is_not_made_again() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let first = handle.counter(0).await.unwrap();

    // Lost, altered, and a refusal that a TPM gives before it does anything.
    let increments = Arc::new(AtomicU32::new(0));
    for (round, spoil) in [
        (|bus: &hsm::swtpm::Bus, _: &mut Vec<u8>| bus.cut_answers(1)) as Spoil,
        |_, answer| answer[20] ^= 1,
        |_, answer| answer[9] ^= 1,
    ]
    .into_iter()
    .enumerate()
    {
        let (bus, count) = (tpm.bus().clone(), Arc::clone(&increments));
        let mut is_first = true;
        tpm.bus().alter_answers(move |code, answer| {
            if code == command::NV_INCREMENT {
                count.fetch_add(1, Ordering::SeqCst);
                if std::mem::take(&mut is_first) {
                    spoil(&bus, answer);
                }
            }
        });
        let expected = first + 1 + u64::try_from(round).unwrap();
        assert_eq!(handle.increment(0).await.unwrap(), expected);
        tpm.bus().behave();
    }
    assert_eq!(increments.load(Ordering::SeqCst), 3);

    let mut left = 2;
    tpm.bus().alter_commands(move |code, frame| {
        if code == command::NV_INCREMENT && left != 0 {
            left -= 1;
            // GetRandom with a size that is missing: the TPM does nothing.
            *frame = vec![0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x7B];
        }
    });
    let error = handle.increment(0).await.unwrap_err();
    assert!(!matches!(error, HsmError::Timeout { .. }), "{error}");
    tpm.bus().behave();
    assert_eq!(handle.counter(0).await.unwrap(), first + 3);
}

#[tokio::test]
async fn a_late_increment_is_an_error_and_the_counter_tells() {
    let tpm = Swtpm::start().unwrap();
    hsm(&tpm).provision(false).await.unwrap();
    let first = hsm(&tpm).counter(0).await.unwrap();
    let handle = hsm_with(&tpm, Duration::from_millis(400));
    let bus = tpm.bus().clone();
    tpm.bus().alter_answers(move |code, _| {
        if code == command::NV_INCREMENT {
            bus.stop_answering();
        }
    });

    let error = handle.increment(0).await.unwrap_err();

    assert!(matches!(error, HsmError::Timeout { .. }), "{error}");
    tpm.bus().behave();
    assert_eq!(hsm(&tpm).counter(0).await.unwrap(), first + 1);
}

#[tokio::test]
async fn something_else_in_its_place_is_no_counter() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    // An index of eight bytes that anybody may set back.
    tool(
        &tpm,
        "tpm2_nvdefine 0x1867764 -C o -s 8 -a authread|authwrite|no_da",
    );
    std::fs::write(tpm.folder().join("value"), [0; 8]).unwrap();
    tool(&tpm, "tpm2_nvwrite 0x1867764 -i value");

    let error = handle.counter(0).await.unwrap_err();

    assert!(
        matches!(error, HsmError::ForeignIndex { index: 0x186_7764 }),
        "{error}"
    );
    assert!(error.advice().contains("tpm2_nvundefine"));
    assert!(handle.increment(0).await.is_err());
}

#[tokio::test]
async fn a_counter_that_the_bus_leads_to_is_not_ours() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let zero = handle.counter(0).await.unwrap();
    for _ in 0..5 {
        handle.increment(1).await.unwrap();
    }
    let one = handle.counter(1).await.unwrap();
    // Counter 0 in the place of counter 1, with answers that say it is 1.
    tpm.bus().alter_commands(|code, frame| {
        if [
            command::NV_READ_PUBLIC,
            command::NV_READ,
            command::NV_INCREMENT,
        ]
        .contains(&code)
        {
            for handle in frame[10..].chunks_exact_mut(4).take(2) {
                if handle == [0x01, 0x86, 0x77, 0x65] {
                    handle[3] = 0x64;
                }
            }
        }
    });
    tpm.bus().alter_answers(|code, answer| {
        if code == command::NV_READ_PUBLIC {
            answer[15] = 0x65;
        }
    });

    for error in [
        handle.counter(1).await.unwrap_err(),
        handle.increment(1).await.unwrap_err(),
    ] {
        assert!(matches!(error, HsmError::Tampered), "{error}");
    }

    tpm.bus().behave();
    assert_eq!(handle.health().await.tampered, 2);
    assert_eq!(handle.counter(0).await.unwrap(), zero);
    assert_eq!(handle.counter(1).await.unwrap(), one);
}

#[tokio::test]
async fn an_index_that_poses_as_a_counter_is_found_out() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    for _ in 0..5 {
        handle.increment(0).await.unwrap();
    }
    at_rest(&tpm);
    // One that can be set back, and answers that say it is a counter.
    tool(&tpm, "tpm2_nvundefine 0x1867764 -C o");
    tool(
        &tpm,
        "tpm2_nvdefine 0x1867764 -C o -s 8 -a authread|authwrite|no_da",
    );
    std::fs::write(tpm.folder().join("value"), 1_u64.to_be_bytes()).unwrap();
    tool(&tpm, "tpm2_nvwrite 0x1867764 -i value");
    tpm.bus().alter_answers(|code, answer| {
        if code == command::NV_READ_PUBLIC {
            // TPM_NT_COUNTER.
            answer[21] |= 0x10;
        }
    });

    let error = handle.counter(0).await.unwrap_err();

    assert!(matches!(error, HsmError::Tampered), "{error}");
}

#[tokio::test]
async fn an_owner_with_a_password_is_told_how_to_go_on() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    at_rest(&tpm);
    tool(&tpm, "tpm2_changeauth -c owner secret");

    let error = handle.counter(0).await.unwrap_err();

    assert!(matches!(error, HsmError::OwnerPassword(_)), "{error}");
    assert_eq!(handle.health().await.tampered, 0);
}

type Spoil = fn(&hsm::swtpm::Bus, &mut Vec<u8>);
