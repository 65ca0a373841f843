//! `gatewayctl check`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{
    client::{Client, Failure},
    write_json,
};
use crate::report::{Check, CheckReport, Verdict};

/// Asks the daemon to look, prints what it found, and returns 0 if nothing fails, 1 otherwise.
pub(super) async fn run(
    client: &Client,
    what: &[String],
    all: bool,
    json: bool,
) -> Result<ExitCode, Failure> {
    let only = what.iter().map(|what| escaped(what)).collect::<Vec<_>>();
    let path = format!("/v1/check?only={}", only.join(","));
    let report: CheckReport = client.get(&path).await?;
    let mut out = io::stdout().lock();
    if json {
        write_json(&mut out, &report)?;
    } else {
        screen(&mut out, &report.checks, all)?;
    }
    Ok(ExitCode::from(u8::from(
        0 < count(&report.checks, Verdict::Fail),
    )))
}

/// What is wrong, a paragraph each, and a line that counts.
fn screen(out: &mut impl Write, checks: &[Check], all: bool) -> io::Result<()> {
    let shown = checks
        .iter()
        .filter(|check| all || check.result != Verdict::Ok)
        .collect::<Vec<_>>();
    let longest = shown.iter().map(|check| check.id.len()).max();
    let width = longest.unwrap_or_default().max(ID_WIDTH_MIN);
    for check in shown {
        let word = match check.result {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        writeln!(out, "{word:<4}  {:<width$}  {}", check.id, sentence(check))?;
        for (name, words) in [("kept", &check.kept), ("do", &check.r#do)] {
            if let Some(words) = words {
                writeln!(out, "      {name}: {words}")?;
            }
        }
    }
    let ok = count(checks, Verdict::Ok);
    let hint = if all || ok == 0 {
        ""
    } else {
        " (--all shows them)"
    };
    writeln!(
        out,
        "{}, {}, {ok} ok{hint}",
        counted(count(checks, Verdict::Fail), "error"),
        counted(count(checks, Verdict::Warn), "warning"),
    )
}

fn sentence(check: &Check) -> String {
    let mut words = check.what.clone();
    if let Some(why) = &check.why {
        words.push_str(": ");
        words.push_str(why);
    }
    match &check.r#where {
        Some(place) if !words.contains(place) => format!("{words} ({place})"),
        Some(_) | None => words,
    }
}

fn count(checks: &[Check], result: Verdict) -> usize {
    checks.iter().filter(|check| check.result == result).count()
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// A word as it may stand in a query (RFC 3986, 2.3).
fn escaped(word: &str) -> String {
    let mut escaped = String::new();
    for byte in word.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// So that the usual ids end in one column.
const ID_WIDTH_MIN: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_is_the_one_of_the_manual() {
        let mut checks = vec![
            Check::fail(
                "tpm.device",
                "/dev/tpmrm0 does not exist",
                "add \"dtoverlay=tpm-slb9670\" to /boot/firmware/config.txt and reboot",
            )
            .because("the kernel found no TPM"),
            Check::fail(
                "bus.rs485",
                "/dev/ttyUSB0 does not exist",
                "one port is free: port = \"/dev/serial/by-id/usb-FTDI\"",
            )
            .at("gatewayd.toml:25"),
            Check::warn(
                "clock.sync",
                "not set since boot",
                "systemctl enable --now systemd-timesyncd",
            )
            .because("readings are kept, and dated once it is"),
        ];
        checks.extend((0..13).map(|_| Check::ok("spool.disk", "room for 40 d")));
        assert_eq!(printed(&checks, false), SCREEN);
    }

    #[test]
    fn what_is_kept_is_said_before_what_to_do() {
        let check = Check::fail("tpm.keys", "this TPM did not make x", "y")
            .because("replaced")
            .keeping("z");
        assert_eq!(
            printed(&[check], false),
            "FAIL  tpm.keys     this TPM did not make x: replaced\n      kept: z\n      do: y\n\
             1 error, 0 warnings, 0 ok\n"
        );
    }

    #[test]
    fn all_shows_what_is_well_and_longer_names_keep_the_column() {
        let checks = [
            Check::ok("tpm.device", "/dev/tpmrm0 answers"),
            Check::warn("tpm.tampering", "altered once", "look"),
        ];
        assert_eq!(
            printed(&checks, true),
            "ok    tpm.device     /dev/tpmrm0 answers\nwarn  tpm.tampering  altered once\n      \
             do: look\n0 errors, 1 warning, 1 ok\n"
        );
    }

    #[test]
    fn a_place_that_is_in_the_words_is_not_said_twice() {
        let check = Check::fail("a.b", "/x is no device", "c").at("/x");
        assert_eq!(sentence(&check), "/x is no device");
    }

    #[test]
    fn whatever_is_typed_reaches_the_daemon_as_one_word() {
        assert_eq!(escaped("tpm.keys"), "tpm.keys");
        assert_eq!(escaped("a b&c=ü,"), "a%20b%26c%3D%C3%BC%2C");
    }

    fn printed(checks: &[Check], all: bool) -> String {
        let mut out = Vec::new();
        screen(&mut out, checks, all).unwrap();
        String::from_utf8(out).unwrap()
    }

    const SCREEN: &str = "\
FAIL  tpm.device   /dev/tpmrm0 does not exist: the kernel found no TPM
      do: add \"dtoverlay=tpm-slb9670\" to /boot/firmware/config.txt and reboot
FAIL  bus.rs485    /dev/ttyUSB0 does not exist (gatewayd.toml:25)
      do: one port is free: port = \"/dev/serial/by-id/usb-FTDI\"
warn  clock.sync   not set since boot: readings are kept, and dated once it is
      do: systemctl enable --now systemd-timesyncd
2 errors, 1 warning, 13 ok (--all shows them)
";
}
