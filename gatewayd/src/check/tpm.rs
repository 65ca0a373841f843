//! The area `tpm`: what an examination of the TPM means for the gateway.

mod about;
mod keys;

use std::time::Duration;

use hsm::{Examination, Findings, Hsm, HsmError, Tpm};
use tokio::sync::Mutex;

use super::{
    device::DeviceFacts,
    words::{span, times},
};
use crate::{report::Check, tasks};

/// Everything that is looked at.
pub(super) const IDS: &[&str] = &[
    DEVICE, FIRMWARE, LOCKOUT, NODA, ROOT, KEYS, PASSWORD, RESETS, TAMPERING, LATENCY, PCRS,
];

/// What the gateway itself knows.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The configured TPM.
    pub(crate) tpm: Tpm,
    /// The gateway's name in the configuration.
    pub(crate) name: String,
    /// What a service calls it; `None` if none has enrolled it.
    pub(crate) enrolled_as: Option<String>,
    /// Its fingerprint, whole; `None` before `gatewayctl init`.
    pub(crate) gateway: Option<channel::Fingerprint>,
    /// When the daemon started, as people read it.
    pub(crate) since: String,
}

/// Looks at the TPM when `turn` is ours, all within [`LOOK_TIME_MAX`], and says what that means.
pub(crate) async fn look(hsm: &Hsm, site: Site, turn: &Mutex<()>) -> Vec<Check> {
    let tpm = site.tpm.clone();
    let asked = tasks::blocking("device", move || DeviceFacts::look(&tpm));
    let looked = tokio::time::timeout(LOOK_TIME_MAX, async {
        let _alone = turn.lock().await;
        tokio::join!(asked, hsm.examination())
    });
    match looked.await {
        Ok((device, examination)) => {
            let device = device.unwrap_or_default();
            judge(&Seen::of(&examination), &site, &device)
        }
        Err(_) => {
            let late = HsmError::Timeout {
                after: LOOK_TIME_MAX,
            };
            let seen = Seen {
                findings: &Findings::default(),
                problem: Some(&late),
                counts: None,
            };
            judge(&seen, &site, &DeviceFacts::default())
        }
    }
}

/// What was seen of the TPM.
struct Seen<'a> {
    findings: &'a Findings,
    /// What ended the examination early.
    problem: Option<&'a HsmError>,
    /// Resets and altered answers since the daemon started; `None` if unknown.
    counts: Option<(u64, u64)>,
}

impl<'a> Seen<'a> {
    fn of(examination: &'a Examination) -> Self {
        let health = &examination.health;
        Self {
            findings: &examination.findings,
            problem: health.problem.as_ref(),
            counts: Some((health.resets, health.tampered)),
        }
    }
}

/// Decides. What could not be looked at is left out, and then something else is not ok.
fn judge(seen: &Seen<'_>, site: &Site, device: &DeviceFacts) -> Vec<Check> {
    let about = seen.findings.about.as_ref();
    let provisioned = seen.findings.pinned_root.is_some();
    let checks = [
        Some(self::device(seen, site, device)),
        about.map(about::firmware),
        about.map(|about| about::lockout(about, seen)),
        keys::noda(seen),
        keys::root(seen),
        keys::keys(seen, site),
        about.map(|about| about::password(about, seen.problem, provisioned)),
        seen.counts
            .map(|(resets, _)| self::resets(resets, seen, site)),
        seen.counts
            .map(|(_, altered)| tampering(altered, seen.problem, site)),
        keys::latency(seen),
        about.map(about::pcrs),
    ];
    checks.into_iter().flatten().collect()
}

fn device(seen: &Seen<'_>, site: &Site, device: &DeviceFacts) -> Check {
    let tpm = &site.tpm;
    let Some(problem) = seen.problem else {
        return present(seen, tpm);
    };
    if seen.findings.about.is_some() && has_its_own_check(problem) {
        return present(seen, tpm);
    }
    if let Tpm::Device(path) = tpm {
        if matches!(problem, HsmError::NoDevice { .. }) {
            return device.absent(DEVICE, path);
        }
        if matches!(problem, HsmError::Denied { .. }) {
            return device.denied(DEVICE, path);
        }
    }
    if matches!(problem, HsmError::Held { .. }) {
        let advice = format!(
            "fuser -v {tpm} names it: end it, or set tpm.device to /dev/tpmrm0, which many share"
        );
        return Check::fail(DEVICE, format!("{tpm} is held by another program"), advice);
    }
    if let HsmError::Timeout { after } = problem {
        return Check::fail(DEVICE, format!("{tpm} does not answer"), advice(problem))
            .because(format!("nothing came within {}", span(*after)));
    }
    Check::fail(DEVICE, format!("{tpm} cannot be used"), advice(problem))
        .because(crate::chain(problem))
}

/// Whether a problem is told by another check than that of the device.
fn has_its_own_check(problem: &HsmError) -> bool {
    matches!(
        problem,
        HsmError::NotProvisioned { .. }
            | HsmError::KeyNotOfThisTpm
            | HsmError::KeyFile { .. }
            | HsmError::KeyDamaged { .. }
            | HsmError::ParentUnfit(_)
            | HsmError::OwnerPassword(_)
            | HsmError::Lockout { .. }
            | HsmError::Tampered
    )
}

fn present(seen: &Seen<'_>, tpm: &Tpm) -> Check {
    match tpm {
        Tpm::Device(_) => Check::ok(DEVICE, format!("{tpm} answers")),
        Tpm::Swtpm { .. } => Check::warn(
            DEVICE,
            format!("{tpm} is a program"),
            "for tests only: in the field set tpm.device = \"/dev/tpmrm0\" in gatewayd.toml",
        )
        .because("its keys are files, which can be copied"),
    }
    .with("answers", seen.findings.about.is_some())
}

fn resets(count: u64, seen: &Seen<'_>, site: &Site) -> Check {
    let since = &site.since;
    let check = match count {
        _ if is_not_the_kernel_s(seen.findings) => Check::fail(
            RESETS,
            "the TPM is not as Linux found it at boot",
            "reboot; if it comes back, check the TPM's reset line, and suspect tampering",
        )
        .because("it was restarted behind the kernel's back, or another one answers"),
        0 => Check::ok(RESETS, format!("none since {since}")),
        count => Check::warn(
            RESETS,
            format!("the TPM restarted {} since {since}", times(count)),
            "check the TPM's power and its reset line",
        ),
    };
    check.with("count", count)
}

/// The null root key is another one after each restart.
fn is_not_the_kernel_s(findings: &Findings) -> bool {
    match (&findings.null_root, &findings.kernel_null_root) {
        (Some(now), Some(at_boot)) => now != at_boot,
        _ => false,
    }
}

fn tampering(count: u64, problem: Option<&HsmError>, site: &Site) -> Check {
    let since = &site.since;
    let advice = "check its wiring; if it is sound, suspect tampering";
    let told = times(count.max(1));
    let what = format!("TPM answers were altered {told} since {since}");
    let check = if matches!(problem, Some(HsmError::Tampered)) {
        Check::fail(TAMPERING, what, advice).because("this time too")
    } else if 0 < count {
        Check::warn(TAMPERING, what, advice)
    } else {
        Check::ok(TAMPERING, format!("no altered answers since {since}"))
    };
    check.with("count", count)
}

/// What to do about a problem that has no words of its own here.
fn advice(problem: &HsmError) -> &'static str {
    if matches!(problem, HsmError::Refused { .. } | HsmError::Stopped) {
        return "systemctl restart gatewayd; if it stays, report what gatewayctl check tpm --json \
                prints";
    }
    problem.advice()
}

const DEVICE: &str = "tpm.device";
const FIRMWARE: &str = "tpm.firmware";
const LOCKOUT: &str = "tpm.lockout";
const NODA: &str = "tpm.noda";
const ROOT: &str = "tpm.root";
const KEYS: &str = "tpm.keys";
const PASSWORD: &str = "tpm.password";
const RESETS: &str = "tpm.resets";
const TAMPERING: &str = "tpm.tampering";
const LATENCY: &str = "tpm.latency";
const PCRS: &str = "tpm.pcrs";

/// A person waits for it. An examination takes the slowest chips under 2 s, and may have to wait for
/// an RSA endorsement key that an enrolment makes, which is 7.5 s. The examination's own bound is
/// three times `tpm.timeout`, up to a quarter of an hour, which is made for a machine.
const LOOK_TIME_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests;
