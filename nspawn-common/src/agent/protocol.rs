//! Messages between `nspawn-run` and its agent in the machine, and their encoding.
//!
//! Both directions of a Unix stream socket carry frames: a tag byte, the length of the body (32 bits,
//! little endian), and the body. The reader limits the size of each frame. The host treats everything
//! that it reads as untrusted. It accepts no descriptors: it reads with read(2), which drops them.
//!
//! | tag | sender | body |
//! | --- | --- | --- |
//! | [`HELLO`] | host | none; the agent answers with the same |
//! | [`RUN`] | host | a [`Request`], with stdin, stdout and stderr as descriptors |
//! | [`RESIZE`] | host | rows and columns of the terminal, 16 bits each |
//! | [`STOP`] | host | grace period in seconds, 32 bits, between SIGTERM and SIGKILL for all processes of the command |
//! | [`PING`] | host | none, while a command runs; the agent answers with the same |
//! | [`STARTED`] | agent | none: the command runs |
//! | [`EXITED`] | agent | exit status, one byte |
//! | [`SIGNALED`] | agent | number of a signal, one byte |
//! | [`REFUSED`] | agent | exit status for `nspawn-run`, one byte, and the reason, as text |
//!
//! The host closes the connection to end the command at once.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Checks whether the agent answers.
pub const HELLO: u8 = b'H';
/// Requests a command. The digit is the version of the format of [`Request`].
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

/// Program of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Command and its arguments.
    Command(Vec<OsString>),
    /// Shell of the user: a login shell on a terminal, otherwise one that reads a script from stdin.
    Shell,
    /// Text of a script, and the command that runs the script's file. Without a command the file is executed.
    Script(Vec<u8>, Vec<OsString>),
}

/// Request of the host to run a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Program to run.
    pub program: Program,
    /// Environment variables as `NAME=VALUE`, in addition to those of a login.
    pub environment: Vec<OsString>,
    /// Name or number of the user. The default is root.
    pub user: Option<OsString>,
    /// Working directory. The default is the user's home directory.
    pub directory: Option<OsString>,
    /// Rows and columns of the terminal. Without it the program runs without a terminal.
    pub terminal: Option<(u16, u16)>,
    /// Kill processes that still run in the background after the end of the program.
    pub kill_remaining: bool,
}

impl Request {
    /// Returns the body of a [`RUN`] frame. Each field has a tag byte, a length and a value.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut field = |tag: u8, value: &[u8]| body.extend(frame(tag, value));
        match &self.program {
            Program::Command(words) => words.iter().for_each(|word| field(b'a', word.as_bytes())),
            Program::Shell => field(b'l', &[]),
            Program::Script(text, words) => {
                field(b's', text);
                words.iter().for_each(|word| field(b'a', word.as_bytes()));
            }
        }
        self.environment
            .iter()
            .for_each(|entry| field(b'e', entry.as_bytes()));
        self.user
            .iter()
            .for_each(|user| field(b'u', user.as_bytes()));
        self.directory
            .iter()
            .for_each(|directory| field(b'd', directory.as_bytes()));
        self.terminal
            .iter()
            .for_each(|size| field(b't', &encode_size(*size)));
        if self.kill_remaining {
            field(b'k', &[]);
        }
        body
    }

    /// Parses the result of [`Request::encode`].
    pub fn decode(mut body: &[u8]) -> Result<Self> {
        let (mut words, mut program) = (Vec::new(), None);
        let mut request = Self {
            program: Program::Shell,
            environment: Vec::new(),
            user: None,
            directory: None,
            terminal: None,
            kill_remaining: false,
        };
        while !body.is_empty() {
            let (tag, value) = take_field(&mut body).context("a request is cut off")?;
            let text = || OsString::from_vec(value.to_vec());
            match tag {
                b'a' => words.push(text()),
                b'l' => program = Some(Program::Shell),
                b's' => program = Some(Program::Script(value.to_vec(), Vec::new())),
                b'e' => request.environment.push(text()),
                b'u' => request.user = Some(text()),
                b'd' => request.directory = Some(text()),
                b't' => {
                    request.terminal = Some(
                        decode_size(value).context("a request has a terminal without a size")?,
                    )
                }
                b'k' => request.kill_remaining = true,
                _ => bail!("a request has the unknown field {tag}"),
            }
        }
        request.program = match program {
            None if words.is_empty() => bail!("a request has no program"),
            None => Program::Command(words),
            Some(Program::Script(text, _)) => Program::Script(text, words),
            Some(program) => program,
        };
        Ok(request)
    }
}

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

fn take_field<'a>(body: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (header, rest) = body.split_first_chunk::<HEADER>()?;
    let (tag, length) = parse_header(*header);
    let (value, rest) = rest.split_at_checked(length)?;
    *body = rest;
    Some((tag, value))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn requests() -> [Request; 3] {
        let base = Request {
            program: Program::Shell,
            environment: vec![OsStr::from_bytes(b"X=\xff\n").into(), "EMPTY=".into()],
            user: None,
            directory: None,
            terminal: Some((24, 80)),
            kill_remaining: false,
        };
        [
            base.clone(),
            Request {
                program: Program::Command(vec!["".into(), "a b".into()]),
                user: Some("0".into()),
                ..base.clone()
            },
            Request {
                program: Program::Script(b"#!/bin/sh\n".into(), vec!["/bin/x".into(), "".into()]),
                directory: Some("/".into()),
                kill_remaining: true,
                terminal: None,
                ..base
            },
        ]
    }

    #[test]
    fn decoded_request_equals_the_encoded_one() {
        for request in requests() {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        for request in requests() {
            let body = request.encode();
            // A cut between fields may leave a whole, shorter request; none may panic.
            (0..body.len()).for_each(|cut| drop(Request::decode(&body[..cut])));
            assert!(Request::decode(&body[..body.len() - 1]).is_err());
        }
        for body in [
            &b""[..],
            b"z\0\0\0\0",
            b"a\xff\xff\xff\xff",
            b"t\x01\0\0\0x",
        ] {
            assert!(Request::decode(body).is_err(), "{body:?}");
        }
    }

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
