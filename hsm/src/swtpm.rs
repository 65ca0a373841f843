//! A private software TPM, for tests.
//!
//! [`Swtpm`] runs the `swtpm` program on Unix sockets in a folder of its own. This process owns the
//! two TCP ports that [`Tpm::Swtpm`] needs and carries frames between them, so
//! no two fixtures meet on a port, and everything passes through the [`Bus`], which can listen,
//! alter, delay and cut like somebody with a probe on the wires.
//!
//! `docs/testing-with-swtpm.md` shows a crate and a CI that use it, and is run by our tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use hsm::{Hsm, HsmConfig, swtpm::Swtpm};
//!
//! let tpm = Swtpm::start()?;
//! let hsm = Hsm::start(HsmConfig {
//!     tpm: tpm.tpm(),
//!     keys: tpm.folder().join("keys"),
//!     timeout: Duration::from_secs(10),
//! });
//! let public = hsm.provision(false).await?;
//! # Ok(()) }
//! ```

mod bus;
mod control;
mod factory;

use std::fs::{self, DirBuilder};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use bus::{Bus, Direction, Frame};

use crate::config::Tpm;
use bus::Bridge;

/// A running software TPM; dropping it ends the process and removes the folder it made.
pub struct Swtpm {
    process: Option<Child>,
    folder: Folder,
    port: u16,
    bridge: Bridge,
}

impl Swtpm {
    /// Starts a new TPM with state in a temporary folder.
    ///
    /// # Errors
    ///
    /// If `swtpm` is not installed or does not come up, or if no two adjacent ports are free.
    pub fn start() -> io::Result<Self> {
        Self::start_with(Folder::temporary()?)
    }

    /// Starts a TPM with its state in `folder`, which must exist and stays.
    ///
    /// # Errors
    ///
    /// As [`Swtpm::start`]; also if another process uses the state, or if the path of the folder is
    /// longer than Unix sockets allow (about 90 bytes).
    pub fn start_in(folder: &Path) -> io::Result<Self> {
        Self::start_with(Folder {
            path: folder.to_owned(),
            temporary: false,
        })
    }

    /// Starts a new TPM as a vendor ships it: with certificates of an RSA-2048 and a P-384
    /// endorsement key in its NV, in a temporary folder. Takes one or two seconds.
    ///
    /// # Errors
    ///
    /// As [`Swtpm::start`]; also if `swtpm_setup` (Debian: `swtpm-tools`) is not installed or fails.
    pub fn start_certified() -> io::Result<Self> {
        let folder = Folder::temporary()?;
        factory::manufacture(&folder.path)?;
        Self::start_with(folder)
    }

    /// Files (PEM) of the authority behind a TPM that was [started
    /// certified](Self::start_certified): the certificate of its root, and that of the issuer
    /// between root and endorsement certificates.
    #[must_use]
    pub fn authority(&self) -> [PathBuf; 2] {
        [factory::ROOT, factory::ISSUER]
            .map(|name| self.folder.path.join(factory::AUTHORITY).join(name))
    }

    fn start_with(folder: Folder) -> io::Result<Self> {
        let (data, control, port) = adjacent_ports()?;
        let bridge = Bridge::start(
            (data, folder.path.join(DATA_SOCKET)),
            (control, folder.path.join(CONTROL_SOCKET)),
        )?;
        let mut tpm = Self {
            process: None,
            folder,
            port,
            bridge,
        };
        tpm.restart()?;
        Ok(tpm)
    }

    /// The address of this TPM.
    #[must_use]
    pub fn tpm(&self) -> Tpm {
        Tpm::Swtpm {
            host: LOOPBACK.to_owned(),
            port: self.port,
        }
    }

    /// The address as tpm2-tools want it in `TPM2TOOLS_TCTI`.
    #[must_use]
    pub fn tcti(&self) -> String {
        format!("swtpm:host={LOOPBACK},port={}", self.port)
    }

    /// The folder of its state, where a test may put files of its own.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// The Unix socket that takes commands past the [`Bus`], as a second program on the machine
    /// would send them.
    #[must_use]
    pub fn data_socket(&self) -> PathBuf {
        self.folder.path.join(DATA_SOCKET)
    }

    /// The Unix socket of its control channel, for `swtpm_ioctl`.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.folder.path.join(CONTROL_SOCKET)
    }

    /// The wires between TPM and processor.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        self.bridge.bus()
    }

    /// Process id of the TPM while it runs, for whoever wants to kill it in the midst of a command.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Cuts the power: the process ends at once, without an orderly shutdown. What the TPM keeps
    /// in its memory is lost, what it keeps in NV stays.
    ///
    /// # Errors
    ///
    /// If the process cannot be ended.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Switches the power on (again), with the state that is in the folder and at the same address.
    ///
    /// # Errors
    ///
    /// As [`Swtpm::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        let control = self.folder.path.join(CONTROL_SOCKET);
        for socket in [&self.folder.path.join(DATA_SOCKET), &control] {
            match fs::remove_file(socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Err(_) | Ok(()) => {}
            }
        }
        let process = self.process.insert(spawn(&self.folder.path)?);

        let give_up = Instant::now() + START_TIME_MAX;
        while UnixStream::connect(&control).is_err() {
            if let Some(status) = process.try_wait()? {
                return Err(io::Error::other(match status.code() {
                    Some(NOT_FOUND) => "swtpm is not installed: apt install swtpm".to_owned(),
                    _ => format!("swtpm ended at once: {status}"),
                }));
            }
            if give_up < Instant::now() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("swtpm did not answer within {START_TIME_MAX:?}"),
                ));
            }
            // It says nowhere that it is ready.
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Pulls the TPM's reset line, as somebody with a wire can, while the process lives on: PCRs
    /// are as after power-on, keys and sessions are gone, and it wants to be started up again
    /// (which [`Hsm`](crate::Hsm) does).
    ///
    /// # Errors
    ///
    /// If the process does not run or does not answer.
    pub fn reset(&self) -> io::Result<()> {
        control::reset(&self.control_socket())
    }

    /// Waits until no key and no session is in the TPM's memory. An [`Hsm`](crate::Hsm) keeps its
    /// own there for 200 ms after its last call; other programs need the slots free.
    ///
    /// Asks past the [`Bus`], so it leaves no frames. Blocks its thread.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut) if something is left after `limit`; also if the
    /// process does not run.
    pub fn wait_at_rest(&self, limit: Duration) -> io::Result<()> {
        let give_up = Instant::now() + limit;
        loop {
            let left = control::loaded(&self.data_socket())?;
            if left.is_empty() {
                return Ok(());
            }
            if give_up < Instant::now() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("after {limit:?} the TPM still holds {left:#x?}"),
                ));
            }
            // It tells nobody when it is.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // The folder goes after this; nobody is left to hear of a failure.
        let _ = self.kill();
    }
}

fn spawn(folder: &Path) -> io::Result<Child> {
    let unix = |socket| format!("type=unixio,path={}", folder.join(socket).display());
    Command::new("bash")
        .args(["-c", WITHOUT_OUR_FILES, "swtpm"])
        .args(["socket", "--tpm2", "--flags", "startup-clear"])
        .args(["--tpmstate", &format!("dir={}", folder.display())])
        .args(["--server", &unix(DATA_SOCKET)])
        .args(["--ctrl", &unix(CONTROL_SOCKET)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                io::Error::new(error.kind(), "bash is not installed: apt install bash")
            } else {
                error
            }
        })
}

/// Takes two ports, the second one above the first, as the addresses of software TPMs want it.
///
/// Below the range from which the kernel gives ports to connections: of those, each command takes
/// one that stays taken for a minute.
fn adjacent_ports() -> io::Result<(TcpListener, TcpListener, u16)> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // So that processes side by side begin in different places.
    let begin = std::process::id().wrapping_mul(PORTS_APART);
    for _ in 0..PORT_TRIES_MAX {
        let pair = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)).wrapping_add(begin) % PORT_PAIRS;
        let port = PORT_FIRST.saturating_add(u16::try_from(2 * pair).unwrap_or(0));
        if let Ok(data) = TcpListener::bind((LOOPBACK, port))
            && let Ok(control) = TcpListener::bind((LOOPBACK, port + 1))
        {
            return Ok((data, control, port));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "no two adjacent ports are free",
    ))
}

/// The folder of the state.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn temporary() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("swtpm-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                // Left by another process that once had our id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    return Ok(Self {
                        path,
                        temporary: true,
                    });
                }
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            // It is in the folder for temporary files, so what stays is cleaned up some day.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The library's sockets are not closed on exec, and swtpm serves one client on its control channel:
/// a TPM that inherited another fixture's socket would keep that fixture waiting.
const WITHOUT_OUR_FILES: &str = "for file in /proc/$$/fd/*; do
    number=${file##*/}
    [ \"$number\" -le 2 ] || eval \"exec $number>&-\"
done
exec swtpm \"$@\"";

/// What a shell returns for a program that is not there.
const NOT_FOUND: i32 = 127;

const LOOPBACK: &str = "127.0.0.1";
const DATA_SOCKET: &str = "data.sock";
const CONTROL_SOCKET: &str = "control.sock";

/// It takes 15 ms, and a second on a machine that does much else.
const START_TIME_MAX: Duration = Duration::from_secs(20);

/// Linux gives connections ports from 32,768 on (`net.ipv4.ip_local_port_range`).
const PORT_FIRST: u16 = 12_000;
const PORT_PAIRS: u32 = 10_000;

/// Further than the fixtures that one process starts.
const PORTS_APART: u32 = 331;

/// A pair is taken rarely, so many failures mean something else.
const PORT_TRIES_MAX: u32 = 100;
