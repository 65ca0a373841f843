//! `docs/testing-with-swtpm.md` is a program: what it shows is written out and run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::{collections::BTreeMap, fs, net::TcpListener, path::Path, process::Command};

use demo::process::ours;
use tempfile::TempDir;

#[test]
fn every_block_of_the_page_has_a_name_and_is_run() {
    let names: Vec<_> = blocks().into_keys().collect();
    assert_eq!(names, sorted(&[CRATE, DAEMON].concat()));
    let fences = PAGE.lines().filter(|line| line.starts_with("```")).count();
    assert_eq!(fences, 2 * names.len());
}

#[test]
fn a_user_s_crate_passes_its_tests_in_the_user_s_ci() {
    let folder = written(CRATE);
    let manifest = folder.path().join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    assert_eq!(text.matches(GIT).count(), 2);
    let here = format!("path = \"{}/hsm\"", root().display());
    fs::write(&manifest, text.replace(GIT, &here)).unwrap();
    fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    // Takes the user's crate into the file, and out what it does not need.
    let mut fit = Command::new(env!("CARGO"));
    fit.args(["update", "--workspace", "--offline"]);
    run(fit.current_dir(&folder));

    let printed = run(script("ci.sh", &folder)
        .env("CARGO_NET_OFFLINE", "true")
        // Our own is locked while somebody else builds, and these stay from run to run.
        .env("CARGO_TARGET_DIR", TARGET)
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .env("CARGO_INCREMENTAL", "0"));

    let shown = PAGE.matches("#[tokio::test]").count();
    let passed = printed
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "))
        .map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum::<usize>();
    assert_eq!(passed, shown, "{printed}");
    assert_eq!(passed, 5);
}

#[test]
fn the_daemon_makes_its_identity_in_a_software_tpm() {
    let folder = written(DAEMON);
    let (port, above) = adjacent_ports();
    for name in DAEMON {
        let path = folder.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("2321", &port).replace("2322", &above);
        fs::write(path, text).unwrap();
    }
    let programs = ours("gatewayd").unwrap();
    let programs = Path::new(programs.as_std().get_program()).parent().unwrap();
    assert!(programs.join("gatewayctl").is_file(), "not built");
    let path = std::env::var("PATH").unwrap();

    let printed =
        run(script("daemon.sh", &folder).env("PATH", format!("{}:{path}", programs.display())));

    assert!(printed.contains("tpm    ok"), "{printed}");
    assert!(printed.contains("fixedtpm|fixedparent"), "{printed}");
}

/// The fenced blocks that have a file's name above them.
fn blocks() -> BTreeMap<&'static str, String> {
    let mut blocks = BTreeMap::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix('`').and_then(|it| it.strip_suffix("`:"));
        if let Some(name) = name {
            assert_eq!(lines.next(), Some(""), "{name}");
            assert!(lines.next().unwrap().starts_with("```"), "{name}");
            let content: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            let known = blocks.insert(name, content.join("\n") + "\n");
            assert_eq!(known, None, "{name} is there twice");
        }
    }
    blocks
}

fn written(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let blocks = blocks();
    for name in names {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &blocks[name]).unwrap();
    }
    folder
}

fn script(name: &str, folder: &TempDir) -> Command {
    let mut command = Command::new("timeout");
    command
        .args([SCRIPT_TIME_MAX, "sh", name])
        .current_dir(folder);
    command
}

/// Runs to the end and returns what was printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{printed}\n{said}");
    printed
}

/// Two ports that were free a moment ago, the second one above the first; below the range from which
/// the kernel gives ports to connections.
fn adjacent_ports() -> (String, String) {
    let begin = std::process::id() as usize % 10_000;
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut pairs = (12_000..32_000).step_by(2).cycle().skip(begin);
    let port: u16 = pairs
        .find(|port| is_free(*port) && is_free(port + 1))
        .unwrap();
    (port.to_string(), (port + 1).to_string())
}

fn sorted(names: &[&'static str]) -> Vec<&'static str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

const PAGE: &str = include_str!("../../docs/testing-with-swtpm.md");

const CRATE: &[&str] = &["Cargo.toml", "src/lib.rs", "tests/identity.rs", "ci.sh"];
const DAEMON: &[&str] = &["gatewayd.toml", "daemon.sh"];

/// Stands for wherever users get `hsm` from.
const GIT: &str = r#"git = "https://git.example/gatewayd", tag = "v0.1.0""#;

const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/testing-page");

/// In seconds. From nothing the user's crate takes a minute or two.
const SCRIPT_TIME_MAX: &str = "400";
