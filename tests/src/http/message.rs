//! What requests and responses have in common.

use std::fmt::Write as _;
use std::io::{self, BufRead, Error, ErrorKind, Read, Write};

/// No line of a head is longer, in bytes.
const LONGEST_LINE: u64 = 64 << 10;
/// No body is larger, in bytes.
const LARGEST_BODY: u64 = 256 << 20;

/// The headers of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of one, whose name may be in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
    }

    pub(super) fn add(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut all = Vec::new();
        loop {
            let line = read_line(reader)?;
            if line.is_empty() {
                return Ok(Self(all));
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| invalid("a header without a colon"))?;
            all.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }

    /// Whether they say that a body follows.
    pub(super) fn announce_body(&self) -> bool {
        self.is_chunked() || self.get("Content-Length").is_some()
    }

    fn is_chunked(&self) -> bool {
        self.get("Transfer-Encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    /// How long the body is, where that is said.
    fn length(&self) -> io::Result<Option<u64>> {
        let length = self.get("Content-Length").map(str::parse).transpose();
        match length.map_err(|_| invalid("a Content-Length that is none"))? {
            Some(length) if length > LARGEST_BODY => Err(invalid("a body that is too large")),
            length => Ok(length),
        }
    }
}

/// Writes a message whose first line this is.
pub fn write(to: &mut impl Write, first: &str, headers: &Headers, body: &[u8]) -> io::Result<()> {
    let mut head = format!("{first}\r\n");
    // A CGI program's is of no use to others.
    let own = headers
        .0
        .iter()
        .filter(|(name, _)| !["Status", "Content-Length"].contains(&&**name));
    own.for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let _ = write!(
        head,
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    to.write_all(head.as_bytes())?;
    to.write_all(body)?;
    to.flush()
}

/// A message's body. Without a length, it ends with the connection.
pub fn read_body(reader: &mut impl BufRead, headers: &Headers) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if headers.is_chunked() {
        while let size @ 1.. = chunk_size(&read_line(reader)?)? {
            take(reader, size, &mut body)?;
            read_line(reader)?;
        }
        Headers::read(reader)?;
    } else if let Some(length) = headers.length()? {
        take(reader, length, &mut body)?;
    } else {
        reader.take(LARGEST_BODY).read_to_end(&mut body)?;
    }
    Ok(body)
}

fn chunk_size(line: &str) -> io::Result<u64> {
    let size = line.split(';').next().unwrap_or_default();
    u64::from_str_radix(size.trim(), 16).map_err(|_| invalid("a chunk without a size"))
}

fn take(reader: &mut impl BufRead, count: u64, body: &mut Vec<u8>) -> io::Result<()> {
    if count.saturating_add(body.len() as u64) > LARGEST_BODY {
        return Err(invalid("a body that is too large"));
    }
    match reader.take(count).read_to_end(body)? as u64 == count {
        true => Ok(()),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads a line, without its end.
pub fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LONGEST_LINE).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// The error of what is no message.
pub fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why.to_owned())
}
