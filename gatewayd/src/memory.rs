//! Keeps what is in memory, epoch keys above all, from reaching a disk (protocol.md 3.3).

use nix::{
    errno::Errno,
    libc,
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    },
};

/// Forbids core dumps and, as far as the system lets us, swapping. Other processes of the same user
/// cannot look into this one any more either. Says what it could not do; nothing ends for it.
pub fn protect() {
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "cannot set the size of core dumps to nothing");
    }
    match lock() {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            "memory may be swapped, epoch keys with it: the unit of this package has LimitMEMLOCK=infinity"
        ),
        Err(error) => tracing::warn!(%error, "memory may be swapped, epoch keys with it"),
    }
}

/// Locks every page when it is first touched, so that nothing is used that would not be anyway.
///
/// Only without a limit: under one, an allocation beyond it would fail, and a daemon that ends is
/// worse than a page that is swapped.
fn lock() -> Result<bool, Errno> {
    if getrlimit(Resource::RLIMIT_MEMLOCK)?.0 != RLIM_INFINITY {
        return Ok(false);
    }
    let when_touched = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | when_touched)?;
    Ok(true)
}
