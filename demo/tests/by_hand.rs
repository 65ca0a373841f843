//! A site without a link: what it seals is carried to the service on a stick.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

#[allow(dead_code, reason = "a part of it is used")]
mod fixture;

use std::{path::PathBuf, process::Output, time::Duration};

use demo::{accounts::Accounts, process::run, site::Site};
use fixture::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_by_hand_is_stored_once_and_acknowledged_later() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    // From here on only a stick leads to the service.
    site.service.take().unwrap().stop().await.unwrap();
    let before = site.rows();
    site.stored_more(20).await;
    let stick = site.path("stick");
    std::fs::create_dir(&stick).unwrap();

    let file = export(&site, &[stick.to_str().unwrap()]).await;
    assert_eq!(file.parent(), Some(&*stick));
    assert_eq!(
        std::fs::read_dir(&stick).unwrap().count(),
        1,
        "no part is left"
    );
    let opened = open(&site, &[&file], 0).await;
    assert!(stdout(&opened).contains("; from greenhouse-7"));
    let carried = site.rows();
    assert!(before + 20 <= carried, "{before} {carried}");
    let again = open(&site, &[&file], 0).await;
    assert!(stdout(&again).contains(": 0 new batches, "));
    assert_eq!(site.rows(), carried);
    only_what_is_new(&site).await;

    // The link is back: acks cover what came by hand, and the books balance.
    site.start_service().await.unwrap();
    site.stored_more(5).await;
    for sensor in site.modbus.drain(..).rev() {
        sensor.stop().await.unwrap();
    }
    site.delivered(LONG).await.unwrap();
    let status = site.status().await.unwrap();
    let books = Accounts::read(&status, &site.readings()).unwrap();
    assert!(books.hold(), "{books:?}");
}

/// A second export, and what cannot be done.
async fn only_what_is_new(site: &Fixture) {
    site.stored_more(5).await;
    let second = site.path("second.sealed");
    let arguments = [second.to_str().unwrap(), "--new", "--service", "cloud"];
    export(site, &arguments).await;
    let opened = open(site, &[&second], 0).await;
    assert!(stdout(&opened).contains(" 0 known already, "));

    let refused = site
        .gatewayctl(&[&["spool", "export"], &arguments[..]].concat(), "")
        .await
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("it exists already"));
    let foreign = site.path("cloud/gateway-cloud.toml");
    let opened = open(site, &[&foreign, &second], 1).await;
    assert!(stderr(&opened).contains("no file of gatewayctl spool export"));
    assert!(stdout(&opened).contains("second.sealed: 0 new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_record_key_is_used_by_the_gateway_and_nothing_is_missed() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    let mut rotate = site.gateway_cloud().unwrap();
    let rotated = run(rotate.args(["keys", "rotate"]), "").await.unwrap();
    assert!(rotated.status.success(), "{}", stderr(&rotated));
    assert!(stdout(&rotated).starts_with("rk-"), "{}", stdout(&rotated));

    site.service.take().unwrap().stop().await.unwrap();
    site.stored_more(5).await;
    site.start_service().await.unwrap();
    // The statement came with the session; what is sealed now is sealed to the new key.
    site.uplink("connected").await;
    site.stored_more(20).await;
    for sensor in site.modbus.drain(..).rev() {
        sensor.stop().await.unwrap();
    }
    site.delivered(LONG).await.unwrap();

    let status = site.status().await.unwrap();
    let books = Accounts::read(&status, &site.readings()).unwrap();
    assert!(books.hold(), "{books:?}");
    let headers = rusqlite::Connection::open(site.readings()).unwrap();
    let mut headers = headers
        .prepare("SELECT header FROM epoch ORDER BY id")
        .unwrap();
    let headers = headers
        .query_map([], |row| row.get::<_, Vec<u8>>(0))
        .unwrap();
    let headers: Vec<_> = headers.map(Result::unwrap).collect();
    let key: channel::Fingerprint = stdout(&rotated).trim().parse().unwrap();
    let to_new = |header: &Vec<u8>| header.windows(32).any(|window| window == key.bytes());
    assert!(!to_new(headers.first().unwrap()));
    assert!(headers.iter().any(to_new));
}

/// Exports; returns the file.
async fn export(site: &Site, arguments: &[&str]) -> PathBuf {
    let arguments = [&["spool", "export"], arguments].concat();
    let exported = site.gatewayctl(&arguments, "").await.unwrap();
    assert!(exported.status.success(), "{}", stderr(&exported));
    assert!(stderr(&exported).contains("They stay here until"));
    PathBuf::from(stdout(&exported).trim())
}

/// Opens files, which ends with this code.
async fn open(site: &Site, files: &[&PathBuf], code: i32) -> Output {
    let mut command = site.gateway_cloud().unwrap();
    let opened = run(command.arg("open").args(files), "").await.unwrap();
    let said = (stdout(&opened), stderr(&opened));
    assert_eq!(opened.status.code(), Some(code), "{said:?}");
    opened
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// For a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(60);
