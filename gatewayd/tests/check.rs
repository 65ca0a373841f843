//! `gatewayctl check tpm` against a daemon and a software TPM to which things happen.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod fixture;

use std::{
    collections::BTreeMap,
    process::{Command, Output},
    time::{Duration, Instant},
};

use fixture::{Gateway, text};
use hsm::swtpm::Swtpm;
use serde_json::Value;

#[test]
fn a_healthy_gateway_passes_with_a_warning_that_its_tpm_is_software() {
    let gateway = Gateway::start();
    let short = gateway.init();

    let short_form = gateway.ctl(&["check", "tpm"]);
    let output = gateway.ctl(&["check", "tpm", "--all"]);

    let screen = passed(&output);
    assert_eq!(ids_of(&screen, "warn"), ["tpm.device"]);
    assert_eq!(ids_of(&screen, "ok").len(), 10);
    assert!(screen.contains(&format!("this TPM made {short} and uses its keys")));
    assert!(
        screen.ends_with("\n0 errors, 1 warning, 10 ok\n"),
        "{screen}"
    );
    let lines = passed(&short_form);
    assert!(lines.ends_with("\n0 errors, 1 warning, 10 ok (--all shows them)\n"));
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn json_has_every_check_with_whole_names_and_numbers() {
    let gateway = Gateway::start();
    gateway.init();

    let output = gateway.ctl(&["check", "tpm", "--json"]);

    let report: Value = serde_json::from_str(&passed(&output)).unwrap();
    assert_eq!(report["schema"], "check/1");
    let checks = by_id(&report);
    assert_eq!(checks.len(), 11);
    let root = &checks["tpm.root"]["values"];
    assert_eq!(root["pinned_name"], root["found_name"]);
    assert_eq!(root["pinned_name"].as_str().unwrap().len(), 68);
    assert_eq!(checks["tpm.lockout"]["values"]["max"], 3);
    assert!(checks["tpm.latency"]["values"]["sign_milliseconds"].is_u64());
    for check in checks.values() {
        for key in ["id", "result", "what", "where", "why", "do"] {
            assert!(check.get(key).is_some(), "{key}: {check}");
        }
    }
}

#[test]
fn a_gateway_without_keys_is_told_to_make_them() {
    let gateway = Gateway::start();
    let screen = passed(&gateway.ctl(&["check", "tpm.latency"]));
    assert_eq!(ids_of(&screen, "warn"), ["tpm.device", "tpm.keys"]);
    assert!(screen.contains("\n      do: gatewayctl init\n"), "{screen}");
}

#[test]
fn a_root_key_that_is_no_use_is_told_before_init() {
    let gateway = Gateway::start();
    tool(
        &gateway.tpm,
        "tpm2_createprimary -C o -G rsa2048 -c srk.ctx",
    );
    tool(&gateway.tpm, "tpm2_evictcontrol -C o -c srk.ctx 0x81000001");
    tool(&gateway.tpm, "tpm2_flushcontext -t");

    let screen = failed(&gateway.ctl(&["check", "tpm"]));

    assert_eq!(ids_of(&screen, "FAIL"), ["tpm.root"]);
    assert!(screen.contains("not an ECC P-256 key"), "{screen}");
    assert!(screen.contains("do: if nothing else on this machine uses it"));
}

#[test]
fn without_a_tpm_nothing_else_is_called_well() {
    let mut gateway = Gateway::start();
    gateway.init();
    gateway.device = Some("/dev/no-such-tpm".into());
    gateway.restart();

    let screen = failed(&gateway.ctl(&["check", "tpm.keys"]));

    assert_eq!(ids_of(&screen, "FAIL"), ["tpm.device"]);
    assert!(screen.contains("/dev/no-such-tpm does not exist"));
    assert!(
        screen.ends_with("\n1 error, 0 warnings, 0 ok\n"),
        "{screen}"
    );
}

#[test]
fn a_replaced_tpm_is_told_from_a_cleared_one() {
    let mut gateway = Gateway::start();
    let short = gateway.init();
    gateway.tpm = Swtpm::start().unwrap();
    gateway.restart();

    let screen = failed(&gateway.ctl(&["check", "tpm"]));

    let line = format!("FAIL  tpm.keys     this TPM did not make {short}: replaced; it is another");
    assert!(screen.contains(&line), "{screen}");
    assert!(screen.contains("      kept: "), "{screen}");
    assert!(screen.contains(
        "      do: gatewayctl init --force-new; cloud: gateway-cloud invite greenhouse-7;"
    ));

    // What it says helps.
    assert!(gateway.ctl(&["init", "--force-new"]).status.success());
    passed(&gateway.ctl(&["check", "tpm"]));
}

#[test]
fn a_cleared_tpm_is_told_from_a_replaced_one() {
    let mut gateway = Gateway::start();
    let short = gateway.init();
    tool(&gateway.tpm, "tpm2_clear -c p");
    gateway.restart();

    let screen = failed(&gateway.ctl(&["check", "tpm"]));

    assert_eq!(ids_of(&screen, "FAIL"), ["tpm.root", "tpm.keys"]);
    let line = format!("this TPM no longer knows {short}: cleared; the chip is the same");
    assert!(screen.contains(&line), "{screen}");
}

#[test]
fn a_tpm_in_lockout_warns_and_the_keys_work() {
    let gateway = Gateway::start();
    gateway.init();
    // Another program's key, without exemption, used with wrong passwords.
    let tpm = &gateway.tpm;
    tool(tpm, "tpm2_createprimary -C o -G ecc -p right -c other.ctx");
    tool(tpm, "tpm2_flushcontext -t");
    for _ in 0..3 {
        let guess = run(tpm, "tpm2_create -C other.ctx -P wrong -u a -r b");
        assert!(!guess.status.success());
        tool(tpm, "tpm2_flushcontext -t");
    }

    let screen = passed(&gateway.ctl(&["check", "tpm", "--all"]));

    assert_eq!(ids_of(&screen, "warn"), ["tpm.device", "tpm.lockout"]);
    assert!(screen.contains("locked out after 3 of 3 failed authorisations"));
    assert!(
        screen.contains("do: wait: it forgives one every 16 min 40 s"),
        "{screen}"
    );
    assert!(ids_of(&screen, "ok").contains(&"tpm.keys"));
}

#[test]
fn altered_answers_are_counted_for_as_long_as_the_daemon_runs() {
    let gateway = Gateway::start();
    gateway.init();
    // TPM2_Sign; its answer ends in the session's authentication.
    let mut left = 1;
    gateway.tpm.bus().alter_answers(move |code, answer| {
        if code == 0x0000_015D && 0 < left {
            left -= 1;
            *answer.last_mut().unwrap() ^= 1;
        }
    });

    let first = failed(&gateway.ctl(&["check", "tpm.tampering"]));
    assert!(first.contains("FAIL  tpm.tampering  TPM answers were altered once since "));
    let later = passed(&gateway.ctl(&["check", "tpm.tampering"]));
    assert!(later.contains("warn  tpm.tampering  TPM answers were altered once since "));
    assert!(later.contains("do: check its wiring; if it is sound, suspect tampering"));
}

#[test]
fn a_tpm_that_hangs_does_not_hold_up_who_asks() {
    let gateway = Gateway::start();
    gateway.init();
    gateway.tpm.bus().stop_answering();
    let started = Instant::now();

    let screen = failed(&gateway.ctl(&["check", "tpm"]));

    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(ids_of(&screen, "FAIL"), ["tpm.device"]);
    assert!(
        screen.contains("does not answer: nothing came within 15 s"),
        "{screen}"
    );
    gateway.tpm.bus().answer_again();
}

#[test]
fn an_unknown_check_is_a_wrong_argument_that_names_the_known() {
    let gateway = Gateway::start();
    let output = gateway.ctl(&["check", "tmp & x"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("error: cannot check: there is no check \"tmp & x\""),
        "{said}"
    );
    assert!(said.contains("tpm.device tpm.firmware"), "{said}");
    assert!(said.ends_with("\ndo: gatewayctl check tpm\n"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn without_a_daemon_it_ends_with_69() {
    let output = Command::new(env!("CARGO_BIN_EXE_gatewayctl"))
        .args(["--socket", "/nonexistent/control.sock", "check"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
}

/// The screen of a check that found no error.
fn passed(output: &Output) -> String {
    let screen = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{screen}{}",
        text(&output.stderr)
    );
    screen
}

/// The screen of a check that found one.
fn failed(output: &Output) -> String {
    let screen = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{screen}{}",
        text(&output.stderr)
    );
    screen
}

/// Ids of the lines that begin with `word`.
fn ids_of<'a>(screen: &'a str, word: &str) -> Vec<&'a str> {
    let lines = screen.lines().map(str::split_whitespace);
    lines
        .filter_map(|mut words| (words.next() == Some(word)).then(|| words.next().unwrap()))
        .collect()
}

fn by_id(report: &Value) -> BTreeMap<String, Value> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .map(|check| (check["id"].as_str().unwrap().to_owned(), check.clone()))
        .collect()
}

/// Runs one of tpm2-tools on the TPM, whose bus is quiet.
fn tool(tpm: &Swtpm, line: &str) {
    let output = run(tpm, line);
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
}

fn run(tpm: &Swtpm, line: &str) -> Output {
    // The daemon ends its burst of work, with session and key, after 200 ms.
    tpm.wait_at_rest(Duration::from_secs(10)).unwrap();
    let program = |line: &str| {
        let mut words = line.split_whitespace();
        Command::new(words.next().unwrap())
            .args(words)
            .current_dir(tpm.folder())
            .env("TPM2TOOLS_TCTI", tpm.tcti())
            .output()
            .unwrap()
    };
    let output = program(line);
    // Without a resource manager the tools leave in the TPM what they saved.
    program("tpm2_flushcontext -t");
    output
}
