//! One run through a chain, and what `/proc` says of its processes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use super::chain::Chain;

/// What one run measured.
pub(crate) struct Figures {
    pub(crate) megabytes_per_second: f64,
    pub(crate) user_seconds_per_gb: f64,
    pub(crate) system_seconds_per_gb: f64,
    pub(crate) round_trip_us: f64,
    pub(crate) processes: Vec<Process>,
}

/// One process of the chain, with its children.
pub(crate) struct Process {
    pub(crate) cpu_seconds_per_gb: f64,
    pub(crate) resident_mb: f64,
    pub(crate) resident_max_mb: f64,
}

/// A stream of so many bytes, and then the round trips.
pub(crate) fn run(chain: &Chain, bytes: u64) -> Figures {
    let ids: Vec<u32> = chain.links.iter().map(super::chain::Link::id).collect();
    let gigabytes = approximate(bytes) / 1e9;

    let (near, far) = chain.connect();
    let before: Vec<Cpu> = ids.iter().map(|id| Cpu::of(*id)).collect();
    let began = Instant::now();
    let source = thread::spawn(move || write(near, bytes));
    read(&far, bytes / 2);
    let resident: Vec<f64> = ids.iter().map(|id| memory_mb(*id, "VmRSS:")).collect();
    read(&far, bytes - bytes / 2);
    let seconds = began.elapsed().as_secs_f64();
    let used: Vec<Cpu> = ids.iter().map(|id| Cpu::of(*id)).collect();
    // Until here, so that children who carry the connection are still there to be asked.
    drop((source.join().unwrap(), far));

    let used = used.iter().zip(&before);
    let used: Vec<Cpu> = used.map(|(after, before)| after.since(before)).collect();
    let processes = ids.iter().zip(&used).zip(resident);
    Figures {
        megabytes_per_second: approximate(bytes) / 1e6 / seconds,
        user_seconds_per_gb: used.iter().map(|cpu| cpu.user).sum::<f64>() / gigabytes,
        system_seconds_per_gb: used.iter().map(|cpu| cpu.system).sum::<f64>() / gigabytes,
        round_trip_us: round_trip_us(chain),
        processes: processes
            .map(|((id, cpu), resident_mb)| Process {
                cpu_seconds_per_gb: (cpu.user + cpu.system) / gigabytes,
                resident_mb,
                resident_max_mb: memory_mb(*id, "VmHWM:"),
            })
            .collect(),
    }
}

pub(crate) fn median<T>(runs: &[T], what: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(what).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of round trips, in a connection of their own.
fn round_trip_us(chain: &Chain) -> f64 {
    let (mut near, mut far) = chain.connect();
    let echo = thread::spawn(move || {
        let mut message = [0; TRIP_BYTES];
        while far.read_exact(&mut message).is_ok() {
            far.write_all(&message).unwrap();
        }
    });
    let mut message = [7; TRIP_BYTES];
    let mut times = Vec::new();
    for _ in 0..TRIPS {
        let began = Instant::now();
        near.write_all(&message).unwrap();
        near.read_exact(&mut message).unwrap();
        times.push(began.elapsed());
    }
    drop(near);
    echo.join().unwrap();
    median(&times, |time| time.as_secs_f64() * 1e6)
}

/// Returns the stream, so that it is not closed yet.
fn write(mut stream: TcpStream, bytes: u64) -> TcpStream {
    let chunk: Vec<u8> = (0..CHUNK_BYTES)
        .map(|i| (i % 251).to_le_bytes()[0])
        .collect();
    let mut left = bytes;
    while left > 0 {
        let count = usize::try_from(left).unwrap().min(CHUNK_BYTES);
        stream.write_all(&chunk[..count]).unwrap();
        left -= u64::try_from(count).unwrap();
    }
    stream
}

fn read(mut stream: &TcpStream, bytes: u64) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap().min(CHUNK_BYTES);
        let count = stream.read(&mut chunk[..most]).unwrap();
        assert_ne!(count, 0, "the stream ended {left} bytes early");
        left -= u64::try_from(count).unwrap();
    }
}

/// Seconds that a process and its children have computed.
#[derive(Clone, Copy)]
struct Cpu {
    user: f64,
    system: f64,
}

impl Cpu {
    /// Of those children who are there, and those who were.
    fn of(id: u32) -> Self {
        let mut sum = Self::fields(id);
        for child in children(id) {
            let cpu = Self::fields(child);
            sum.user += cpu.user;
            sum.system += cpu.system;
        }
        sum
    }

    fn fields(id: u32) -> Self {
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else {
            // A child that has just ended; its parent has its times.
            return Self {
                user: 0.0,
                system: 0.0,
            };
        };
        // The second field may hold spaces; it ends with the last parenthesis. proc(5): fields 14 to
        // 17 are utime, stime, cutime and cstime, and the first here is field 3.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let seconds = |field: usize| fields[field - 3].parse::<f64>().unwrap() / TICKS_PER_SECOND;
        Self {
            user: seconds(14) + seconds(16),
            system: seconds(15) + seconds(17),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
        }
    }
}

/// The largest of a process and its children, in MB.
fn memory_mb(id: u32, field: &str) -> f64 {
    let ids = children(id).into_iter().chain([id]);
    ids.filter_map(|id| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024.0 / 1e6)
    })
    .fold(0.0, f64::max)
}

fn children(id: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect()
}

/// Exact below 9 PB.
fn approximate(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1000).unwrap()) * 1000.0
}

const TRIP_BYTES: usize = 200;

const TRIPS: u32 = 2000;

const CHUNK_BYTES: usize = 256 * 1024;

/// `USER_HZ` is 100 on all of Linux's architectures but two that nobody has.
const TICKS_PER_SECOND: f64 = 100.0;
