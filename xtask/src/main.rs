//! Checks that the house stands as drawn in `ARCHITECTURE.md`: `cargo xtask` prints every breach
//! with its place and ends with status 1 if there is one.

mod floors;
mod source;
mod threats;

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::Context;

fn main() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate has no parent folder")?;
    let mut breaches = floors::check(root)?;
    breaches.extend(source::check(root)?);
    breaches.extend(threats::check(root)?);

    let mut out = std::io::stdout().lock();
    for breach in &breaches {
        writeln!(out, "{breach}")?;
    }
    if breaches.is_empty() {
        writeln!(
            out,
            "xtask: floors, purity, unsafe, spawns and threat model are as drawn"
        )?;
        Ok(ExitCode::SUCCESS)
    } else {
        writeln!(out, "xtask: {} breaches", breaches.len())?;
        Ok(ExitCode::FAILURE)
    }
}
