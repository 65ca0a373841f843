//! What a fuzzer found to be interesting, once more. One test, since memory is counted for the
//! whole process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::path::{Path, PathBuf};
use std::{fs, panic};

use fuzz::TARGETS;

#[test]
fn every_input_that_was_ever_interesting_does_no_harm() {
    for target in TARGETS {
        let mut accepted = 0;
        for seed in target.seeds() {
            accepted += usize::from(target.run(&seed));
        }
        assert!(0 < accepted, "{}: no seed gets anywhere", target.name);

        let (mut files, mut bytes) = (0, 0);
        for path in corpus(target.name) {
            let input = fs::read(&path).unwrap();
            files += 1;
            bytes += input.len();
            if let Err(finding) = panic::catch_unwind(|| target.run(&input)) {
                let finding = finding.downcast_ref::<String>();
                panic!("{}: {finding:?}", path.display());
            }
        }
        assert!(0 < files, "{}: no corpus", target.name);
        assert!(
            files < 200 && bytes < 1 << 20,
            "{}: {files} files, {bytes} bytes",
            target.name
        );
    }
}

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let entries = fs::read_dir(&folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}
