//! Programs that run beside the demo and end with it.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// A running program, whose output goes to a log file. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a program; `name` names its log file in `folder`, to which it appends.
    ///
    /// # Errors
    ///
    /// If the program is not there or the log cannot be written.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.log"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// Asks the program to end, and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not end in time; it is killed then.
    pub async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match timeout(STOP_TIME_MAX, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not stop within {STOP_TIME_MAX:?}", self.name),
        }
    }

    /// Ends the program without a warning, like a power cut.
    ///
    /// # Errors
    ///
    /// If it had ended before.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// If it does not within `limit`.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let status = timeout(limit, self.child.wait()).await;
        Ok(status.with_context(|| format!("{} still runs after {limit:?}", self.name))??)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self
            .child
            .id()
            .with_context(|| format!("{} ended before", self.name))?;
        kill(Pid::from_raw(i32::try_from(id)?), signal)?;
        Ok(())
    }
}

/// Runs a program to its end, with `input` on its standard input.
///
/// # Errors
///
/// If it is not there, or does not end within a minute.
pub async fn run(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is fine.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = timeout(RUN_TIME_MAX, child.wait_with_output()).await;
    Ok(output.with_context(|| format!("still runs after {RUN_TIME_MAX:?}"))??)
}

/// Standard output of a program that must succeed.
///
/// # Errors
///
/// What the program said, if it failed.
pub fn success(what: &str, output: &Output) -> anyhow::Result<String> {
    ensure!(
        output.status.success(),
        "{what} failed with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

/// A program of this project, beside the running one.
///
/// # Errors
///
/// If it was not built.
pub fn ours(name: &str) -> anyhow::Result<Command> {
    let exe = std::env::current_exe()?;
    let found = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    let path =
        found.with_context(|| format!("{name} is not built; cargo build --workspace --bins"))?;
    Ok(Command::new(path))
}

/// The Python with the packages of `requirements.txt`.
///
/// # Errors
///
/// If `make setup` has not made it.
pub fn python(script: &str) -> anyhow::Result<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../.venv/bin/python");
    ensure!(python.exists(), "there is no .venv; make setup");
    let mut command = Command::new(python);
    command.arg(root.join("python").join(script));
    Ok(command)
}

/// Waits until `condition` holds, for at most `limit`; `what` names it in the error.
///
/// # Errors
///
/// If time runs out or the condition fails.
pub async fn until<F>(
    what: impl AsRef<OsStr>,
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let give_up = Instant::now() + limit;
    while !condition().await? {
        if give_up < Instant::now() {
            bail!("waited {limit:?} for: {}", what.as_ref().to_string_lossy());
        }
        // Files and other programs' sockets cannot be awaited.
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Where a log is, for error messages.
#[must_use]
pub fn log_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// Longer than any of ours allows itself.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

const RUN_TIME_MAX: Duration = Duration::from_secs(90);

const POLL_INTERVAL: Duration = Duration::from_millis(50);
