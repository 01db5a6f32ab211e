//! Requests to GitLab.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use ureq::http::request::Builder;

use crate::http::{Response, request_builder, send};

/// A client of a GitLab server, with the token of one job or runner.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    /// Token of the job or of the runner.
    pub token: String,
}

impl Client {
    /// Creates a client of the server at `url`.
    ///
    /// The program is linked statically, and getaddrinfo(3) needs shared libraries. It therefore
    /// does not look up names.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        let host = url
            .strip_prefix("http://")
            .with_context(|| format!("can't use {url}: the stand-in supports plain HTTP only"))?;
        let host = host.trim_end_matches('/');
        let address = host.parse().or_else(|_| format!("{host}:80").parse());
        let address = address.with_context(|| {
            format!("can't use {url}: the stand-in supports numeric addresses only")
        })?;
        Ok(Self {
            address,
            token: token.to_owned(),
        })
    }

    /// Sends a request without a body to the API.
    pub fn get(&self, target: &str) -> Result<Response> {
        send(self.request("GET", target).body(Vec::new())?)
    }

    /// Sends a request with a body to the API.
    pub fn send(
        &self,
        method: &str,
        target: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Response> {
        let request = self.request(method, target);
        send(request.header("Content-Type", content_type).body(body)?)
    }

    /// Sends a part of a job's log to the API. `range` is the value of `Content-Range`.
    pub fn send_trace(&self, target: &str, range: &str, part: Vec<u8>) -> Result<Response> {
        let request = self
            .request("PATCH", target)
            .header("Content-Type", "text/plain")
            .header("Content-Range", range);
        send(request.body(part)?)
    }

    fn request(&self, method: &str, target: &str) -> Builder {
        request_builder()
            .method(method)
            .uri(format!("http://{}/api/v4/{target}", self.address))
            .header("JOB-TOKEN", &self.token)
            .header("User-Agent", "gitlab-runner stand-in")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numeric_addresses_without_tls_are_accepted() {
        let address = |url| {
            Client::new(url, "x")
                .map(|client| client.address.to_string())
                .ok()
        };
        assert_eq!(
            address("http://198.51.100.7").as_deref(),
            Some("198.51.100.7:80")
        );
        assert_eq!(
            address("http://198.51.100.7:8080/").as_deref(),
            Some("198.51.100.7:8080")
        );
        assert_eq!(
            (
                address("https://198.51.100.7"),
                address("http://gitlab.example")
            ),
            (None, None)
        );
    }
}
