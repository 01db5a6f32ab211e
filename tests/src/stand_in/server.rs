//! What it says to GitLab.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::http::{Request, Response};

/// A GitLab, as one job or runner sees it.
#[derive(Clone, Debug)]
pub struct Server {
    address: SocketAddr,
    /// Of the job, or of the runner.
    pub token: String,
}

impl Server {
    /// The one at `url`.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        let host = url
            .strip_prefix("http://")
            .with_context(|| format!("{url}: the stand-in speaks plain HTTP alone"))?;
        let host = host.trim_end_matches('/');
        let address = host.parse().or_else(|_| format!("{host}:80").parse());
        let address = address
            .with_context(|| format!("{url}: the stand-in knows numeric addresses alone"))?;
        Ok(Self {
            address,
            token: token.to_owned(),
        })
    }

    /// Asks it for something of its API.
    pub fn ask(&self, method: &str, target: &str, kind: &str, body: Vec<u8>) -> Result<Response> {
        self.send(Request::new(method, &format!("/api/v4/{target}")).body(kind, body))
    }

    /// The same, with headers of its own.
    pub fn send(&self, request: Request) -> Result<Response> {
        let path = request.path.clone();
        let request = request
            .header("JOB-TOKEN", &self.token)
            .header("User-Agent", "gitlab-runner stand-in");
        request
            .send(self.address)
            .with_context(|| format!("{path} at {}", self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_numeric() {
        let address = |url| {
            Server::new(url, "x")
                .map(|server| server.address.to_string())
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
