//! `gatewayctl csr` against a daemon and a software TPM, judged by OpenSSL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod fixture;

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use channel::{Fingerprint, KeyKind};
use fixture::{Gateway, text};

#[test]
fn the_request_verifies_and_asks_for_the_identity_under_the_gateways_name() {
    let gateway = Gateway::start();
    let short = gateway.init();

    let made = gateway.ctl(&["csr"]);

    assert!(made.status.success(), "{}", text(&made.stderr));
    let request = text(&made.stdout);
    assert!(
        request.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"),
        "{request}"
    );
    assert!(
        request.ends_with("-----END CERTIFICATE REQUEST-----\n"),
        "{request}"
    );
    assert!(verifies(&request));

    // The point is the end of a SubjectPublicKeyInfo (RFC 5480).
    let pem = openssl("req -noout -pubkey", &request);
    let key = openssl("pkey -pubin -outform DER", text(&pem).as_str());
    let identity = Fingerprint::of(KeyKind::GatewayIdentity, &key[key.len() - 65..]);
    assert_eq!(identity.short(), short);
    assert_eq!(
        subject(&request),
        format!("subject=CN = greenhouse-7\nserialNumber = {identity}\n")
    );
    assert!(text(&made.stderr).contains(&identity.to_string()));
}

#[test]
fn a_signature_of_another_request_does_not_verify() {
    let gateway = Gateway::start();
    gateway.init();
    let request = text(
        &gateway
            .ctl(&["csr", "--subject", "aaaaaaaaaaaaaaaa"])
            .stdout,
    );
    let altered = text(
        &gateway
            .ctl(&["csr", "--subject", "aaaaaaaaaaaaaaab"])
            .stdout,
    );
    // The signature of one under the text of the other.
    let end = |text: &str| text.lines().rev().nth(1).unwrap().to_owned();
    let mixed = request.replace(&end(&request), &end(&altered));
    assert_ne!(mixed, request);
    assert!(!verifies(&mixed));
}

#[test]
fn odd_characters_are_in_the_name_as_typed_and_make_no_second_name() {
    let gateway = Gateway::start();
    gateway.init();
    let odd = "Gr\u{fc}nhaus \"7\", O=x/CN=y+z\\";

    let made = gateway.ctl(&["csr", "--subject", odd]);

    let request = text(&made.stdout);
    assert!(verifies(&request));
    let lines = subject(&request);
    assert!(
        lines.starts_with(&format!("subject=CN = {odd}\nserialNumber = gi-")),
        "{lines}"
    );
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn a_subject_that_is_none_is_a_wrong_argument() {
    let gateway = Gateway::start();
    gateway.init();
    let long = "x".repeat(65);
    for (subject, why) in [
        ("", "empty"),
        ("a\nb", "control character"),
        (&long, "64 at most"),
    ] {
        let refused = gateway.ctl(&["csr", "--subject", subject]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.starts_with("error: cannot make a certificate request: "),
            "{said}"
        );
        assert!(said.contains(why) && said.contains("\ndo: "), "{said}");
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn without_keys_it_says_what_to_do() {
    let gateway = Gateway::start();
    let refused = gateway.ctl(&["csr"]);
    assert_eq!(refused.status.code(), Some(75));
    assert!(text(&refused.stderr).contains("gatewayctl init"));
}

/// The names in a request, a line each.
fn subject(request: &str) -> String {
    let options = "req -noout -subject -nameopt sep_multiline,sname,utf8,space_eq";
    let printed = text(&openssl(options, request));
    printed
        .replace("\n    ", "\n")
        .replacen("subject=\n", "subject=", 1)
}

/// Whether OpenSSL finds the request signed by its own key. Its exit code does not tell.
fn verifies(request: &str) -> bool {
    let output = run("req -verify -noout", request);
    text(&output.stderr).contains("verify OK")
}

/// What OpenSSL prints.
fn openssl(line: &str, input: &str) -> Vec<u8> {
    let output = run(line, input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    output.stdout
}

fn run(line: &str, input: &str) -> Output {
    let mut child = Command::new("openssl")
        .args(line.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}
