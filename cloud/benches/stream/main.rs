//! What end-to-end encryption through a relay costs a stream: source, inlet, relay, outlet and
//! sink, beside source, two hops of socat and sink, in the same run on loopback. Inlet, relay and
//! outlet are processes of their own, as are the two socat.
//!
//! Goals: 0.8 of socat's throughput, at most 2 CPU seconds a GB over the three processes, a round
//! trip of 200 bytes in at most 1.8 times socat's, and less than 12 MB resident in each process.
//! The peer to beat, Ockam 0.150 on a machine like this: 0.63, 3.7 s, 3.5 times, 57 to 64 MB.
//!
//! Only the ratios mean something elsewhere. Source and sink are threads of this process, which do
//! nothing but write and read, and take one core of two: what several processes can do at once is
//! in the figures. `docs/benches.md` keeps them.
//!
//! Arguments: `--rounds N` (3), `--megabytes N` (1000), `--socat-buffer BYTES` (socat's own, 8192),
//! `--only NAME` (socat, ChaChaPoly, AESGCM).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench reports by panicking, and on standard output"
)]

mod chain;
mod ends;
mod meter;

use channel::Suite;
use comfy_table::{Table, presets};

use chain::Chain;
use meter::{Figures, median};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["relay"] => ends::relay(),
        ["outlet", relay, target] => ends::outlet(relay, target),
        ["inlet", relay, service, suite] => ends::inlet(relay, service, suite),
        words => measure(&Asked::parse(words)),
    }
}

/// What the command line asks for.
struct Asked {
    rounds: usize,
    bytes: u64,
    socat_buffer: Option<String>,
    only: Option<String>,
}

impl Asked {
    fn parse(words: &[&str]) -> Self {
        let value = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            Some((*words.get(at + 1).expect("an option has a value")).to_owned())
        };
        let number = |name, default| value(name).map_or(default, |text| text.parse().unwrap());
        Self {
            rounds: usize::try_from(number("--rounds", 3)).unwrap(),
            bytes: number("--megabytes", 1000) * 1_000_000,
            socat_buffer: value("--socat-buffer"),
            only: value("--only"),
        }
    }
}

fn measure(asked: &Asked) {
    let mut chains = vec![Chain::socat(asked.socat_buffer.as_deref())];
    for suite in [Suite::ChaChaPoly, Suite::AesGcm] {
        chains.push(Chain::tunnel(suite));
    }
    if let Some(only) = &asked.only {
        chains.retain(|chain| chain.name == only.as_str());
    }
    let mut figures: Vec<Vec<Figures>> = chains.iter().map(|_| Vec::new()).collect();
    // In turns, so that what else the machine does meets all.
    for _ in 0..asked.rounds {
        for (chain, figures) in chains.iter().zip(&mut figures) {
            figures.push(meter::run(chain, asked.bytes));
        }
    }
    println!("{}", summary(&chains, &figures));
    println!("{}", memory(&chains, &figures));
}

fn summary(chains: &[Chain], figures: &[Vec<Figures>]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "chain",
            "stream\nMB/s",
            "of socat\n(goal 0.80)",
            "CPU s/GB\n(goal 2.0)",
            "user, system\ns/GB",
            "round trip\nus",
            "of socat\n(goal 1.8)",
        ]);
    let of = |figures: &[Figures], what: fn(&Figures) -> f64| median(figures, what);
    // Nothing to compare with, if another chain alone was asked for.
    let socat = chains.iter().position(|chain| chain.name == chain::SOCAT);
    let socat = socat.map_or(&[][..], |at| figures[at].as_slice());
    for (chain, figures) in chains.iter().zip(figures) {
        let rate = |figures: &[Figures]| of(figures, |run| run.megabytes_per_second);
        let trip = |figures: &[Figures]| of(figures, |run| run.round_trip_us);
        let user = of(figures, |run| run.user_seconds_per_gb);
        let system = of(figures, |run| run.system_seconds_per_gb);
        table.add_row([
            chain.name.clone(),
            format!("{:.0}", rate(figures)),
            format!("{:.2}", rate(figures) / rate(socat)),
            format!("{:.2}", user + system),
            format!("{user:.2}, {system:.2}"),
            format!("{:.0}", trip(figures)),
            format!("{:.2}", trip(figures) / trip(socat)),
        ]);
    }
    table
}

/// Each process of its own.
fn memory(chains: &[Chain], figures: &[Vec<Figures>]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "process",
            "CPU s/GB",
            "resident in mid-stream\nMB (goal: below 12)",
            "most ever\nMB",
        ]);
    for (chain, figures) in chains.iter().zip(figures) {
        for (index, link) in chain.links.iter().enumerate() {
            let of = |what: fn(&meter::Process) -> f64| {
                median(figures, |run| what(&run.processes[index]))
            };
            table.add_row([
                format!("{}, {}", chain.name, link.name),
                format!("{:.2}", of(|process| process.cpu_seconds_per_gb)),
                format!("{:.1}", of(|process| process.resident_mb)),
                format!("{:.1}", of(|process| process.resident_max_mb)),
            ]);
        }
    }
    table
}
