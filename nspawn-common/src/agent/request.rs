//! Request of a command, and its encoding as the body of a [`RUN`](crate::agent::protocol::RUN)
//! frame.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail};

use crate::agent::protocol::{HEADER, decode_size, encode_size, frame, parse_header};

/// Program of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Command and its arguments.
    Command(Vec<OsString>),
    /// Shell of the user: a login shell on a terminal, otherwise one that reads a script from
    /// stdin.
    Shell,
    /// Text of a script, and the command that runs the script's file. Without a command, the file
    /// itself is executed.
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
    /// Let the program fail when it reads its stdin.
    pub has_unreadable_stdin: bool,
    /// Start the systemd of the user before the program.
    pub user_manager: bool,
}

// Tags of the fields of an encoded request.
const ARGUMENT: u8 = b'a';
const SHELL: u8 = b'l';
const SCRIPT: u8 = b's';
const VARIABLE: u8 = b'e';
const USER: u8 = b'u';
const DIRECTORY: u8 = b'd';
const TERMINAL: u8 = b't';
const KILL_REMAINING: u8 = b'k';
const UNREADABLE_STDIN: u8 = b'i';
const USER_MANAGER: u8 = b'm';

impl Request {
    /// Encodes the request as a list of fields, each with the format of a frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut push = |tag: u8, value: &[u8]| body.extend(frame(tag, value));
        let arguments = match &self.program {
            Program::Command(arguments) => arguments.as_slice(),
            Program::Shell => {
                push(SHELL, &[]);
                &[]
            }
            Program::Script(text, arguments) => {
                push(SCRIPT, text);
                arguments
            }
        };
        for argument in arguments {
            push(ARGUMENT, argument.as_bytes());
        }
        for variable in &self.environment {
            push(VARIABLE, variable.as_bytes());
        }
        if let Some(user) = &self.user {
            push(USER, user.as_bytes());
        }
        if let Some(directory) = &self.directory {
            push(DIRECTORY, directory.as_bytes());
        }
        if let Some(size) = self.terminal {
            push(TERMINAL, &encode_size(size));
        }
        if self.kill_remaining {
            push(KILL_REMAINING, &[]);
        }
        if self.has_unreadable_stdin {
            push(UNREADABLE_STDIN, &[]);
        }
        if self.user_manager {
            push(USER_MANAGER, &[]);
        }
        body
    }

    /// Parses the result of [`Request::encode`].
    pub fn decode(mut body: &[u8]) -> Result<Self> {
        let mut arguments = Vec::new();
        let mut program = None;
        let mut request = Self {
            program: Program::Shell,
            environment: Vec::new(),
            user: None,
            directory: None,
            terminal: None,
            kill_remaining: false,
            has_unreadable_stdin: false,
            user_manager: false,
        };
        while !body.is_empty() {
            let (tag, value) = take_field(&mut body).context("a request is cut off")?;
            let text = || OsString::from_vec(value.to_vec());
            match tag {
                ARGUMENT => arguments.push(text()),
                SHELL => program = Some(Program::Shell),
                SCRIPT => program = Some(Program::Script(value.to_vec(), Vec::new())),
                VARIABLE => request.environment.push(text()),
                USER => request.user = Some(text()),
                DIRECTORY => request.directory = Some(text()),
                TERMINAL => {
                    let size = decode_size(value);
                    request.terminal =
                        Some(size.context("a request has a terminal without a size")?);
                }
                KILL_REMAINING => request.kill_remaining = true,
                UNREADABLE_STDIN => request.has_unreadable_stdin = true,
                USER_MANAGER => request.user_manager = true,
                _ => bail!("a request has the unknown field {tag}"),
            }
        }
        request.program = match program {
            None if arguments.is_empty() => bail!("a request has no program"),
            None => Program::Command(arguments),
            Some(Program::Script(text, _)) => Program::Script(text, arguments),
            Some(program) => program,
        };
        Ok(request)
    }
}

// Removes the first field from `body`, and returns its tag and its value.
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
            has_unreadable_stdin: false,
            user_manager: false,
        };
        [
            base.clone(),
            Request {
                program: Program::Command(vec!["".into(), "a b".into()]),
                user: Some("0".into()),
                has_unreadable_stdin: true,
                ..base.clone()
            },
            Request {
                program: Program::Script(b"#!/bin/sh\n".into(), vec!["/bin/x".into(), "".into()]),
                directory: Some("/".into()),
                kill_remaining: true,
                user_manager: true,
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
}
