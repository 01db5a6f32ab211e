//! The messages between `nspawn-run` and its agent in the machine.
//!
//! Both directions are frames on a Unix stream socket: a tag byte, the body's length (32 bits,
//! little endian), the body. Who reads a frame bounds it. The host believes nothing that it reads
//! here, and takes no descriptors: it reads with read(2), which drops what comes along.
//!
//! | tag | from | body |
//! | --- | --- | --- |
//! | [`HELLO`] | host | none; the agent answers with the same |
//! | [`RUN`] | host | a [`Request`]; stdin, stdout and stderr come along as descriptors |
//! | [`RESIZE`] | host | the terminal's rows and columns, 16 bits each |
//! | [`STOP`] | host | seconds, 32 bits: SIGTERM for all that the command has started, SIGKILL after this time |
//! | [`PING`] | host | none: while a command runs; the agent answers with the same |
//! | [`STARTED`] | agent | none: the command runs |
//! | [`EXITED`] | agent | the exit status, one byte |
//! | [`SIGNALED`] | agent | the signal's number, one byte |
//! | [`REFUSED`] | agent | an exit status for the tool, one byte, and why, as text |
//!
//! The host closes the connection to end the command at once.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Asks whether the agent answers.
pub const HELLO: u8 = b'H';
/// Asks for a command. The digit is the version of [`Request`]'s format.
pub const RUN: u8 = b'1';
/// Tells the size of the terminal.
pub const RESIZE: u8 = b'W';
/// Asks whether the agent still looks after the command.
pub const PING: u8 = b'P';
/// Asks the command to end, and sees to it.
pub const STOP: u8 = b'T';
/// The command runs.
pub const STARTED: u8 = b'S';
/// The command ended by itself.
pub const EXITED: u8 = b'X';
/// A signal ended the command.
pub const SIGNALED: u8 = b'K';
/// The command can't be run.
pub const REFUSED: u8 = b'N';

/// The largest request, in bytes: arguments and environment (6 MiB at most, see execve(2)) and a
/// job's script.
pub const MAX_REQUEST: usize = 64 << 20;
/// The largest answer of an agent, in bytes.
pub const MAX_ANSWER: usize = 4096;
/// The length of a frame's tag and length, in bytes.
pub const HEADER: usize = 5;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A command and its arguments.
    Command(Vec<OsString>),
    /// The user's shell: a login shell on a terminal, else one that reads a script from stdin.
    Shell,
    /// The text of a script, run from a file of its own; by these words, if there are any, with the file as the last.
    Script(Vec<u8>, Vec<OsString>),
}

/// A command as the host asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to run.
    pub program: Program,
    /// `NAME=VALUE`, on top of what a login sets.
    pub environment: Vec<OsString>,
    /// A user's name or number; root by default.
    pub user: Option<OsString>,
    /// A directory; the user's home by default.
    pub directory: Option<OsString>,
    /// Rows and columns of the terminal to run it on.
    pub terminal: Option<(u16, u16)>,
    /// Whether to end what the command leaves running in the background.
    pub kill_remaining: bool,
}

impl Request {
    /// The body of a [`RUN`] frame: fields of a tag byte, a length and the value.
    #[must_use]
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

    /// Reads what [`Request::encode`] wrote.
    ///
    /// # Errors
    /// A field that is cut off or unknown, or nothing to run.
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
                    request.terminal =
                        Some(decode_size(value).context("a terminal without a size")?)
                }
                b'k' => request.kill_remaining = true,
                _ => bail!("a request has the unknown field {tag}"),
            }
        }
        request.program = match program {
            None if words.is_empty() => bail!("a request asks for nothing"),
            None => Program::Command(words),
            Some(Program::Script(text, _)) => Program::Script(text, words),
            Some(program) => program,
        };
        Ok(request)
    }
}

/// Rows and columns as a [`RESIZE`] frame has them.
#[must_use]
pub fn encode_size((rows, columns): (u16, u16)) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
    [a, b, c, d]
}

/// Reads what [`encode_size`] wrote; `None` if it is something else.
#[must_use]
pub fn decode_size(body: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = body else { return None };
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

/// A time as a [`STOP`] frame has it.
#[must_use]
pub fn encode_seconds(time: Duration) -> [u8; 4] {
    u32::try_from(time.as_secs())
        .unwrap_or(u32::MAX)
        .to_le_bytes()
}

/// Reads what [`encode_seconds`] wrote; `None` if it is something else.
#[must_use]
pub fn decode_seconds(body: &[u8]) -> Option<Duration> {
    body.try_into()
        .ok()
        .map(|bytes| Duration::from_secs(u32::from_le_bytes(bytes).into()))
}

/// A frame's bytes.
#[must_use]
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&[tag][..], &length.to_le_bytes(), body].concat()
}

/// The tag and the length in a frame's header.
#[must_use]
pub fn parse_header(header: [u8; HEADER]) -> (u8, usize) {
    let [tag, a, b, c, d] = header;
    (tag, u32::from_le_bytes([a, b, c, d]) as usize)
}

/// Takes the first frame out of `bytes`, if it is there as a whole.
///
/// # Errors
/// One with a body of more than `max` bytes.
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

/// Reads a frame with a body of at most `max` bytes; `None` at the end of the stream.
///
/// # Errors
/// A frame that is cut off or too long; the socket's own.
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

/// Reads the body that a header announced.
///
/// # Errors
/// As [`read_frame`].
pub fn read_body(stream: &mut impl Read, length: usize, max: usize) -> io::Result<Vec<u8>> {
    if length > max {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("a message of {length} bytes is too long"),
        ));
    }
    let mut body = Vec::new();
    // Not allocated ahead: a length costs its sender nothing.
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
    fn requests_come_back_as_they_were() {
        for request in requests() {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
    }

    #[test]
    fn broken_requests_are_refused() {
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
    fn frames_are_bounded() {
        let bytes = frame(EXITED, b"12345");
        assert_eq!(
            read_frame(&mut &*bytes, 5).unwrap(),
            Some((EXITED, b"12345".to_vec()))
        );
        assert!(read_frame(&mut &*bytes, 4).is_err());
        assert!(read_frame(&mut &bytes[..7], 5).is_err());
        assert_eq!(read_frame(&mut &b""[..], 5).unwrap(), None);
        let lie = [EXITED, 0xff, 0xff, 0xff, 0x7f];
        assert!(read_frame(&mut &lie[..], usize::MAX).is_err());
    }

    #[test]
    fn frames_are_taken_one_by_one_and_whole() {
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
