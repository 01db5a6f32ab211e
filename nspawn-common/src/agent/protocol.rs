//! Messages between `nspawn-run` and its agent in the machine, and their encoding.
//!
//! Both directions of a Unix stream socket carry frames: a tag byte, the length of the body (32
//! bits, little endian), and the body. The reader limits the size of each frame. The host treats
//! everything that it reads as untrusted. It accepts no descriptors: it reads with read(2), which
//! drops them.
//!
//! | tag | sender | body |
//! | --- | --- | --- |
//! | [`HELLO`] | host | none; the agent answers with the same |
//! | [`RUN`] | host | a [`Request`](crate::agent::request::Request), with stdin, stdout and stderr as descriptors: pipes, or an empty file as stdin in place of /dev/null |
//! | [`RESIZE`] | host | rows and columns of the terminal, 16 bits each |
//! | [`STOP`] | host | grace period in seconds, 32 bits, between SIGTERM and SIGKILL for all processes of the command |
//! | [`PING`] | host | none, while a command runs; the agent answers with the same |
//! | [`STARTED`] | agent | none: the command runs |
//! | [`EXITED`] | agent | exit status, one byte |
//! | [`SIGNALED`] | agent | number of a signal, one byte |
//! | [`REFUSED`] | agent | exit status for `nspawn-run`, one byte, and the reason, as text |
//!
//! The host closes the connection to end the command at once.

use std::io::{self, ErrorKind, Read};
use std::time::Duration;

use anyhow::{Result, bail};

/// Checks whether the agent answers.
pub const HELLO: u8 = b'H';
/// Requests a command. The digit is the version of the format of the request.
pub const RUN: u8 = b'1';
/// Sets the size of the terminal.
pub const RESIZE: u8 = b'W';
/// Checks whether the agent still supervises the command.
pub const PING: u8 = b'P';
/// Ends the command, first by SIGTERM and then by SIGKILL.
pub const STOP: u8 = b'T';
/// Reports that the command runs.
pub const STARTED: u8 = b'S';
/// Reports that the command has exited.
pub const EXITED: u8 = b'X';
/// Reports that a signal has ended the command.
pub const SIGNALED: u8 = b'K';
/// Reports that the command can't be run.
pub const REFUSED: u8 = b'N';

/// Maximum size of a request, in bytes.
///
/// It has room for arguments and environment (6 MiB at most, see execve(2)) and a job's script.
pub const MAX_REQUEST: usize = 64 << 20;
/// Maximum size of an agent's answer, in bytes.
pub const MAX_ANSWER: usize = 4096;
/// Length of the header of a frame, its tag and its length, in bytes.
pub const HEADER: usize = 5;

/// Returns the body of a [`RESIZE`] frame.
pub fn encode_size((rows, columns): (u16, u16)) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
    [a, b, c, d]
}

/// Parses the result of [`encode_size`]. Returns `None` if it is malformed.
pub fn decode_size(body: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = body else { return None };
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

/// Returns the body of a [`STOP`] frame.
pub fn encode_seconds(time: Duration) -> [u8; 4] {
    u32::try_from(time.as_secs())
        .unwrap_or(u32::MAX)
        .to_le_bytes()
}

/// Parses the result of [`encode_seconds`]. Returns `None` if it is malformed.
pub fn decode_seconds(body: &[u8]) -> Option<Duration> {
    body.try_into()
        .ok()
        .map(|bytes| Duration::from_secs(u32::from_le_bytes(bytes).into()))
}

/// Returns the bytes of a frame.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&[tag][..], &length.to_le_bytes(), body].concat()
}

/// Returns the tag and the length in the header of a frame.
pub fn parse_header(header: [u8; HEADER]) -> (u8, usize) {
    let [tag, a, b, c, d] = header;
    (tag, u32::from_le_bytes([a, b, c, d]) as usize)
}

/// Removes the first frame from `bytes`, if it is complete.
///
/// Fails if its body is longer than `max` bytes.
pub fn take_frame(bytes: &mut Vec<u8>, max: usize) -> Result<Option<(u8, Vec<u8>)>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let (tag, length) = parse_header(*header);
    if length > max {
        bail!("its agent sent a message of {length} bytes, which is too long");
    }
    let Some(body) = rest.get(..length).map(<[u8]>::to_vec) else {
        return Ok(None);
    };
    bytes.drain(..HEADER + length);
    Ok(Some((tag, body)))
}

/// Reads a frame. Returns `None` at the end of the stream.
///
/// Fails if the frame is cut off, or if its body is longer than `max` bytes.
pub fn read_frame(stream: &mut impl Read, max: usize) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut header = [0; HEADER];
    match stream.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let (tag, length) = parse_header(header);
    read_body(stream, length, max).map(|body| Some((tag, body)))
}

/// Reads the body of a frame whose header has this `length`: see [`read_frame`].
pub fn read_body(stream: &mut impl Read, length: usize, max: usize) -> io::Result<Vec<u8>> {
    if length > max {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("a message of {length} bytes is too long"),
        ));
    }
    let mut body = Vec::new();
    // The buffer grows with the data. Allocating `length` bytes at once would let a peer that sends
    // nothing else occupy memory.
    stream.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        Err(ErrorKind::UnexpectedEof.into())
    } else {
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_cut_frames_are_refused() {
        let bytes = frame(EXITED, b"12345");
        assert_eq!(
            read_frame(&mut &*bytes, 5).unwrap(),
            Some((EXITED, b"12345".to_vec()))
        );
        assert!(read_frame(&mut &*bytes, 4).is_err());
        assert!(read_frame(&mut &bytes[..7], 5).is_err());
        assert_eq!(read_frame(&mut &b""[..], 5).unwrap(), None);
        let oversized = [EXITED, 0xff, 0xff, 0xff, 0x7f];
        assert!(read_frame(&mut &oversized[..], usize::MAX).is_err());
    }

    #[test]
    fn complete_frames_are_removed_one_by_one() {
        let mut bytes = [frame(STARTED, b""), frame(EXITED, b"1")].concat();
        bytes.truncate(bytes.len() - 1);
        assert_eq!(
            take_frame(&mut bytes, 5).unwrap(),
            Some((STARTED, Vec::new()))
        );
        assert_eq!(take_frame(&mut bytes, 5).unwrap(), None);
        bytes.push(b'1');
        assert_eq!(
            take_frame(&mut bytes, 5).unwrap(),
            Some((EXITED, b"1".to_vec()))
        );
        assert_eq!(take_frame(&mut bytes, 5).unwrap(), None);
        assert!(take_frame(&mut frame(EXITED, b"123456"), 5).is_err());
    }
}
