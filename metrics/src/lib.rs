//! What a process counts, in the text format of Prometheus.
//!
//! Names and words are the same as in configuration and `status`; units are in the names. No label
//! has a name that a peer chose, so there is no end to what a peer could make us keep.

mod http;
mod process;

use std::borrow::Cow;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use http::serve;
pub use process::Process;

/// A registry with what every process of the house shows: `process_*`, and `PREFIX_build_info`
/// with its version. Its own metrics go into `registry.sub_registry_with_prefix(prefix)`.
#[must_use]
pub fn registry(prefix: &str, version: &'static str) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process::new()));
    registry.sub_registry_with_prefix(prefix).register(
        "build",
        "The version that runs",
        Info::new([(Cow::Borrowed("version"), Cow::Borrowed(version))]),
    );
    registry
}
