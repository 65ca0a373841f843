//! The wires between processor and TPM, in the hands of a test.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What somebody with a probe on the wires can do. Cheap to clone.
///
/// The closures given to it must not call it back.
#[derive(Clone, Default)]
pub struct Bus {
    wires: Arc<Wires>,
}

/// A command or an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Which way it went.
    pub direction: Direction,
    /// All of it, header included, before anybody altered it.
    pub bytes: Vec<u8>,
}

/// The way of a [`Frame`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the processor to the TPM: a command.
    Command,
    /// From the TPM to the processor: an answer.
    Answer,
}

impl Frame {
    /// The command's or the answer's code (`TPM_CC`, `TPM_RC`).
    #[must_use]
    pub fn code(&self) -> u32 {
        code(&self.bytes)
    }

    /// Whether `secret` is in it.
    #[must_use]
    pub fn contains(&self, secret: &[u8]) -> bool {
        !secret.is_empty() && self.bytes.windows(secret.len()).any(|part| part == secret)
    }
}

impl Bus {
    /// All frames since the start or the last [`forget`](Self::forget), oldest first; of more than
    /// 100,000 the newest.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        lock(&self.wires.state).frames.iter().cloned().collect()
    }

    /// The commands among the [`frames`](Self::frames), by their codes.
    #[must_use]
    pub fn commands(&self) -> Vec<u32> {
        lock(&self.wires.state)
            .frames
            .iter()
            .filter(|frame| frame.direction == Direction::Command)
            .map(Frame::code)
            .collect()
    }

    /// Forgets the frames so far.
    pub fn forget(&self) {
        lock(&self.wires.state).frames.clear();
    }

    /// Shows every command, by its code, to `alter` before the TPM gets it.
    pub fn alter_commands(&self, alter: impl FnMut(u32, &mut Vec<u8>) + Send + 'static) {
        lock(&self.wires.probe).on_command = Some(Box::new(alter));
    }

    /// Shows every answer, with the code of its command, to `alter` before the processor gets it.
    pub fn alter_answers(&self, alter: impl FnMut(u32, &mut Vec<u8>) + Send + 'static) {
        lock(&self.wires.probe).on_answer = Some(Box::new(alter));
    }

    /// Ends all alterations and delays.
    pub fn behave(&self) {
        *lock(&self.wires.probe) = Probe::default();
        lock(&self.wires.state).delay = None;
        self.answer_again();
    }

    /// Delays each answer from now on.
    pub fn delay_answers(&self, delay: Duration) {
        self.delay_answers_by(move |_| delay);
    }

    /// Delays each answer from now on as long as `delay` says for the code of its command: a chip
    /// with its own figures.
    pub fn delay_answers_by(&self, delay: impl Fn(u32) -> Duration + Send + 'static) {
        lock(&self.wires.state).delay = Some(Box::new(delay));
        self.wires.changed.notify_all();
    }

    /// Withholds all answers until [`answer_again`](Self::answer_again).
    pub fn stop_answering(&self) {
        lock(&self.wires.state).silent = true;
    }

    /// Delivers the answers that were withheld, and all later ones.
    pub fn answer_again(&self) {
        lock(&self.wires.state).silent = false;
        self.wires.changed.notify_all();
    }

    /// Breaks the connection instead of delivering the next `count` answers. The TPM carries the
    /// commands out.
    pub fn cut_answers(&self, count: u32) {
        lock(&self.wires.state).cuts = count;
    }
}

#[derive(Default)]
struct Wires {
    state: Mutex<WiresState>,
    changed: Condvar,
    probe: Mutex<Probe>,
    /// One command at a time, as on a bus.
    turn: Mutex<()>,
}

#[derive(Default)]
struct WiresState {
    frames: VecDeque<Frame>,
    delay: Option<Delay>,
    silent: bool,
    cuts: u32,
    stopped: bool,
}

type Delay = Box<dyn Fn(u32) -> Duration + Send>;
type Alter = Box<dyn FnMut(u32, &mut Vec<u8>) + Send>;

#[derive(Default)]
struct Probe {
    on_command: Option<Alter>,
    on_answer: Option<Alter>,
}

impl Wires {
    /// Carries one command to the TPM and its answer back.
    fn exchange(&self, mut command: Vec<u8>, tpm: &Path) -> io::Result<Vec<u8>> {
        self.record(Direction::Command, &command);
        let command_code = code(&command);
        if let Some(alter) = &mut lock(&self.probe).on_command {
            alter(command_code, &mut command);
        }
        let mut answer = {
            let _turn = lock(&self.turn);
            let mut tpm = UnixStream::connect(tpm)?;
            tpm.write_all(&command)?;
            read_frame(&mut tpm)?
        };
        self.record(Direction::Answer, &answer);
        if let Some(alter) = &mut lock(&self.probe).on_answer {
            alter(command_code, &mut answer);
        }
        self.hold_back(command_code)?;
        Ok(answer)
    }

    fn record(&self, direction: Direction, bytes: &[u8]) {
        let mut state = lock(&self.state);
        if state.frames.len() == FRAMES_MAX {
            state.frames.pop_front();
        }
        state.frames.push_back(Frame {
            direction,
            bytes: bytes.to_vec(),
        });
    }

    /// Waits as the test wants it; an error if the answer is to be lost.
    fn hold_back(&self, command_code: u32) -> io::Result<()> {
        let mut state = lock(&self.state);
        if let Some(left) = state.cuts.checked_sub(1) {
            state.cuts = left;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let arrived = Instant::now();
        loop {
            if state.stopped {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let delay = state.delay.as_ref();
            let delay = delay.map_or(Duration::ZERO, |delay| delay(command_code));
            let left = delay.saturating_sub(arrived.elapsed());
            if !state.silent && left.is_zero() {
                return Ok(());
            }
            state = if state.silent {
                self.changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner)
            } else {
                self.changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            };
        }
    }
}

/// Carries frames between the TCP ports of this process and the sockets of swtpm.
pub(super) struct Bridge {
    bus: Bus,
    ports: [SocketAddr; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Bridge {
    /// Serves each port from the socket beside it: commands, then control.
    pub(super) fn start(
        (data, data_socket): (TcpListener, PathBuf),
        (control, control_socket): (TcpListener, PathBuf),
    ) -> io::Result<Self> {
        let bus = Bus::default();
        let ports = [data.local_addr()?, control.local_addr()?];
        let wires = Arc::clone(&bus.wires);
        let on_data = accept(&bus, data, move |client| {
            let _ = carry_frames(client, &wires, &data_socket);
        });
        let on_control = accept(&bus, control, move |client| {
            let _ = carry_bytes(&client, &control_socket);
        });
        Ok(Self {
            bus,
            ports,
            threads: vec![on_data, on_control],
        })
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        lock(&self.bus.wires.state).stopped = true;
        self.bus.wires.changed.notify_all();
        for port in self.ports {
            // Wakes the thread that accepts.
            let _ = TcpStream::connect(port);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Serves each client of `listener` on a thread of its own, until the bridge is dropped.
fn accept(
    bus: &Bus,
    listener: TcpListener,
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) -> JoinHandle<()> {
    let wires = Arc::clone(&bus.wires);
    thread::spawn(move || {
        for client in listener.incoming() {
            if lock(&wires.state).stopped {
                return;
            }
            let Ok(client) = client else {
                continue;
            };
            let serve = serve.clone();
            thread::spawn(move || serve(client));
        }
    })
}

/// Serves commands until the client leaves or an answer is lost.
fn carry_frames(mut client: TcpStream, wires: &Wires, tpm: &Path) -> io::Result<()> {
    client.set_nodelay(true)?;
    loop {
        let command = read_frame(&mut client)?;
        let answer = wires.exchange(command, tpm)?;
        client.write_all(&answer)?;
    }
}

/// Carries the control channel as it is, both ways, until the client leaves.
fn carry_bytes(client: &TcpStream, tpm: &Path) -> io::Result<()> {
    let tpm = UnixStream::connect(tpm)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &tpm, &mut &*client);
            let _ = client.shutdown(Shutdown::Both);
        });
        let _ = io::copy(&mut &*client, &mut &tpm);
        let _ = tpm.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// Reads a command or an answer: tag, length of the whole, code, content (TPM 2.0 Part 1, 18.2).
pub(super) fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    from.read_exact(&mut frame)?;
    let content = u64::from(word(&frame, 2))
        .checked_sub(HEADER_BYTES as u64)
        .filter(|content| *content <= FRAME_BYTES_MAX)
        .ok_or(io::ErrorKind::InvalidData)?;
    let read = from.take(content).read_to_end(&mut frame)?;
    if u64::try_from(read) != Ok(content) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

fn code(frame: &[u8]) -> u32 {
    word(frame, 6)
}

/// The big-endian word at `offset`; zero if the frame is shorter.
fn word(frame: &[u8], offset: usize) -> u32 {
    frame
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u32::from_be_bytes(*word))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame's tag, length and code.
const HEADER_BYTES: usize = 10;

/// swtpm's own limit is 4,096.
const FRAME_BYTES_MAX: u64 = 65_536;

/// At some 200 bytes each, 20 MB; 10,000 operations of a test fit.
const FRAMES_MAX: usize = 100_000;
