//! Tests of the server and the client.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use super::*;

fn receive(text: &str) -> Result<(Request, String)> {
    let mut answer = Vec::new();
    let request = server::receive(&mut text.as_bytes(), &mut answer)?;
    Ok((request, String::from_utf8(answer)?))
}

/// Starts a server that passes on the requests that it receives, and answers each with 206.
fn server() -> (Server, SocketAddr, Receiver<Request>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = channel();
    let answer = move |request: &Request| {
        sender.send(request.clone()).unwrap();
        let body = b"a\r\nb".to_vec();
        let mut response = with_body(StatusCode::PARTIAL_CONTENT, "text/plain", body);
        let status = HeaderValue::from_static("running");
        response.headers_mut().insert("Job-Status", status);
        response
    };
    let server = Server::start(listener, answer, || {});
    (server, address, requests)
}

#[test]
fn bodies_come_by_length_or_in_chunks() {
    let head = "POST /a/b?c=d&e HTTP/1.1\r\nhost: x\r\n";
    let (plain, _) = receive(&format!("{head}content-length: 5\r\n\r\nhello, and more")).unwrap();
    assert_eq!(
        (plain.uri().path(), plain.uri().query(), &**plain.body()),
        ("/a/b", Some("c=d&e"), &b"hello"[..])
    );
    assert_eq!(header(plain.headers(), "Host"), "x");
    let chunks = "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
    let (chunked, answer) = receive(&format!("{head}Expect: 100-continue\r\n{chunks}")).unwrap();
    assert_eq!(
        (&**chunked.body(), &*answer),
        (&b"hello"[..], "HTTP/1.1 100 Continue\r\n\r\n")
    );
    let (empty, answer) = receive("GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((empty.body().len(), &*answer), (0, ""));
}

#[test]
fn incomplete_and_malformed_requests_are_refused() {
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
        assert!(receive(text).is_err(), "{text:?}");
    }
}

#[test]
fn client_and_server_agree() {
    let (_server, address, requests) = server();
    let body = crate::random(3 << 20, 1);
    let request = request_builder()
        .method("PATCH")
        .uri(format!("http://{address}/a?b=c"))
        .header("JOB-TOKEN", "secret")
        .body(body.clone());
    let response = send(request.unwrap()).unwrap();
    let received = requests.recv().unwrap();
    assert_eq!(
        (received.method().as_str(), received.uri().to_string()),
        ("PATCH", "/a?b=c".to_owned())
    );
    assert_eq!(header(received.headers(), "job-token"), "secret");
    assert!(*received.body() == body);
    assert_eq!(
        (
            response.status().as_u16(),
            header(response.headers(), "job-status"),
            &**response.body()
        ),
        (206, "running", &b"a\r\nb"[..])
    );
}

#[test]
fn dropped_server_closes_its_port() {
    let (server, address, _requests) = server();
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn cgi_program_may_set_a_status() {
    let found = from_cgi(b"Status: 404 Not Found\r\nX: y\r\n\r\nbody").unwrap();
    assert_eq!(
        (
            found.status().as_u16(),
            header(found.headers(), "x"),
            &**found.body()
        ),
        (404, "y", &b"body"[..])
    );
    assert_eq!(from_cgi(b"X: y\r\n\r\n").unwrap().status().as_u16(), 200);
    assert!(from_cgi(b"").is_err());
}
