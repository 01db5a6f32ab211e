//! HTTP between the stand-ins: a server for one request per connection, and a client.

mod server;
#[cfg(test)]
mod tests;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ureq::Agent;
use ureq::http::request::Builder;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use server::Server;

/// A request with its whole body.
pub type Request = ureq::http::Request<Vec<u8>>;
/// A response with its whole body.
pub type Response = ureq::http::Response<Vec<u8>>;

/// Time limit for each read and each write.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the client's connection to the server.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of a body, in bytes.
const MAX_BODY: u64 = 256 << 20;
/// Maximum number of headers.
const MAX_HEADERS: usize = 100;

/// Returns a builder of a request.
pub fn request_builder() -> Builder {
    ureq::http::Request::builder()
}

/// Sends a request to an `http:` URL, and returns the response, whatever its status is.
pub fn send(request: Request) -> Result<Response> {
    let url = request.uri().to_string();
    exchange(request).with_context(|| format!("can't use {url}"))
}

fn exchange(request: Request) -> Result<Response> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .max_idle_connections(0)
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_per_read(Some(SILENCE_LIMIT))
        .timeout_per_write(Some(SILENCE_LIMIT))
        .build()
        .into();
    let (head, mut body) = agent.run(request)?.into_parts();
    let body = body.with_config().limit(MAX_BODY).read_to_vec()?;
    Ok(Response::from_parts(head, body))
}

/// Returns the value of a header, or an empty string if it is missing.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

/// Returns a response without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

/// Returns a response with a body of this content type.
pub fn with_body(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = empty(status);
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert("Content-Type", value);
    *response.body_mut() = body;
    response
}

/// Parses the output of a CGI program (RFC 3875).
pub fn from_cgi(output: &[u8]) -> Result<Response> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let httparse::Status::Complete((length, fields)) =
        httparse::parse_headers(output, &mut fields)?
    else {
        bail!("the headers of the CGI program are incomplete");
    };
    let mut response = Response::default();
    *response.headers_mut() = to_header_map(fields)?;
    if let Some(status) = response.headers_mut().remove("Status") {
        *response.status_mut() = status.to_str()?.get(..3).unwrap_or_default().parse()?;
    }
    *response.body_mut() = output[length..].to_vec();
    Ok(response)
}

fn to_header_map(fields: &[httparse::Header]) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for field in fields {
        let value = HeaderValue::from_bytes(field.value)?;
        headers.append(HeaderName::from_str(field.name)?, value);
    }
    Ok(headers)
}
