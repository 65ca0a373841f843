//! What must not be written: words that act on the pure floor, `unsafe` anywhere, spawns outside
//! `tasks.rs`, unsalted TPM sessions.
//!
//! A search for words, crude and enough: comments, what follows `#[cfg(test)]`, and the files of
//! test modules are left out.

use std::{fs, path::Path};

use anyhow::Context;

use crate::floors;

/// Words by which a file, a socket, a thread, a process or a clock would come in.
const ACTING: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime",
    "tokio",
    "SysRng",
    "getrandom",
];

/// Modules that are there for tests only, and the folder of the parts of one.
const TEST_FILES: &[&str] = &["/tests.rs", "/tests/", "/fixture.rs"];

/// Ways to start a task.
const SPAWNS: &[&str] = &["tokio::spawn", "task::spawn", "JoinSet", "spawn_local"];

/// Checks every Rust file of the house.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut breaches = Vec::new();
    for name in floors::crates() {
        let pure = floors::pure_crates().any(|other| other == name);
        let folder = root.join(name).join("src");
        visit(&folder, &mut |path, text| {
            let shown = path
                .strip_prefix(root)
                .unwrap_or(path)
                .display()
                .to_string();
            breaches.extend(read(&shown, text, pure));
        })?;
    }
    Ok(breaches)
}

/// Breaches in one file; `shown` is its path from the root.
fn read(shown: &str, text: &str, pure: bool) -> Vec<String> {
    if TEST_FILES.iter().any(|name| shown.contains(name)) {
        return Vec::new();
    }
    let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
    let tasks = shown.ends_with("/src/tasks.rs");
    let mut breaches = Vec::new();
    for (line, code) in (1..).zip(shipped.lines()) {
        let code = code.split("//").next().unwrap_or_default();
        let mut breach = |word: &str, why: &str| {
            if code.contains(word) {
                breaches.push(format!("{shown}:{line}: {word}: {why}"));
            }
        };
        breach("unsafe ", "unsafe is nowhere");
        breach("execute_with_nullauth_session", "its session is unsalted");
        for word in ACTING.iter().filter(|_| pure) {
            breach(word, "a pure crate opens nothing and asks no clock");
        }
        for word in SPAWNS.iter().filter(|_| !tasks) {
            breach(word, "tasks start in tasks.rs only");
        }
    }
    breaches
}

/// Calls `each` with every Rust file below `folder`.
pub(crate) fn visit(folder: &Path, each: &mut impl FnMut(&Path, &str)) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, each)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&path, &fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_on_the_pure_floor_is_a_breach() {
        let text = "fn f() {\n    let now = Instant::now();\n}\n";
        assert_eq!(
            read("wire/src/lib.rs", text, true),
            ["wire/src/lib.rs:2: Instant::now: a pure crate opens nothing and asks no clock"]
        );
        assert!(read("spool/src/lib.rs", text, false).is_empty());
    }

    #[test]
    fn unsafe_is_a_breach_anywhere() {
        assert_eq!(read("spool/src/lib.rs", "unsafe { f() }", false).len(), 1);
    }

    #[test]
    fn tasks_start_in_tasks_only() {
        let text = "tokio::spawn(f());";
        assert_eq!(read("gatewayd/src/uplink.rs", text, false).len(), 1);
        assert!(read("gatewayd/src/tasks.rs", text, false).is_empty());
    }

    #[test]
    fn comments_and_tests_are_not_read() {
        let text = "// Instant::now is not ours\n#[cfg(test)]\nmod tests { use std::fs; }";
        assert!(read("wire/src/lib.rs", text, true).is_empty());
        for file in ["tests.rs", "tests/site.rs"] {
            let shown = format!("gatewayd/src/upload/{file}");
            assert!(read(&shown, "tokio::spawn(f());", false).is_empty());
        }
    }
}
