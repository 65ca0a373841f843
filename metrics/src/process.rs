//! What the kernel knows of this process, by the names that Prometheus' own clients use.

use std::fmt;

use procfs::WithCurrentSystemInfo;
use procfs::process::{LimitValue, Process as Entry};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::{counter::ConstCounter, gauge::ConstGauge};

/// `process_*`, read from `/proc/self` whenever somebody asks. What cannot be read is left out.
#[derive(Debug)]
pub struct Process(());

impl Process {
    /// Of this process.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Ok(entry) = Entry::myself() else {
            return Ok(());
        };
        let mut gauge = |name: &str, help: &str, value: Option<u64>| match value {
            Some(value) => show(
                &mut encoder,
                (name, help),
                // What is above i64 is "no limit".
                &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)),
            ),
            None => Ok(()),
        };
        let open = entry
            .fd_count()
            .ok()
            .and_then(|count| count.try_into().ok());
        gauge("process_open_fds", "Open file descriptors", open)?;
        let limit = entry
            .limits()
            .ok()
            .map(|limits| limits.max_open_files.soft_limit);
        let limit = limit.map(|limit| match limit {
            LimitValue::Value(limit) => limit,
            LimitValue::Unlimited => u64::MAX,
        });
        gauge(
            "process_max_fds",
            "File descriptors that it may open",
            limit,
        )?;
        let Ok(stat) = entry.stat() else {
            return Ok(());
        };
        let resident = Some(stat.rss_bytes().get());
        gauge("process_resident_memory_bytes", "Resident memory", resident)?;
        gauge(
            "process_virtual_memory_bytes",
            "Address space",
            Some(stat.vsize),
        )?;
        let threads = u64::try_from(stat.num_threads).ok();
        gauge("process_threads", "Threads", threads)?;

        let ticks_per_second = procfs::ticks_per_second().max(1);
        let started = procfs::boot_time_secs().ok();
        let started = started.map(|boot| boot.saturating_add(stat.starttime / ticks_per_second));
        gauge(
            "process_start_time_seconds",
            "When it started, since 1970",
            started,
        )?;
        show(
            &mut encoder,
            ("process_cpu_seconds", "User and system time"),
            &ConstCounter::new(seconds(
                stat.utime.saturating_add(stat.stime),
                ticks_per_second,
            )),
        )
    }
}

fn show(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    metric: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Ticks in seconds, exact to a hundredth for ten million years.
#[allow(
    clippy::cast_precision_loss,
    reason = "2^53 ticks are more than any process has"
)]
fn seconds(ticks: u64, ticks_per_second: u64) -> f64 {
    ticks as f64 / ticks_per_second as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::{encoding::text::encode, registry::Registry};

    #[test]
    fn what_the_kernel_says_of_this_process_is_shown() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::new()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}"))
                .parse()
                .unwrap()
        };
        // By another way: what the process itself sees in its folder.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        let resident = value("process_resident_memory_bytes");
        assert!(
            (kib * 512.0..kib * 2048.0).contains(&resident),
            "{resident}, {kib} KiB"
        );
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "started {age} s ago");
    }
}
