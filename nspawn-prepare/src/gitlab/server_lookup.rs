//! Finds out whether the GitLab server runs on this host.
//!
//! Machines can't connect to the host by default.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use nspawn_common::command;
use nspawn_common::command::argv;

use crate::network::destination::Destination;
use crate::network::egress::HostAddresses;

/// Time limit for the lookup, which begins before the machine is created.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// A lookup of the server's addresses, which runs while the machine is created.
pub struct ServerLookup {
    name: String,
    getent: command::Running,
}

impl ServerLookup {
    /// Starts to look up the server `name`.
    pub fn start(name: String) -> Result<Self> {
        let command = argv(["getent", "ahosts", "--", &name]);
        let getent = command::Running::start(Stdio::null(), &command)?;
        Ok(Self { name, getent })
    }

    /// Returns a warning if the server is on this host and is not `allowed`.
    pub fn warning(self, allowed: &[Destination]) -> Result<Option<String>> {
        let output = self.getent.finish(LOOKUP_LIMIT)?.stdout;
        let host = HostAddresses::list()?;
        let closed = addresses(&output).into_iter().find(|address| {
            host.is_near(address) && !allowed.iter().any(|open| open.contains(address))
        });
        let name = self.name;
        Ok(closed.map(|address| {
            format!(
                "the GitLab server {name} is this host itself ({address}), to which its machines can't connect; the \
                 administrator can open it: --allow-host={address}"
            )
        }))
    }
}

fn addresses(output: &str) -> Vec<IpAddr> {
    output
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}
