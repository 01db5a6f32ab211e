//! As much of HTTP/1.1 as GitLab Runner, git and the tests speak: one request for each connection.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the other side may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it may take to be there.
const CONNECTING: Duration = Duration::from_secs(10);
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
        self.0.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut all = Vec::new();
        loop {
            let line = read_line(reader)?;
            if line.is_empty() {
                return Ok(Self(all));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header without a colon"))?;
            all.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }

    fn is_chunked(&self) -> bool {
        self.get("Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    fn length(&self) -> io::Result<Option<u64>> {
        let length = self.get("Content-Length").map(str::parse).transpose();
        match length.map_err(|_| invalid("a Content-Length that is none"))? {
            Some(length) if length > LARGEST_BODY => Err(invalid("a body that is too large")),
            length => Ok(length),
        }
    }
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// What stands behind the path's `?`.
    pub query: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
}

impl Request {
    /// One without a body.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), ..Self::default() }
    }

    /// Gives it a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.0.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives it a body.
    #[must_use]
    pub fn body(self, kind: &str, body: Vec<u8>) -> Self {
        Self { body, ..self }.header("Content-Type", kind)
    }

    /// Reads one, on the server's side.
    ///
    /// # Errors
    /// The connection's; what comes is no request.
    pub fn read(stream: &TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        Self::read_from(&mut BufReader::new(stream), &mut &*stream)
    }

    // `answer` is for the one thing that is said before the body comes.
    fn read_from(reader: &mut impl BufRead, answer: &mut impl Write) -> io::Result<Self> {
        let line = read_line(reader)?;
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(invalid("no request line"));
        };
        let headers = Headers::read(reader)?;
        if headers.get("Expect").is_some() {
            answer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body =
            if headers.is_chunked() || headers.length()?.is_some() { read_body(reader, &headers)? } else { Vec::new() };
        Ok(Self { headers, body, ..Self::new(method, target) })
    }

    /// Sends it, on the client's side, and returns the answer.
    ///
    /// # Errors
    /// The connection's; what comes back is no answer.
    pub fn send(&self, to: SocketAddr) -> io::Result<Response> {
        let mut stream = TcpStream::connect_timeout(&to, CONNECTING)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let target = if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) };
        let own = self.clone().header("Host", &to.to_string());
        write_message(&mut stream, &format!("{} {target} HTTP/1.1", self.method), &own.headers, &self.body)?;
        Response::read_from(&mut BufReader::new(stream))
    }
}

/// What a server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// 200, …
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
}

impl Response {
    /// One without a body.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Gives it a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.0.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives it a body.
    #[must_use]
    pub fn body(self, kind: &str, body: Vec<u8>) -> Self {
        Self { body, ..self }.header("Content-Type", kind)
    }

    /// One that a CGI program (RFC 3875) has written.
    ///
    /// # Errors
    /// It has written something else.
    pub fn from_cgi(output: &[u8]) -> io::Result<Self> {
        let mut reader = output;
        let headers = Headers::read(&mut reader)?;
        let status = headers.get("Status").and_then(|status| status.get(..3)?.parse().ok()).unwrap_or(200);
        Ok(Self { status, headers, body: reader.to_vec() })
    }

    /// Sends it, on the server's side.
    ///
    /// # Errors
    /// The connection's.
    pub fn send(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_write_timeout(Some(SILENCE))?;
        write_message(&mut stream, &format!("HTTP/1.1 {} .", self.status), &self.headers, &self.body)
    }

    fn read_from(reader: &mut impl BufRead) -> io::Result<Self> {
        let line = read_line(reader)?;
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let status = status.ok_or_else(|| invalid("no status line"))?;
        let headers = Headers::read(reader)?;
        Ok(Self { status, body: read_body(reader, &headers)?, headers })
    }
}

fn write_message(to: &mut impl Write, first: &str, headers: &Headers, body: &[u8]) -> io::Result<()> {
    let mut head = format!("{first}\r\n");
    // A CGI program's is of no use to others.
    let own = headers.0.iter().filter(|(name, _)| !["Status", "Content-Length"].contains(&&**name));
    own.for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let _ = write!(head, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    to.write_all(head.as_bytes())?;
    to.write_all(body)?;
    to.flush()
}

// Without a length, it ends with the connection.
fn read_body(reader: &mut impl BufRead, headers: &Headers) -> io::Result<Vec<u8>> {
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
    if body.len() as u64 + count > LARGEST_BODY {
        return Err(invalid("a body that is too large"));
    }
    match reader.take(count).read_to_end(body)? as u64 == count {
        true => Ok(()),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LONGEST_LINE).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> io::Result<(Request, String)> {
        let mut answer = Vec::new();
        let request = Request::read_from(&mut text.as_bytes(), &mut answer)?;
        Ok((request, String::from_utf8(answer).unwrap()))
    }

    #[test]
    fn bodies_come_by_length_or_in_chunks() {
        let head = "POST /a/b?c=d&e HTTP/1.1\r\nhost: x\r\n";
        let (plain, _) = request(&format!("{head}content-length: 5\r\n\r\nhello, and more")).unwrap();
        assert_eq!((&*plain.path, &*plain.query, &*plain.body), ("/a/b", "c=d&e", &b"hello"[..]));
        assert_eq!(plain.headers.get("Host"), Some("x"));
        let chunks = "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
        let (chunked, answer) = request(&format!("{head}Expect: 100-continue\r\n{chunks}")).unwrap();
        assert_eq!((&*chunked.body, &*answer), (&b"hello"[..], "HTTP/1.1 100 Continue\r\n\r\n"));
        let (empty, answer) = request("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((empty.body.len(), &*answer), (0, ""));
    }

    #[test]
    fn what_is_cut_off_or_none_is_refused() {
        for text in [
            "",
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nx\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell",
            "GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello",
            "GET / HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        ] {
            assert!(request(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let response = Response::new(206).header("Job-Status", "running").body("text/plain", b"a\r\nb".to_vec());
        let mut bytes = Vec::new();
        write_message(&mut bytes, "HTTP/1.1 206 .", &response.headers, &response.body).unwrap();
        let read = Response::read_from(&mut &*bytes).unwrap();
        assert_eq!((read.status, read.headers.get("job-status"), &read.body), (206, Some("running"), &response.body));
    }

    #[test]
    fn a_cgi_program_may_tell_a_status() {
        let found = Response::from_cgi(b"Status: 404 Not Found\r\nX: y\r\n\r\nbody").unwrap();
        assert_eq!((found.status, found.headers.get("x"), &*found.body), (404, Some("y"), &b"body"[..]));
        assert_eq!(Response::from_cgi(b"X: y\r\n\r\n").unwrap().status, 200);
        assert!(Response::from_cgi(b"").is_err());
    }
}
