//! What the TPM says about itself.

use hsm::{About, HsmError};

use super::{FIRMWARE, LOCKOUT, PASSWORD, PCRS, Seen};
use crate::{check::words::span, report::Check};

pub(super) fn firmware(about: &About) -> Check {
    let words = format!("{}, firmware {}", about.vendor, about.firmware);
    Check::ok(FIRMWARE, words)
        .with("vendor", about.vendor.as_str())
        .with("firmware", about.firmware.as_str())
}

/// A TPM in lockout still serves keys that are exempt, and the gateway's are.
pub(super) fn lockout(about: &About, seen: &Seen<'_>) -> Check {
    let (count, max) = (about.lockout_count, about.lockout_max);
    let forgives = if about.lockout_interval.is_zero() {
        "it forgives none by itself".to_owned()
    } else {
        format!("it forgives one every {}", span(about.lockout_interval))
    };
    let find = "find the program that gives wrong passwords; the gateway gives none";
    let check = if matches!(seen.problem, Some(HsmError::Lockout { .. }))
        || (about.locked_out && seen.findings.exempt_from_lockout == Some(false))
    {
        let what = format!("locked out after {count} of {max} failed authorisations");
        Check::fail(LOCKOUT, what, format!("wait: {forgives}; {find}"))
            .because("what the gateway needs is not exempt")
    } else if about.locked_out {
        let what = format!("locked out after {count} of {max} failed authorisations");
        Check::warn(LOCKOUT, what, format!("wait: {forgives}; {find}"))
            .keeping("the gateway's keys are exempt from lockout and go on working")
    } else if 0 < count {
        let what = format!("{count} of {max} failed authorisations; {forgives}");
        Check::warn(LOCKOUT, what, find)
            .keeping("the gateway's keys are exempt from lockout and go on working")
    } else {
        let recovery = span(about.lockout_recovery);
        let what = format!(
            "0 of {max} failed authorisations; {forgives}, and allows the lockout password again \
             {recovery} after a wrong one"
        );
        Check::ok(LOCKOUT, what)
    };
    check
        .with("count", count)
        .with("max", max)
        .with("locked_out", about.locked_out)
        .with("interval_seconds", about.lockout_interval.as_secs())
        .with("recovery_seconds", about.lockout_recovery.as_secs())
}

pub(super) fn password(about: &About, problem: Option<&HsmError>, provisioned: bool) -> Check {
    let what = "somebody set the owner's or the endorsement password of the TPM";
    let advice = "tpm2_changeauth -c owner -p OLD; tpm2_changeauth -c endorsement -p OLD";
    let check = if matches!(problem, Some(HsmError::OwnerPassword(_)))
        || (about.has_password && !provisioned)
    {
        Check::fail(PASSWORD, what, advice).because("keys cannot be made")
    } else if about.has_password {
        Check::warn(PASSWORD, what, advice)
            .because("the keys that are there work, and cannot be enrolled or made again")
    } else {
        Check::ok(PASSWORD, "neither owner nor endorsement has a password")
    };
    check.with("is_set", about.has_password)
}

pub(super) fn pcrs(about: &About) -> Check {
    let banks = about.banks.iter();
    let words = banks.map(|bank| format!("{} ({} registers)", bank.hash, bank.registers));
    let words = words.collect::<Vec<_>>().join(", ");
    let hashes = about.banks.iter().map(|bank| bank.hash.clone());
    let check = if about.banks.iter().any(|bank| bank.hash == QUOTED_BANK) {
        Check::ok(PCRS, format!("measurements in {words}"))
    } else {
        let found = if words.is_empty() { "none" } else { &words };
        Check::warn(
            PCRS,
            format!("no SHA-256 bank of measurements, only {found}"),
            "tpm2_pcrallocate sha256:all, or the firmware's setup; then reboot",
        )
        .because("what was booted cannot be attested")
    };
    check.with("banks", hashes.collect::<Vec<_>>())
}

/// The bank that quotes are taken from (protocol.md 5).
const QUOTED_BANK: &str = "sha256";
