//! The urgent overtakes what waits, at the speed of real chips.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use hsm::swtpm::Swtpm;
use support::{command, digest, hsm, point, secret_key};
use tokio::sync::mpsc;

#[tokio::test]
async fn a_handshake_overtakes_queued_quotes_and_headers() {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    handle.provision(false).await.unwrap();
    tpm.bus().delay_answers_by(infineon_slb9670);
    let (ended, mut ends) = mpsc::unbounded_channel();
    let mut calls = tokio::task::JoinSet::new();
    let started = Instant::now();
    for number in 0..8 {
        let (handle, ended) = (handle.clone(), ended.clone());
        calls.spawn(async move {
            let pcrs = [0, 7].into_iter().collect();
            handle.quote(pcrs, digest(number)).await.unwrap();
            ended.send(("quote", started.elapsed())).unwrap();
        });
    }
    for number in 0..2 {
        let (handle, ended) = (handle.clone(), ended.clone());
        calls.spawn(async move {
            handle.sign(digest(number)).await.unwrap();
            ended.send(("header", started.elapsed())).unwrap();
        });
    }
    // All of them are in the queue when the handshake comes.
    tokio::task::yield_now().await;
    let asked = started.elapsed();
    handle.ecdh(point(&secret_key(1))).await.unwrap();
    ended.send(("handshake", started.elapsed())).unwrap();
    calls.join_all().await;
    drop(ended);

    let mut order = Vec::new();
    while let Some(end) = ends.recv().await {
        order.push(end);
    }
    let handshake = order.iter().position(|(what, _)| *what == "handshake");
    let headers = order
        .iter()
        .rposition(|(what, _)| *what == "header")
        .unwrap();
    // Before it was only what the TPM had begun.
    assert!(handshake.unwrap() <= 1, "{order:?}");
    assert!(headers <= 3, "{order:?}");
    // Its own session, key and use, and one quote that had begun: far from the whole queue.
    let (_, done) = order[handshake.unwrap()];
    let (_, all) = order.last().unwrap();
    assert!(done - asked < *all / 2, "{order:?}");
}

/// An Infineon SLB9670 at 43 MHz, as wolfTPM's README has it.
fn infineon_slb9670(code: u32) -> Duration {
    Duration::from_millis(match code {
        // Both agree on a secret in the TPM.
        command::ECDH_ZGEN | command::START_AUTH_SESSION => 232,
        command::SIGN | command::QUOTE => 69,
        _ => 0,
    })
}
