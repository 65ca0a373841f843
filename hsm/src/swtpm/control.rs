//! What a test asks of a software TPM past the bus.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Pulls the reset line, over the control socket (`swtpm_ioctl(8)`: `-i`).
pub(super) fn reset(control_socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(control_socket)?;
    // Command and flags; the answer is one word, a TPM_RESULT.
    stream.write_all(&[CMD_INIT.to_be_bytes(), [0; 4]].concat())?;
    let mut result = [0; 4];
    stream.read_exact(&mut result)?;
    match u32::from_be_bytes(result) {
        0 => Ok(()),
        code => Err(io::Error::other(format!("swtpm refused: {code:#x}"))),
    }
}

/// Handles of the keys and sessions that are in the TPM's memory now, persistent ones left out.
pub(super) fn loaded(data_socket: &Path) -> io::Result<Vec<u32>> {
    let mut handles = Vec::new();
    for first in [SESSIONS, OBJECTS] {
        let mut stream = UnixStream::connect(data_socket)?;
        let words = [CAP_HANDLES, first, COUNT_MAX].map(u32::to_be_bytes);
        stream.write_all(&[&GET_CAPABILITY[..], &words.concat()].concat())?;
        let answer = super::bus::read_frame(&mut stream)?;
        let found = handles_of(&answer).ok_or(io::ErrorKind::InvalidData)?;
        handles.extend(found);
    }
    Ok(handles)
}

/// The handles in an answer to `TPM2_GetCapability`: header, more to come, kind, count, handles
/// (TPM 2.0 Part 3, 30.2). A TPM that was reset and not started up answers with an error, and holds
/// nothing.
fn handles_of(answer: &[u8]) -> Option<Vec<u32>> {
    let code = answer.get(6..)?.first_chunk()?;
    if u32::from_be_bytes(*code) != 0 {
        return Some(Vec::new());
    }
    let (words, []) = answer.get(HEAD_BYTES..)?.as_chunks() else {
        return None;
    };
    Some(words.iter().map(|word| u32::from_be_bytes(*word)).collect())
}

/// `CMD_INIT` of swtpm's control channel (`swtpm/tpm_ioctl.h`).
const CMD_INIT: u32 = 2;

/// Tag, length and code of `TPM2_GetCapability`.
const GET_CAPABILITY: [u8; 10] = [0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7A];
/// `TPM_CAP_HANDLES` (Part 2, 6.12).
const CAP_HANDLES: u32 = 1;

// The ranges of loaded sessions and transient objects (Part 2, 7.2).
const SESSIONS: u32 = 0x0200_0000;
const OBJECTS: u32 = 0x8000_0000;

/// More than a software TPM holds of either.
const COUNT_MAX: u32 = 16;

/// Header, more to come, kind, count.
const HEAD_BYTES: usize = 10 + 1 + 4 + 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_read_as_the_specification_lays_them_out() {
        let answer = |text: &str| handles_of(&hex::decode(text).unwrap());
        // As swtpm 0.7.1 gives them with two sessions loaded.
        let two = "80010000001b000000000000000001000000020200000002000001";
        assert_eq!(answer(two), Some(vec![0x0200_0000, 0x0200_0001]));
        assert_eq!(answer("80010000000a00000100"), Some(Vec::new()));
        assert_eq!(answer(&two[..50]), None);
        assert_eq!(answer("8001"), None);
    }
}
