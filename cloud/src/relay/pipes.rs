//! The kernel's pipes, through which a splice moves bytes without copying them.
//!
//! A pipe belongs to one direction of one splice while bytes are on their way there, and to nobody
//! while they are not: a splice that is silent holds none.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};

/// All pipes of a relay: those in use, and a few that wait for their next use.
pub(super) struct Pipes {
    /// What one pipe holds at most; the kernel rounds up to a page times a power of two.
    bytes: usize,
    /// Pipes in use at a time.
    taken_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Ends>,
    taken: usize,
    /// The kernel does not splice here.
    refused: bool,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipes {
    pub(super) fn new(bytes: usize, taken_max: usize) -> Self {
        Self {
            bytes,
            taken_max,
            state: Mutex::default(),
        }
    }

    /// A pipe that is empty; `None` if all are in use, or there are no descriptors for another, or
    /// the kernel does not splice: then the caller moves its bytes through a buffer.
    pub(super) fn take(&self) -> Option<Pipe<'_>> {
        let idle = {
            let mut state = self.state();
            if state.refused || self.taken_max <= state.taken {
                return None;
            }
            state.taken += 1;
            state.idle.pop()
        };
        let Some(ends) = idle.or_else(|| Ends::new(self.bytes).ok()) else {
            self.state().taken -= 1;
            return None;
        };
        Some(Pipe {
            pipes: self,
            ends: Some(ends),
            held: 0,
        })
    }

    /// From now on there is none: a kernel or a sandbox that refuses once refuses always.
    fn refuse(&self, why: Errno) {
        let mut state = self.state();
        if !state.refused {
            tracing::warn!("the kernel does not splice ({why}): bytes are copied");
        }
        state.refused = true;
        state.idle.clear();
    }

    /// Never held across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends {
    fn new(bytes: usize) -> Result<Self, Errno> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused when the user has many pipes already (pipe(7), pipe-user-pages-soft). Then this
        // one is smaller, which does no harm.
        let _ = fcntl(
            &write,
            FcntlArg::F_SETPIPE_SZ(i32::try_from(bytes).unwrap_or(i32::MAX)),
        );
        Ok(Self { read, write })
    }
}

/// A pipe in use. Dropped, it is there for others; with bytes still in it, it is closed.
pub(super) struct Pipe<'a> {
    pipes: &'a Pipes,
    ends: Option<Ends>,
    held: usize,
}

/// What came of an attempt to fill a pipe.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes; none is the end of what comes.
    Bytes(usize),
    /// The kernel moves nothing this way, and has moved nothing.
    Refused,
}

impl Pipe<'_> {
    /// Bytes in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what `from` has into the pipe, which is empty.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is nothing; otherwise what broke `from`.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<Filled> {
        let bytes = self.pipes.bytes;
        let moved = self.with_ends(|ends| uninterrupted(from.as_fd(), ends.write.as_fd(), bytes));
        match moved {
            Ok(count) => {
                self.held += count;
                Ok(Filled::Bytes(count))
            }
            // No splice(2) for this socket, in this kernel, or in this sandbox.
            Err(why @ (Errno::EINVAL | Errno::ENOSYS | Errno::EPERM)) => {
                self.pipes.refuse(why);
                Ok(Filled::Refused)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Moves what `to` takes out of the pipe.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if `to` takes nothing at the moment; otherwise what broke it.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<()> {
        let held = self.held;
        let moved = self.with_ends(|ends| uninterrupted(ends.read.as_fd(), to.as_fd(), held))?;
        if moved == 0 && held > 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held = held.saturating_sub(moved);
        Ok(())
    }

    fn with_ends<T>(&self, work: impl FnOnce(&Ends) -> Result<T, Errno>) -> Result<T, Errno> {
        self.ends.as_ref().map_or(Err(Errno::EBADF), work)
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        let mut state = self.pipes.state();
        state.taken = state.taken.saturating_sub(1);
        let room = state.idle.len() < IDLE_MAX && !state.refused;
        if let Some(ends) = self.ends.take()
            && room
            && self.held == 0
        {
            state.idle.push(ends);
        }
    }
}

fn uninterrupted(from: impl AsFd, to: impl AsFd, bytes: usize) -> Result<usize, Errno> {
    // The sockets are non-blocking themselves.
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from.as_fd(), None, to.as_fd(), None, bytes, flags) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// As many as may be busy at once on a relay with little to do; more are made and closed as needed.
const IDLE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    #[test]
    fn an_empty_pipe_is_given_back_and_one_with_bytes_is_closed() {
        let pipes = Pipes::new(BYTES, 4);
        let (mut far, near) = UnixStream::pair().unwrap();
        let (out, mut end) = UnixStream::pair().unwrap();
        far.write_all(b"seven b").unwrap();

        let mut pipe = pipes.take().unwrap();
        assert_eq!(pipe.fill(&near).unwrap(), Filled::Bytes(7));
        assert_eq!(pipe.held(), 7);
        pipe.drain(&out).unwrap();
        assert_eq!(pipe.held(), 0);
        let mut passed = [0; 7];
        end.read_exact(&mut passed).unwrap();
        assert_eq!(&passed, b"seven b");
        drop(pipe);
        assert_eq!(pipes.state().idle.len(), 1);

        far.write_all(b"lost").unwrap();
        let mut pipe = pipes.take().unwrap();
        assert_eq!(pipe.fill(&near).unwrap(), Filled::Bytes(4));
        drop(pipe);
        // Nobody else gets what was meant for one.
        assert_eq!(pipes.state().idle.len(), 0);
        assert_eq!(pipes.state().taken, 0);
    }

    #[test]
    fn no_more_pipes_than_allowed_are_in_use_and_few_wait() {
        let pipes = Pipes::new(BYTES, 100);
        let taken: Vec<_> = (0..100).map(|_| pipes.take().unwrap()).collect();
        assert!(pipes.take().is_none());
        drop(taken);
        assert!(pipes.take().is_some());
        assert_eq!(pipes.state().idle.len(), 64);
    }

    #[test]
    fn a_pipe_holds_no_more_than_it_may() {
        let pipes = Pipes::new(BYTES, 1);
        let (mut far, near) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let chunk = [0; 4096];
        while far.write(&chunk).is_ok() {}
        let mut pipe = pipes.take().unwrap();
        let Filled::Bytes(count) = pipe.fill(&near).unwrap() else {
            panic!("refused");
        };
        assert!((1..=BYTES).contains(&count), "{count}");
    }

    #[test]
    fn a_kernel_that_does_not_splice_is_asked_once() {
        let pipes = Pipes::new(BYTES, 1);
        let mut pipe = pipes.take().unwrap();
        // splice(2): EINVAL if both descriptors refer to the same pipe.
        let itself = pipe.ends.as_ref().unwrap().read.try_clone().unwrap();
        assert_eq!(pipe.fill(&itself).unwrap(), Filled::Refused);
        drop(pipe);
        assert!(pipes.take().is_none());
        assert_eq!(pipes.state().idle.len(), 0);
    }

    const BYTES: usize = 64 * 1024;
}
