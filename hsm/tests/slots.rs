//! A TPM has few slots for sessions and keys: a chip three, and the kernel's resource manager three
//! of each for whoever opens it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hsm::swtpm::{Direction, Frame, Swtpm};
use hsm::{CertifyKey, Hsm, HsmError};
use support::command::{CREATE_PRIMARY, FLUSH_CONTEXT, LOAD, LOAD_EXTERNAL, START_AUTH_SESSION};
use support::{at_rest, digest, hsm, point, secret_key};
use wire::tpm::PolicyAuthority;
use zeroize::Zeroizing;

#[tokio::test]
async fn ten_thousand_operations_with_errors_leave_nothing_and_need_three_slots_of_each() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    let authority = support::authority();
    let secret = Zeroizing::new(vec![7; 32]);
    let sealed = handle.seal(secret, authority.clone()).await.unwrap();
    let errors = Arc::new(AtomicBool::new(false));
    inject(&tpm, Arc::clone(&errors));
    let (mut slots, mut failed) = (Slots::default(), 0);

    for number in 0..10_000 {
        errors.store(number % 10 == 9, Ordering::SeqCst);
        if operate(&handle, number, (&sealed, &authority))
            .await
            .is_err()
        {
            failed += 1;
        }
        if number % 200 == 0 {
            slots.follow(&tpm.bus().frames());
            tpm.bus().forget();
        }
    }
    errors.store(false, Ordering::SeqCst);
    slots.follow(&tpm.bus().frames());

    assert!((300..1_000).contains(&failed), "{failed} operations failed");
    assert!(slots.sessions_max <= 3, "{} sessions", slots.sessions_max);
    assert!(slots.objects_max <= 3, "{} keys", slots.objects_max);
    assert_eq!(slots.sessions_max, 2, "it counts");
    handle.sign(digest(0)).await.unwrap();
    at_rest(&tpm);
}

async fn operate(
    handle: &Hsm,
    number: u32,
    (sealed, authority): (&str, &PolicyAuthority),
) -> Result<(), HsmError> {
    match number % 16 {
        0..6 => handle.sign(digest(number)).await.map(drop),
        6..11 => handle.ecdh(point(&secret_key(number))).await.map(drop),
        11 => handle
            .certify(CertifyKey::Identity, digest(number))
            .await
            .map(drop),
        12 => {
            let pcrs = [0, 7].into_iter().collect();
            handle.quote(pcrs, digest(number)).await.map(drop)
        }
        13 => handle.counter(0).await.map(drop),
        14 => {
            let policies = vec![support::signed_policy(None)];
            let opened = handle.unseal(sealed, authority.clone(), policies).await;
            opened.map(drop)
        }
        _ => match handle.health().await.problem {
            Some(error) => Err(error),
            None => Ok(()),
        },
    }
}

/// While `errors` is set, each fourth answer is cut, altered or a refusal.
fn inject(tpm: &Swtpm, errors: Arc<AtomicBool>) {
    let bus = tpm.bus().clone();
    let mut count = 0_u32;
    tpm.bus().alter_answers(move |_, answer| {
        if !errors.load(Ordering::SeqCst) {
            return;
        }
        count += 1;
        match count % 12 {
            3 => bus.cut_answers(1),
            // TPM_RC_FAILURE, which needs no repetition.
            7 => *answer = vec![0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1],
            11 => {
                let last = answer.len() - 1;
                answer[last] ^= 0xFF;
            }
            _ => {}
        }
    });
}

/// What is loaded, as the frames on the bus tell.
#[derive(Default)]
struct Slots {
    loaded: BTreeSet<u32>,
    sessions_max: usize,
    objects_max: usize,
    asked: Option<Frame>,
}

impl Slots {
    fn follow(&mut self, frames: &[Frame]) {
        for frame in frames {
            if frame.direction == Direction::Command {
                self.asked = Some(frame.clone());
                continue;
            }
            let Some(command) = self.asked.take() else {
                continue;
            };
            // As the TPM said it, before anybody altered it.
            if frame.code() != 0 {
                continue;
            }
            let handle =
                |frame: &Frame| u32::from_be_bytes(frame.bytes[10..14].try_into().unwrap());
            match command.code() {
                START_AUTH_SESSION | LOAD | LOAD_EXTERNAL | CREATE_PRIMARY => {
                    self.loaded.insert(handle(frame));
                }
                FLUSH_CONTEXT => {
                    self.loaded.remove(&handle(&command));
                }
                _ => {}
            }
            // TPM_HT_TRANSIENT; the others are sessions.
            let objects = self
                .loaded
                .iter()
                .filter(|handle| **handle >> 24 == 0x80)
                .count();
            self.objects_max = self.objects_max.max(objects);
            self.sessions_max = self.sessions_max.max(self.loaded.len() - objects);
        }
    }
}
