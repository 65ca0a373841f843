//! The gateway's keys and the key that they were made under.

use std::time::Duration;

use hsm::{Findings, HsmError, TpmChange};

use super::{KEYS, LATENCY, NODA, ROOT, Seen, Site, advice};
use crate::{
    check::words::{short_name, span},
    report::Check,
};

pub(super) fn noda(seen: &Seen<'_>) -> Option<Check> {
    Some(if seen.findings.exempt_from_lockout? {
        Check::ok(
            NODA,
            "power cuts and wrong passwords cannot lock the gateway's keys",
        )
    } else {
        Check::fail(
            NODA,
            "the gateway's keys count towards lockout: power cuts will lock them",
            "gatewayctl init --force-new makes keys that do not; then enrol again",
        )
    })
}

/// The storage root key against the pin.
pub(super) fn root(seen: &Seen<'_>) -> Option<Check> {
    let Findings {
        about,
        pinned_root,
        found_root,
        ..
    } = seen.findings;
    about.as_ref()?;
    let problem = seen.problem;
    let is_foreign = matches!(problem, Some(HsmError::KeyNotOfThisTpm));
    let check = match (pinned_root, found_root) {
        (None, Some(found)) => {
            let found = short_name(found);
            match problem {
                Some(problem @ HsmError::ParentUnfit(fault)) => Check::fail(
                    ROOT,
                    format!("the storage root key {found} cannot be used"),
                    advice(problem),
                )
                .because(fault.to_string()),
                Some(_) => return None,
                None => Check::ok(
                    ROOT,
                    format!("the storage root key {found} is fit to be used"),
                ),
            }
        }
        (None, None) if problem.is_none() => {
            Check::ok(ROOT, "no storage root key yet: gatewayctl init makes it")
        }
        (None, None) => return None,
        (Some(pinned), Some(found)) if pinned == found => Check::ok(
            ROOT,
            format!(
                "the storage root key is the pinned one, {}",
                short_name(pinned)
            ),
        ),
        (Some(pinned), Some(found)) => Check::fail(
            ROOT,
            format!(
                "the storage root key is {}, pinned is {}",
                short_name(found),
                short_name(pinned)
            ),
            SEE_KEYS,
        ),
        (Some(pinned), None) if is_foreign => Check::fail(
            ROOT,
            format!("the pinned storage root key {} is gone", short_name(pinned)),
            SEE_KEYS,
        ),
        (Some(pinned), None) if problem.is_none() => Check::warn(
            ROOT,
            format!(
                "the storage root key {} had been removed, and is made again",
                short_name(pinned)
            ),
            "find out which program removed it",
        ),
        (Some(_), None) => return None,
    };
    Some(
        check
            .with("pinned_name", pinned_root.clone())
            .with("found_name", found_root.clone()),
    )
}

pub(super) fn keys(seen: &Seen<'_>, site: &Site) -> Option<Check> {
    seen.findings.about.as_ref()?;
    let gateway = site.gateway.as_ref();
    let short = gateway.map_or_else(|| "the gateway's keys".to_owned(), |key| key.short());
    let check = match seen.problem {
        Some(HsmError::KeyNotOfThisTpm) => foreign_keys(seen, site, &short),
        Some(problem @ HsmError::KeyFile { path, source }) => {
            Check::fail(KEYS, "the gateway's keys cannot be read", advice(problem))
                .because(crate::chain(source))
                .at(path.display().to_string())
        }
        Some(problem @ HsmError::KeyDamaged { .. }) => {
            Check::fail(KEYS, "the gateway's keys cannot be used", advice(problem))
                .because(problem.to_string())
        }
        None | Some(HsmError::ParentUnfit(_)) if seen.findings.pinned_root.is_none() => {
            Check::warn(KEYS, "the gateway has no keys yet", "gatewayctl init")
        }
        _ if seen.findings.latency.is_some() => {
            Check::ok(KEYS, format!("this TPM made {short} and uses its keys"))
        }
        _ => return None,
    };
    Some(check.with("gateway", gateway.map(ToString::to_string)))
}

/// The TPM does not know the gateway's keys.
fn foreign_keys(seen: &Seen<'_>, site: &Site, short: &str) -> Check {
    let (what, why) = match seen.findings.change {
        Some(TpmChange::Cleared) => ("no longer knows", "cleared; the chip is the same"),
        Some(TpmChange::Replaced) => ("did not make", "replaced; it is another chip"),
        Some(TpmChange::Unknown) | None => ("did not make", "replaced or cleared"),
    };
    let invite = match &site.enrolled_as {
        Some(name) => format!("gateway-cloud invite NEW-NAME ({name} stays taken)"),
        None => format!("gateway-cloud invite {}", site.name),
    };
    let advice = format!(
        "gatewayctl init --force-new; cloud: {invite}; but if nobody touched the TPM, suspect \
         tampering first"
    );
    Check::fail(KEYS, format!("this TPM {what} {short}"), advice)
        .because(why)
        .keeping(
            "what was delivered stays valid, and recording goes on; what is recorded before init \
             stays here unsent",
        )
}

pub(super) fn latency(seen: &Seen<'_>) -> Option<Check> {
    let latency = seen.findings.latency?;
    let (agree_ms, sign_ms) = (milliseconds(latency.agree), milliseconds(latency.sign));
    let what = format!("a key agreement takes {agree_ms} ms, a signature {sign_ms} ms");
    let advice = "end other programs that use the TPM; then check its bus: speed, wiring, dmesg";
    let check = if HANDSHAKE_TIME_MAX <= latency.agree {
        Check::fail(LATENCY, what, advice).because(format!(
            "a handshake gives up after {}, so nothing is delivered",
            span(HANDSHAKE_TIME_MAX)
        ))
    } else if USUAL_TIME_MAX < latency.agree.max(latency.sign) {
        Check::warn(LATENCY, what, advice).because("sound chips need a second at most")
    } else {
        Check::ok(LATENCY, what)
    };
    Some(
        check
            .with("agree_milliseconds", agree_ms)
            .with("sign_milliseconds", sign_ms),
    )
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One cause, one cure.
const SEE_KEYS: &str = "as for tpm.keys";

/// How long a session waits for the one operation of its handshake (protocol.md 2.3).
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// The slowest chips need 0.25 s for a key agreement, and as much again to salt the session
/// (measured by wolfTPM: Infineon SLB9670, ST33TPHF2X), with loading 0.6 s. Three times that is no
/// chip but trouble, and still a fifth of [`HANDSHAKE_TIME_MAX`].
const USUAL_TIME_MAX: Duration = Duration::from_secs(2);
