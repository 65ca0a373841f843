use std::{io, path::PathBuf};

use channel::{Fingerprint, KeyKind};
use hsm::{About, KeyFileError, Latency, ParentFault, PcrBank, TpmChange};

use super::*;
use crate::{check::known, report::Verdict};

#[test]
fn a_healthy_tpm_is_ok_in_everything() {
    let checks = Case::healthy().checks();
    assert!(
        checks.iter().all(|check| check.result == Verdict::Ok),
        "{checks:#?}"
    );
    let ids = checks.iter().map(|check| check.id.as_str());
    assert!(ids.eq(known()), "every question is answered, in order");
    assert_eq!(
        words(&checks, "tpm.keys"),
        "this TPM made uws2-ljnf-uws2-ljnf and uses its keys"
    );
    assert_eq!(
        words(&checks, "tpm.lockout"),
        "0 of 32 failed authorisations; it forgives one every 2 h, and allows the lockout \
         password again 1 d after a wrong one"
    );
}

#[test]
fn a_healthy_report_in_json_is_this() {
    let checks = Case::healthy().checks();
    let check = checks.iter().find(|check| check.id == "tpm.root").unwrap();
    assert_eq!(
        serde_json::to_value(check).unwrap(),
        serde_json::json!({
            "id": "tpm.root",
            "result": "ok",
            "what": "the storage root key is the pinned one, 0a0a-0a0a-0a0a-0a0a",
            "where": null,
            "why": null,
            "kept": null,
            "do": null,
            "values": {"pinned_name": name(0x0A), "found_name": name(0x0A)},
        })
    );
}

#[test]
fn a_problem_ends_in_one_check_that_fails_and_says_what_to_do() {
    for (problem, id, words) in problems() {
        let mut case = Case::healthy();
        case.problem = Some(problem);
        let checks = case.checks();
        let check = checks.iter().find(|check| check.id == id).unwrap();
        assert_eq!(check.result, Verdict::Fail, "{check:?}");
        let said = format!(
            "{} {}",
            check.what,
            check.why.as_deref().unwrap_or_default()
        );
        assert!(said.contains(words), "{said}");
    }
}

/// Whatever goes wrong, and however far the examination got.
#[test]
fn no_question_is_left_out_while_all_else_is_green_and_every_finding_says_what_to_do() {
    let mut cases = vec![Case::healthy(), Case::unprovisioned()];
    for (problem, ..) in problems() {
        for reached in 0..4 {
            let mut case = Case::healthy();
            let findings = &mut case.findings;
            findings.latency = None;
            if reached < 3 {
                findings.exempt_from_lockout = None;
            }
            if reached < 2 {
                findings.found_root = None;
            }
            if reached < 1 {
                findings.about = None;
            }
            case.problem = problems()
                .into_iter()
                .map(|(problem, ..)| problem)
                .find(|other| other.to_string() == problem.to_string());
            cases.push(case);
        }
    }
    for case in cases {
        let checks = case.checks();
        let complete = known().all(|id| checks.iter().any(|check| check.id == id));
        let green = checks.iter().all(|check| check.result == Verdict::Ok);
        assert!(complete || !green, "{:?}: {checks:#?}", case.problem);
        assert!(case.problem.is_none() || !green, "{:?}", case.problem);
        for check in checks {
            let advised = check.r#do.is_some_and(|advice| !advice.is_empty());
            assert_eq!(advised, check.result != Verdict::Ok, "{}", check.id);
            let said = [Some(check.what), check.why, check.kept].map(Option::unwrap_or_default);
            assert!(!said.iter().any(|words| has_bare_hex(words)), "{said:?}");
        }
    }
}

#[test]
fn no_keys_is_no_fault_of_the_tpm() {
    let checks = Case::unprovisioned().checks();
    assert_eq!(not_ok(&checks), ["tpm.keys"]);
    let check = found(&checks, "tpm.keys");
    assert_eq!(check.result, Verdict::Warn);
    assert_eq!(check.r#do.as_deref(), Some("gatewayctl init"));
}

#[test]
fn a_root_key_that_is_unfit_is_told_before_keys_are_made() {
    let mut case = Case::unprovisioned();
    case.findings.found_root = Some(name(0x0B));
    assert_eq!(not_ok(&case.checks()), ["tpm.keys"]);

    case.problem = Some(HsmError::ParentUnfit(ParentFault::Lockable));
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.root", "tpm.keys"]);
    let check = found(&checks, "tpm.root");
    assert_eq!(check.result, Verdict::Fail);
    assert_eq!(
        check.what,
        "the storage root key 0b0b-0b0b-0b0b-0b0b cannot be used"
    );
}

#[test]
fn cleared_replaced_and_unknown_are_told_apart() {
    for (change, words) in [
        (
            Some(TpmChange::Cleared),
            "this TPM no longer knows uws2-ljnf-uws2-ljnf: cleared; the chip is the same",
        ),
        (
            Some(TpmChange::Replaced),
            "this TPM did not make uws2-ljnf-uws2-ljnf: replaced; it is another chip",
        ),
        (
            Some(TpmChange::Unknown),
            "this TPM did not make uws2-ljnf-uws2-ljnf: replaced or cleared",
        ),
        (
            None,
            "this TPM did not make uws2-ljnf-uws2-ljnf: replaced or cleared",
        ),
    ] {
        let checks = Case::changed(change).checks();
        assert_eq!(not_ok(&checks), ["tpm.root", "tpm.keys"]);
        let check = found(&checks, "tpm.keys");
        let why = check.why.clone().unwrap();
        assert_eq!(format!("{}: {why}", check.what), words);
        assert!(check.kept.as_ref().unwrap().contains("recording goes on"));
        let gateway = check.values["gateway"].as_str().unwrap();
        assert!(
            gateway.starts_with("gi-") && gateway.len() == 55,
            "{gateway}"
        );
    }
}

#[test]
fn a_new_ticket_is_advised_under_a_name_that_the_service_can_give() {
    let mut case = Case::changed(Some(TpmChange::Replaced));
    let advice = |case: &Case| found(&case.checks(), "tpm.keys").r#do.clone().unwrap();
    assert!(advice(&case).starts_with(
        "gatewayctl init --force-new; cloud: gateway-cloud invite NEW-NAME (house-7 stays taken)"
    ));
    case.site.enrolled_as = None;
    assert!(advice(&case).contains("gateway-cloud invite greenhouse-7;"));
}

#[test]
fn a_foreign_key_under_the_right_root_blames_the_keys_alone() {
    let mut case = Case::changed(Some(TpmChange::Unknown));
    case.findings.found_root = case.findings.pinned_root.clone();
    assert_eq!(not_ok(&case.checks()), ["tpm.keys"]);
    case.findings.found_root = None;
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.root", "tpm.keys"]);
    assert!(words(&checks, "tpm.root").ends_with("is gone"));
}

#[test]
fn a_root_key_that_was_removed_and_came_back_is_a_warning() {
    let mut case = Case::healthy();
    case.findings.found_root = None;
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.root"]);
    assert_eq!(found(&checks, "tpm.root").result, Verdict::Warn);
}

#[test]
fn lockout_is_a_warning_as_long_as_the_keys_are_exempt() {
    let mut case = Case::healthy();
    about(&mut case).lockout_count = 2;
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.lockout"]);
    assert_eq!(found(&checks, "tpm.lockout").result, Verdict::Warn);

    about(&mut case).lockout_count = 32;
    about(&mut case).locked_out = true;
    let checks = case.checks();
    let check = found(&checks, "tpm.lockout");
    assert_eq!(check.result, Verdict::Warn);
    assert_eq!(
        check.what,
        "locked out after 32 of 32 failed authorisations"
    );
    assert!(check.kept.as_ref().unwrap().contains("go on working"));
    assert!(
        check
            .r#do
            .as_ref()
            .unwrap()
            .starts_with("wait: it forgives one every 2 h")
    );

    case.findings.exempt_from_lockout = Some(false);
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.lockout", "tpm.noda"]);
    assert_eq!(found(&checks, "tpm.lockout").result, Verdict::Fail);
    assert_eq!(found(&checks, "tpm.noda").result, Verdict::Fail);
}

#[test]
fn a_password_matters_most_before_keys_are_made() {
    let mut case = Case::healthy();
    about(&mut case).has_password = true;
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.password"]);
    assert_eq!(found(&checks, "tpm.password").result, Verdict::Warn);
    let mut case = Case::unprovisioned();
    about(&mut case).has_password = true;
    assert_eq!(found(&case.checks(), "tpm.password").result, Verdict::Fail);
}

#[test]
fn every_reset_and_every_altered_answer_is_told_with_since_when() {
    let mut case = Case::healthy();
    case.counts = Some((1, 3));
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.resets", "tpm.tampering"]);
    assert_eq!(
        words(&checks, "tpm.resets"),
        "the TPM restarted once since 09:01"
    );
    let check = found(&checks, "tpm.tampering");
    assert_eq!(check.result, Verdict::Warn);
    assert_eq!(check.what, "TPM answers were altered 3 times since 09:01");
    assert_eq!(
        check.r#do.as_deref(),
        Some("check its wiring; if it is sound, suspect tampering")
    );
}

#[test]
fn a_tpm_that_is_not_as_the_kernel_found_it_is_told() {
    let mut case = Case::healthy();
    case.findings.null_root = Some(name(1));
    case.findings.kernel_null_root = Some(name(1));
    assert!(not_ok(&case.checks()).is_empty());

    case.findings.kernel_null_root = Some(name(2));
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.resets"]);
    assert_eq!(found(&checks, "tpm.resets").result, Verdict::Fail);
}

#[test]
fn keys_that_are_slow_warn_and_keys_too_slow_for_a_handshake_fail() {
    let result = |agree_ms, sign_ms| {
        let mut case = Case::healthy();
        case.findings.latency = Some(Latency {
            agree: Duration::from_millis(agree_ms),
            sign: Duration::from_millis(sign_ms),
        });
        found(&case.checks(), "tpm.latency").result
    };
    // The slowest chip there is.
    assert_eq!(result(600, 500), Verdict::Ok);
    assert_eq!(result(2000, 2000), Verdict::Ok);
    assert_eq!(result(2001, 10), Verdict::Warn);
    assert_eq!(result(10, 2001), Verdict::Warn);
    assert_eq!(result(10_000, 10), Verdict::Fail);
    assert_eq!(result(10, 10_000), Verdict::Warn);
}

#[test]
fn without_a_sha_256_bank_it_says_what_there_is() {
    let mut case = Case::healthy();
    about(&mut case).banks = vec![bank("sha1")];
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.pcrs"]);
    assert!(words(&checks, "tpm.pcrs").ends_with("only sha1 (24 registers)"));
    about(&mut case).banks.clear();
    assert!(words(&case.checks(), "tpm.pcrs").ends_with("only none"));
}

#[test]
fn a_software_tpm_is_never_green() {
    let mut case = Case::healthy();
    case.site.tpm = "swtpm:127.0.0.1:2321".parse().unwrap();
    let checks = case.checks();
    assert_eq!(not_ok(&checks), ["tpm.device"]);
    assert_eq!(found(&checks, "tpm.device").result, Verdict::Warn);
    assert!(words(&checks, "tpm.device").starts_with("swtpm:127.0.0.1:2321 is a program"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_check_does_not_wait_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let turn = Mutex::new(());
    let _held = turn.lock().await;
    let site = Case::healthy().site;
    let hsm = Hsm::start(hsm::HsmConfig {
        tpm: site.tpm.clone(),
        keys: folder.path().to_owned(),
        timeout: Duration::from_secs(300),
    });

    let checks = look(&hsm, site, &turn).await;

    assert_eq!(not_ok(&checks), ["tpm.device"]);
    let check = found(&checks, "tpm.device");
    assert_eq!(check.what, "/dev/tpmrm0 does not answer");
    assert_eq!(check.why.as_deref(), Some("nothing came within 15 s"));
}

#[test]
fn every_command_of_ours_that_is_advised_exists() {
    use clap::Parser;
    let mut checks = Case::changed(Some(TpmChange::Replaced)).checks();
    checks.extend(Case::unprovisioned().checks());
    for (problem, ..) in problems() {
        let mut case = Case::healthy();
        case.findings.exempt_from_lockout = Some(false);
        case.problem = Some(problem);
        checks.extend(case.checks());
    }
    let mut seen = 0;
    for check in checks {
        let advice = check.r#do.unwrap_or_default();
        for part in advice.split("gatewayctl ").skip(1) {
            let line = part.split([';', ',', ')']).next().unwrap_or_default();
            let words = line
                .split_whitespace()
                .take_while(|word| !PROSE.contains(word));
            let line = ["gatewayctl"].into_iter().chain(words).collect::<Vec<_>>();
            assert!(
                crate::ctl::Cli::try_parse_from(&line).is_ok(),
                "{line:?} in {advice}"
            );
            seen += 1;
        }
    }
    assert!(5 < seen, "{seen}");
}

/// What follows a command in a sentence.
const PROSE: [&str; 3] = ["makes", "prints", "and"];

/// Each problem, the check that tells it, and words in it.
fn problems() -> Vec<(HsmError, &'static str, &'static str)> {
    let tpm = || Tpm::Device("/dev/tpmrm0".into());
    let keys = || PathBuf::from("/var/lib/gatewayd/keys/manifest.json");
    let denied = io::ErrorKind::PermissionDenied;
    vec![
        (
            HsmError::NoDevice { tpm: tpm() },
            "tpm.device",
            "does not exist",
        ),
        (
            HsmError::Denied { tpm: tpm() },
            "tpm.device",
            "no permission",
        ),
        (
            HsmError::Held { tpm: tpm() },
            "tpm.device",
            "held by another program",
        ),
        (HsmError::Busy, "tpm.device", "busy"),
        (
            HsmError::Timeout {
                after: Duration::from_secs(9),
            },
            "tpm.device",
            "does not answer nothing came within 9 s",
        ),
        (HsmError::Transport, "tpm.device", "broke"),
        (HsmError::TpmReset, "tpm.device", "reset"),
        (HsmError::Broken, "tpm.device", "self-test"),
        (HsmError::Stopped, "tpm.device", "ended"),
        (HsmError::KeyNotOfThisTpm, "tpm.keys", "did not make"),
        (
            HsmError::KeyFile {
                path: keys(),
                source: KeyFileError::Io(denied.into()),
            },
            "tpm.keys",
            "cannot be read",
        ),
        (
            HsmError::Lockout {
                wait: Duration::from_secs(7200),
            },
            "tpm.lockout",
            "locked out",
        ),
        (HsmError::Tampered, "tpm.tampering", "altered"),
    ]
}

/// What was found in a made-up case.
struct Case {
    findings: Findings,
    problem: Option<HsmError>,
    counts: Option<(u64, u64)>,
    site: Site,
}

impl Case {
    fn healthy() -> Self {
        let findings = Findings {
            about: Some(About {
                vendor: "Infineon SLB9670".into(),
                firmware: "7.85.4555.0".into(),
                lockout_count: 0,
                lockout_max: 32,
                locked_out: false,
                lockout_interval: Duration::from_secs(7200),
                lockout_recovery: Duration::from_secs(86_400),
                has_password: false,
                banks: vec![bank("sha1"), bank("sha256")],
            }),
            pinned_root: Some(name(0x0A)),
            found_root: Some(name(0x0A)),
            null_root: Some(name(0x0B)),
            kernel_null_root: None,
            change: None,
            exempt_from_lockout: Some(true),
            latency: Some(Latency {
                agree: Duration::from_millis(232),
                sign: Duration::from_millis(69),
            }),
        };
        Self {
            findings,
            problem: None,
            counts: Some((0, 0)),
            site: Site {
                tpm: Tpm::Device("/dev/tpmrm0".into()),
                name: "greenhouse-7".into(),
                enrolled_as: Some("house-7".into()),
                gateway: Some(Fingerprint::new(KeyKind::GatewayIdentity, [0xA5; 32])),
                since: "09:01".into(),
            },
        }
    }

    fn unprovisioned() -> Self {
        let mut case = Self::healthy();
        case.findings = Findings {
            about: case.findings.about.take(),
            ..Findings::default()
        };
        case.site.gateway = None;
        case
    }

    fn changed(change: Option<TpmChange>) -> Self {
        let mut case = Self::healthy();
        case.findings.found_root = Some(name(0x0B));
        case.findings.change = change;
        case.findings.exempt_from_lockout = None;
        case.findings.latency = None;
        case.problem = Some(HsmError::KeyNotOfThisTpm);
        case
    }

    fn checks(&self) -> Vec<Check> {
        let seen = Seen {
            findings: &self.findings,
            problem: self.problem.as_ref(),
            counts: self.counts,
        };
        judge(&seen, &self.site, &DeviceFacts::default())
    }
}

fn about(case: &mut Case) -> &mut About {
    case.findings.about.as_mut().unwrap()
}

fn bank(hash: &str) -> PcrBank {
    PcrBank {
        hash: hash.into(),
        registers: 24,
    }
}

fn name(byte: u8) -> String {
    format!("000b{}", format!("{byte:02x}").repeat(32))
}

fn found<'a>(checks: &'a [Check], id: &str) -> &'a Check {
    checks.iter().find(|check| check.id == id).unwrap()
}

fn words(checks: &[Check], id: &str) -> String {
    found(checks, id).what.clone()
}

fn not_ok(checks: &[Check]) -> Vec<&str> {
    let wrong = checks.iter().filter(|check| check.result != Verdict::Ok);
    wrong.map(|check| check.id.as_str()).collect()
}

/// Eight hexadecimal digits in a row, or `0x`.
fn has_bare_hex(words: &str) -> bool {
    words.contains("0x")
        || words
            .split(|letter: char| !letter.is_ascii_hexdigit())
            .any(|run| 8 <= run.len())
}
