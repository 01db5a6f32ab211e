//! As much of HTTP/1.1 as GitLab Runner, git and the tests speak: one request for each connection.

mod message;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub use message::Headers;
use message::{invalid, read_body, read_line};

/// How long the other side may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it may take to be there.
const CONNECTING: Duration = Duration::from_secs(10);

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
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            ..Self::default()
        }
    }

    /// Gives it a header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        Self {
            headers: self.headers.add(name, value),
            ..self
        }
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
        let body = if headers.announce_body() {
            read_body(reader, &headers)?
        } else {
            Vec::new()
        };
        Ok(Self {
            headers,
            body,
            ..Self::new(method, target)
        })
    }

    /// Sends it, on the client's side, and returns the answer.
    ///
    /// # Errors
    /// The connection's; what comes back is no answer.
    pub fn send(&self, to: SocketAddr) -> io::Result<Response> {
        let mut stream = TcpStream::connect_timeout(&to, CONNECTING)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let target = if self.query.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{}", self.path, self.query)
        };
        let headers = self.headers.clone().add("Host", &to.to_string());
        message::write(
            &mut stream,
            &format!("{} {target} HTTP/1.1", self.method),
            &headers,
            &self.body,
        )?;
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
        Self {
            status,
            ..Self::default()
        }
    }

    /// Gives it a header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        Self {
            headers: self.headers.add(name, value),
            ..self
        }
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
        let status = headers
            .get("Status")
            .and_then(|status| status.get(..3)?.parse().ok())
            .unwrap_or(200);
        Ok(Self {
            status,
            headers,
            body: reader.to_vec(),
        })
    }

    /// Sends it, on the server's side.
    ///
    /// # Errors
    /// The connection's.
    pub fn send(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_write_timeout(Some(SILENCE))?;
        message::write(
            &mut stream,
            &format!("HTTP/1.1 {} .", self.status),
            &self.headers,
            &self.body,
        )
    }

    fn read_from(reader: &mut impl BufRead) -> io::Result<Self> {
        let line = read_line(reader)?;
        let status = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5)?.parse().ok());
        let status = status.ok_or_else(|| invalid("no status line"))?;
        let headers = Headers::read(reader)?;
        Ok(Self {
            status,
            body: read_body(reader, &headers)?,
            headers,
        })
    }
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
        let (plain, _) =
            request(&format!("{head}content-length: 5\r\n\r\nhello, and more")).unwrap();
        assert_eq!(
            (&*plain.path, &*plain.query, &*plain.body),
            ("/a/b", "c=d&e", &b"hello"[..])
        );
        assert_eq!(plain.headers.get("Host"), Some("x"));
        let chunks = "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
        let (chunked, answer) =
            request(&format!("{head}Expect: 100-continue\r\n{chunks}")).unwrap();
        assert_eq!(
            (&*chunked.body, &*answer),
            (&b"hello"[..], "HTTP/1.1 100 Continue\r\n\r\n")
        );
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
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\nffffffffffffffff\r\n",
        ] {
            assert!(request(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let response = Response::new(206)
            .header("Job-Status", "running")
            .body("text/plain", b"a\r\nb".to_vec());
        let mut bytes = Vec::new();
        message::write(
            &mut bytes,
            "HTTP/1.1 206 .",
            &response.headers,
            &response.body,
        )
        .unwrap();
        let read = Response::read_from(&mut &*bytes).unwrap();
        assert_eq!(
            (read.status, read.headers.get("job-status"), &read.body),
            (206, Some("running"), &response.body)
        );
    }

    #[test]
    fn a_cgi_program_may_tell_a_status() {
        let found = Response::from_cgi(b"Status: 404 Not Found\r\nX: y\r\n\r\nbody").unwrap();
        assert_eq!(
            (found.status, found.headers.get("x"), &*found.body),
            (404, Some("y"), &b"body"[..])
        );
        assert_eq!(Response::from_cgi(b"X: y\r\n\r\n").unwrap().status, 200);
        assert!(Response::from_cgi(b"").is_err());
    }
}
