//! What `gateway-cloud serve` says when it starts, or why it does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

#[test]
fn serve_says_once_whose_tpms_may_enrol() {
    let folder = state();
    let said = start(&folder, "listen = \"127.0.0.1:0\"");
    let open = "attestation.ek_roots is not set: a ticket enrols any TPM";
    assert_eq!(said.matches(open).count(), 1, "{said}");

    certificate(&folder.path().join("ek-roots/vendor.pem"));
    let said = start(&folder, &with_roots(&folder));
    let closed = "only TPMs with a certificate of their vendor enrol roots=1 issuers=0";
    assert_eq!(said.matches(closed).count(), 1, "{said}");
    assert!(!said.contains(open), "{said}");
}

#[test]
fn serve_does_not_start_with_roots_that_it_cannot_use() {
    let folder = state();
    let said = start(&folder, &with_roots(&folder));
    assert!(
        said.contains("error: gateway-cloud: attestation.ek_roots"),
        "{said}"
    );
    assert!(
        said.contains("has no root (self-signed) certificate"),
        "{said}"
    );

    fs::write(folder.path().join("ek-roots/notes.txt"), "to do").unwrap();
    let said = start(&folder, &with_roots(&folder));
    assert!(
        said.contains("ek-roots/notes.txt: repair or remove it"),
        "{said}"
    );

    fs::remove_dir_all(folder.path().join("ek-roots")).unwrap();
    let said = start(&folder, &with_roots(&folder));
    assert!(
        said.contains("make the folder, with your TPM vendors' certificates"),
        "{said}"
    );
}

/// A service's state, and an empty folder for roots.
fn state() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("ek-roots")).unwrap();
    let init = cloud(&folder).arg("init").output().unwrap();
    assert!(init.status.success());
    folder
}

fn with_roots(folder: &TempDir) -> String {
    let roots = folder.path().join("ek-roots");
    format!("listen = \"127.0.0.1:0\"\n[attestation]\nek_roots = {roots:?}")
}

/// What `serve` says until it serves or gives up.
fn start(folder: &TempDir, config: &str) -> String {
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let mut serve = cloud(folder)
        .arg("serve")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(serve.stderr.take().unwrap());
    while lines.read_line(&mut said).unwrap() > 0 {
        if said.contains(" serving ") {
            break;
        }
    }
    // It may have ended by itself.
    let _ = serve.kill();
    serve.wait().unwrap();
    said
}

fn cloud(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-cloud"));
    command.arg("--state").arg(folder.path());
    command
        .arg("--config")
        .arg(folder.path().join("config.toml"));
    command.stdout(Stdio::null());
    command
}

/// A root's certificate.
fn certificate(file: &Path) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=vendor",
        ])
        .args(["-keyout", "/dev/null", "-out"])
        .arg(file)
        .output()
        .unwrap();
    assert!(made.status.success());
}
