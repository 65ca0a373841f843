//! A peer that vanishes without a word: no FIN, no RST, no acknowledgement.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test reports by panicking, and figures are read by people"
)]

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    time::Instant,
};

/// In a network of its own, which can be switched off below both ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanishes_is_noticed_in_twenty_seconds() {
    let mut alone = Command::new("unshare");
    alone.args(["--map-root-user", "--net"]);
    let allowed = alone.arg("true").status().await;
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("this machine does not give out network namespaces: not tested here");
        return;
    }
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "part_of_the_test_above",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    assert!(output.status.success(), "{said}");
    assert!(said.contains("noticed after"), "{said}");
}

#[tokio::test]
#[ignore = "needs a network of its own"]
async fn part_of_the_test_above() {
    // Two lines of heading, and one for the loopback interface.
    let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert_eq!(interfaces.lines().count(), 3, "not a network of its own");
    loopback("up").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pin = channel::Fingerprint::new(channel::KeyKind::ServiceIdentity, [0; 32]);
    let address = format!("tcp://127.0.0.1:{port}").parse().unwrap();
    let mut stream = link::dial(&address, &pin, None).await.unwrap();
    let _far = listener.accept().await.unwrap();

    loopback("down").await;
    let began = Instant::now();
    stream.write_all(b"is anybody there?").await.unwrap();
    let ended = stream.read(&mut [0]).await.unwrap_err();

    eprintln!("noticed after {:?}: {ended}", began.elapsed());
    assert_eq!(ended.kind(), std::io::ErrorKind::TimedOut);
    // The kernel looks when it would send again: after 0.2, 0.4, 0.8 ... s, up to 25.6 s.
    assert!(began.elapsed() < Duration::from_secs(30));
}

async fn loopback(state: &str) {
    let set = ["link", "set", "lo", state];
    let status = Command::new("ip").args(set).status().await.unwrap();
    assert!(status.success());
}
