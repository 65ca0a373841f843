//! What is in memory stays there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

use std::{fs, process::Command};

use nix::sys::{
    prctl,
    resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
};

#[test]
fn a_protected_process_leaves_no_core_and_nobody_looks_into_it() {
    let said = process("unprotected");
    assert!(said.contains("dumpable true"), "the test can tell: {said}");
    let said = process("protected");
    assert!(said.contains("dumpable false"), "{said}");
    assert!(said.contains("core 0"), "{said}");
}

#[test]
fn memory_is_locked_page_by_page_where_there_is_no_limit_and_costs_none() {
    let said = process("protected");
    if said.contains("no right to lock") {
        return;
    }
    let number = |name: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    };
    assert!(0 < number("VmLck:"), "{said}");
    // 64 MiB that are mapped and not touched are not in memory.
    assert!(number("VmRSS:") < 32 * 1024, "{said}");

    // Under a limit nothing is locked, and nothing fails.
    let said = process("limited");
    assert!(said.contains("VmLck:\t       0 kB"), "{said}");
}

/// What the process does that the tests look at.
#[test]
#[ignore = "is run by the tests above, in a process of its own"]
fn be_protected() {
    let how = std::env::var("GATEWAYD_TEST_MEMORY").unwrap();
    let limit = if how == "limited" {
        65_536
    } else {
        RLIM_INFINITY
    };
    if setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit).is_err() {
        println!("no right to lock");
    }
    if how != "unprotected" {
        gatewayd::memory::protect();
    }
    let untouched: Vec<u8> = Vec::with_capacity(64 * 1024 * 1024);
    println!("dumpable {}", prctl::get_dumpable().unwrap());
    println!("core {}", getrlimit(Resource::RLIMIT_CORE).unwrap().1);
    println!("{}", fs::read_to_string("/proc/self/status").unwrap());
    drop(untouched);
}

fn process(how: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "be_protected"])
        .env("GATEWAYD_TEST_MEMORY", how)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}
