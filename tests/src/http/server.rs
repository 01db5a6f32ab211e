//! A server that answers one request per connection.
//!
//! It is written by hand, on the parser `httparse`, because the small synchronous library for
//! servers does not suffice. tiny_http 0.12 takes a chunked body that ends too early for a complete
//! one. It aborts the process on an absurd `Content-Length`, because it allocates what is left of
//! the body (`EqualReader::drop`). It has no time limit for clients that fall silent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket;
use ureq::http::HeaderMap;

use super::{MAX_BODY, MAX_HEADERS, Request, Response, SILENCE_LIMIT, header, to_header_map};

/// Maximum size of a request line with all headers, in bytes.
const MAX_HEAD: u64 = 256 << 10;
/// Maximum size of a line in a chunked body, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// A server that answers each request in a thread of its own. It stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on `listener`, which sends what `answer` returns.
    ///
    /// After each response it calls `after_response`.
    pub fn start(
        listener: TcpListener,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
        after_response: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let listener = Arc::new(listener);
        let accepting = Arc::clone(&listener);
        let callbacks = Arc::new((answer, after_response));
        let acceptor = thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else { return };
                let callbacks = Arc::clone(&callbacks);
                thread::spawn(move || {
                    let (answer, after_response) = &*callbacks;
                    // A client may end in the middle, because tests kill it. This is no error of
                    // the server.
                    let _ = serve(&stream, answer);
                    let _ = stream.shutdown(Shutdown::Both);
                    after_response();
                });
            }
        });
        Self {
            listener,
            acceptor: Some(acceptor),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The accept(2) of the other thread returns with an error when its socket is shut down.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn serve(mut stream: &TcpStream, answer: &impl Fn(&Request) -> Response) -> Result<()> {
    stream.set_read_timeout(Some(SILENCE_LIMIT))?;
    stream.set_write_timeout(Some(SILENCE_LIMIT))?;
    let request = receive(&mut BufReader::new(stream), &mut stream)?;
    write_response(&mut stream, &answer(&request))
}

/// Reads a request with its body. Sends `100 Continue` to `client` if the request expects it.
pub(super) fn receive(reader: &mut impl BufRead, client: &mut impl Write) -> Result<Request> {
    let mut request = parse_head(&read_head(reader)?)?;
    if request.headers().contains_key("Expect") {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    *request.body_mut() = read_body(reader, request.headers())?;
    Ok(request)
}

/// Reads up to the empty line that ends the headers.
fn read_head(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut reader = reader.take(MAX_HEAD);
    loop {
        let start = head.len();
        reader.read_until(b'\n', &mut head)?;
        ensure!(head.ends_with(b"\n"), "the headers are incomplete");
        if head[start..].trim_ascii().is_empty() {
            return Ok(head);
        }
    }
}

fn parse_head(head: &[u8]) -> Result<Request> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut fields);
    if !parsed.parse(head)?.is_complete() {
        bail!("the headers are incomplete");
    }
    let mut request = Request::default();
    *request.method_mut() = parsed.method.context("no method")?.parse()?;
    *request.uri_mut() = parsed.path.context("no target")?.parse()?;
    *request.headers_mut() = to_header_map(parsed.headers)?;
    Ok(request)
}

fn read_body(reader: &mut impl BufRead, headers: &HeaderMap) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(headers, "Transfer-Encoding").eq_ignore_ascii_case("chunked") {
        while let size @ 1.. = read_chunk_size(reader)? {
            read_exactly(reader, size, &mut body)?;
            read_line(reader)?;
        }
        while !read_line(reader)?.is_empty() {}
    } else if let Some(length) = headers.get("Content-Length") {
        read_exactly(reader, length.to_str()?.parse()?, &mut body)?;
    }
    Ok(body)
}

fn read_chunk_size(reader: &mut impl BufRead) -> Result<u64> {
    let line = read_line(reader)?;
    let size = line.split(';').next().unwrap_or_default();
    u64::from_str_radix(size.trim(), 16).context("a chunk without a size")
}

fn read_exactly(reader: &mut impl BufRead, count: u64, body: &mut Vec<u8>) -> Result<()> {
    let total = count.saturating_add(body.len() as u64);
    ensure!(total <= MAX_BODY, "the body is too large");
    reader.take(count).read_to_end(body)?;
    ensure!(body.len() as u64 == total, "the body is incomplete");
    Ok(())
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.take(MAX_LINE).read_line(&mut line)?;
    let line = line.strip_suffix('\n').context("a line is incomplete")?;
    Ok(line.trim_end_matches('\r').to_owned())
}

fn write_response(client: &mut impl Write, response: &Response) -> Result<()> {
    let mut head = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        // The length that a CGI program gives is replaced.
        if name != "Content-Length" {
            write!(head, "{name}: ")?;
            head.extend(value.as_bytes());
            head.extend(b"\r\n");
        }
    }
    let length = response.body().len();
    write!(
        head,
        "Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    client.write_all(&head)?;
    client.write_all(response.body())?;
    client.flush()?;
    Ok(())
}
