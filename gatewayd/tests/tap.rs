//! `gatewayctl tap` as a shell meets it: in a pipe, and with Ctrl-C.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn a_pipe_that_closes_is_success_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let mut tap = tap(&folder.path().join("control.sock"), usize::MAX);
    first_line(&mut tap);
    drop(tap.stdout.take());

    let mut said = String::new();
    let mut prose = tap.stderr.take().unwrap();
    prose.read_to_string(&mut said).unwrap();
    assert_eq!((tap.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn ctrl_c_ends_it_with_130() {
    let folder = tempfile::tempdir().unwrap();
    let mut tap = tap(&folder.path().join("control.sock"), 1);
    first_line(&mut tap);

    let process = Pid::from_raw(tap.id().try_into().unwrap());
    kill(process, Signal::SIGINT).unwrap();

    assert_eq!(tap.wait().unwrap().code(), Some(130));
}

#[test]
fn without_a_daemon_it_says_so_and_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_gatewayctl"))
        .args(["--socket", "/nonexistent/control.sock", "tap"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: cannot reach the daemon"), "{said}");
    assert!(said.contains("\ndo: systemctl status gatewayd"), "{said}");
}

/// Runs `tap` against a daemon that sends so many readings, and then holds the line.
fn tap(socket: &Path, readings: usize) -> Child {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 1024];
        let _ = stream.read(&mut asked).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        for _ in 0..readings {
            let chunk = format!("{:x}\r\n{LINE}\n\r\n", LINE.len() + 1);
            if stream.write_all(chunk.as_bytes()).is_err() {
                return;
            }
        }
        // Until the other side ends.
        let _ = stream.read(&mut asked);
    });
    Command::new(env!("CARGO_BIN_EXE_gatewayctl"))
        .arg("--socket")
        .arg(socket)
        .args(["tap", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads one line byte by byte, so that nothing behind it is taken.
fn first_line(tap: &mut Child) {
    let mut line = String::new();
    let stdout = tap.stdout.as_mut().unwrap();
    BufReader::with_capacity(1, stdout)
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.trim_end(), LINE);
}

const LINE: &str = r#"{"schema":"tap/1","sensor":"climate"}"#;
