//! Wipes the stack behind work with secrets.
//!
//! What holds a key wipes it when it is dropped, in the place where it is then. Moved or spilled
//! copies stay in frames that are left, until other calls happen to write there.

use std::hint::black_box;

use zeroize::Zeroize as _;

/// Runs `work`, then overwrites `WORDS` words of the stack below the caller, where it ran.
///
/// Registers are not wiped, and neither is what `work` put deeper than that.
pub(crate) fn wiped<const WORDS: usize, T>(work: impl FnOnce() -> T) -> T {
    let done = run(work);
    wipe::<WORDS>();
    done
}

/// In a frame of its own, so that it is below that of the caller.
#[inline(never)]
fn run<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe<const WORDS: usize>() {
    let mut area = [0_u64; WORDS];
    // The same again, and volatile, so that nobody finds it needless.
    area.zeroize();
    black_box(&area);
}

/// 128 KiB, for X-Wing: ML-KEM's matrices take most of it. A thread has 2 MiB.
pub(crate) const ENCAPSULATION: usize = 16 * 1024;

/// 16 KiB, for the cipher and two HMACs.
pub(crate) const SEALING: usize = 2 * 1024;
