//! The gateway daemon and its command line.
//!
//! One reading's way: a driver says [`drivers::Event`], [`collect`] gives it time and number,
//! [`sealer`] seals it and puts it into the spool, [`uplink`] delivers it and lets the spool forget
//! it when the service has committed it. `main.rs` puts these together.

pub mod backoff;
pub mod board;
mod check;
pub mod clock;
pub mod collect;
pub mod config;
pub mod control;
mod csr;
pub mod ctl;
pub mod daemon;
pub mod enroll;
pub mod enrolment;
pub mod identity;
pub mod memory;
pub mod report;
pub mod sealer;
pub mod service;
pub mod signer;
pub mod tasks;
pub mod uplink;
mod upload;
pub mod watchdog;

#[cfg(test)]
mod fixture;

/// An error and its causes in one line, without saying the same twice.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// The mistakes of a configuration, or why it cannot be read, as a person reads it.
#[must_use]
pub fn config_complaint(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::Mistakes(mistakes) => mistakes.to_string(),
        config::ConfigError::Unreadable { .. } => format!(
            "error: {}\ndo: check that it exists and that this user may read it",
            chain(error)
        ),
    }
}

/// Whether the disk may take tomorrow what it refuses now. After any other error of the spool the
/// daemon has to start afresh.
fn passes(error: &spool::SpoolError) -> bool {
    use spool::SpoolError as E;
    matches!(
        error,
        E::Full | E::Reserved { .. } | E::Disk { .. } | E::InUse { .. }
    )
}
