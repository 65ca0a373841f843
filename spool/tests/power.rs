//! Nothing acknowledged is lost when the process dies, and opening costs the same at any backlog.
//!
//! The process that dies, or whose reads are counted, is this test binary again: `in_a_child`
//! starts it with the name of one test and a folder in the environment.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod fixture;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fixture::{ROOMY, batch, close, epoch, epoch_id, fill, held_with_bytes, lane, sqlite};
use spool::{Limits, Spool};
use wire::Class;

#[tokio::test]
async fn everything_acknowledged_is_there_after_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Normal);
    let mut expected = BTreeSet::new();
    for lives in 1..=20 {
        let mut child = in_a_child("child_appends_until_killed", folder.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        let moment = random(120);
        while said.len() < moment {
            said.extend(appended(&lines.next().unwrap().unwrap()));
        }
        child.kill().unwrap();
        // What it said between our decision and its end.
        said.extend(lines.filter_map(|line| appended(&line.unwrap())));
        child.wait().unwrap();

        let spool = Spool::open(folder.path(), SOME).unwrap();
        let held = held_with_bytes(&spool, lane).await;
        expected.extend(said.iter().copied());
        for batch in &expected {
            assert!(held.contains(batch), "{batch:?} was acknowledged");
        }
        assert!(
            held.len() as u64 <= expected.len() as u64 + lives,
            "at most one more for each life"
        );
        match spool.lane(lane).await.unwrap().newest {
            Some(newest) => {
                assert!(newest.count as usize >= said.len());
                assert!(!newest.clean);
            }
            // Killed before it did anything.
            None => assert!(expected.is_empty()),
        }
        close(spool, folder.path());
    }
    assert!(100 < expected.len());
}

/// Not a test of its own: what `everything_acknowledged_is_there_after_sigkill` kills.
#[tokio::test]
async fn child_appends_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let lane = lane(1, Class::Normal);
    let spool = Spool::open(Path::new(&folder), SOME).unwrap();
    let newest = spool.lane(lane).await.unwrap().newest;
    let index = newest.map_or(0, |newest| newest.index + 1);
    spool.open_epoch(epoch(lane, index)).await.unwrap();
    for number in 0.. {
        let bytes = 100 + random(8000);
        spool
            .append(batch(lane, index, number, bytes))
            .await
            .unwrap();
        writeln!(std::io::stdout(), "appended {index} {number} {bytes}").unwrap();
    }
}

/// Opening reads no row of a batch: it costs the same bytes from the disk with one or 20,000.
#[tokio::test]
async fn opening_reads_the_same_bytes_with_one_batch_or_twenty_thousand() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Normal);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    fill(&spool, lane, 0, 1, 1000).await;
    close(spool, folder.path());
    let with_one = bytes_read_to_open(folder.path());

    // As 19,999 appends would leave it.
    sqlite(folder.path())
        .execute_batch(
            "WITH RECURSIVE more (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < 19999)
             INSERT INTO batches SELECT key + n, n, readings, from_ms, until_ms, chain, tallies,
                 bytes FROM batches, more;
             UPDATE lanes SET count = 20000, batches = 20000, bytes = bytes * 20000,
                 readings = readings * 20000, appended_batches = 20000,
                 appended_readings = appended_readings * 20000;",
        )
        .unwrap();
    let with_many = bytes_read_to_open(folder.path());

    assert_eq!(with_many, with_one);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let state = spool.lane(lane).await.unwrap();
    assert_eq!(state.batches, 20_000);
    spool.append(batch(lane, 0, 20_000, 1000)).await.unwrap();
    assert_eq!(state.oldest, Some((epoch_id(lane, 0), 0)));
}

/// Not a test of its own: what `opening_reads_the_same_bytes_...` counts.
#[test]
fn child_counts_what_opening_reads() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let before = bytes_read();
    let spool = Spool::open(Path::new(&folder), ROOMY).unwrap();
    let after = bytes_read();
    writeln!(std::io::stdout(), "read {}", after - before).unwrap();
    close(spool, Path::new(&folder));
}

fn bytes_read_to_open(folder: &Path) -> u64 {
    let child = in_a_child("child_counts_what_opening_reads", folder);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines()
        .find_map(|line| line.split("read ").nth(1))
        .unwrap()
        .parse()
        .unwrap()
}

/// Bytes that this process has read by system calls (proc(5), `/proc/pid/io`).
fn bytes_read() -> u64 {
    let counters = fs::read_to_string("/proc/self/io").unwrap();
    counters
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "))
        .unwrap()
        .parse()
        .unwrap()
}

/// Starts this binary with one test only.
fn in_a_child(test: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a line "appended INDEX NUMBER BYTES" says. The harness may write before it.
fn appended(line: &str) -> Option<(u64, u32, usize)> {
    let mut words = line.split("appended ").nth(1)?.split(' ');
    let index = words.next()?.parse().ok()?;
    let number = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    Some((index, number, bytes))
}

/// Below `end`.
fn random(end: u64) -> usize {
    usize::try_from(RandomState::new().build_hasher().finish() % end).unwrap()
}

/// Small enough that the log is moved into the database now and then.
const SOME: Limits = Limits {
    max_bytes: 24 * 1024 * 1024,
    min_free_bytes: 0,
};

/// Names the folder to a child.
const FOLDER: &str = "SPOOL_TEST_FOLDER";
