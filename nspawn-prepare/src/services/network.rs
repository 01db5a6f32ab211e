//! The private link of a job's machine and its services: a bridge in the machine's own network, which nobody else is
//! on, and a way to it for each of the services.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::command;
use nspawn_common::config::network::Network;
use nspawn_common::machine::paths::MachinePaths;

use nspawn_common::machine::namespaces;
use nspawn_common::sys::namespace;

/// How long a change of a network may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The bridge, in the job's machine.
const BRIDGE: &str = "services";
/// The way to it, in a service's.
const PORT: &str = "job";
/// The networks of two links never meet, so all have the same: of what is set aside for measuring networks, and so on
/// no other (RFC 2544).
const NETWORK: [u8; 3] = [198, 18, 0];
const PREFIX_LENGTH: u8 = 24;

/// A machine on a link: where it is, and the process number of its PID 1.
pub struct Member<'a> {
    pub paths: &'a MachinePaths,
    pub leader: u32,
    /// Which of the services it is, from 1 on.
    pub number: u8,
}

/// Where the service is, from 1 on; 0 is the job.
pub fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number + 1)
}

/// Refuses networks whose machines can't be on a link of their own.
pub fn check(network: &Network) -> Result<()> {
    if matches!(network, Network::Host | Network::Namespace(_)) {
        bail!(
            "services need a network of the machine's own to be on, which --network={network} is not"
        );
    }
    Ok(())
}

/// A link that services are put on.
pub struct Link {
    bridge: File,
}

impl Link {
    /// Makes it, in the machine of the job.
    pub fn make(job: &Member) -> Result<Self> {
        let (bridge, address) = (network_of(job)?, address(0));
        let change = format!(
            "link add {BRIDGE} type bridge\naddress add {address}/{PREFIX_LENGTH} dev {BRIDGE}\nlink set {BRIDGE} up\n"
        );
        ip(&bridge, &change).context("can't make the link to the services")?;
        Ok(Self { bridge })
    }

    /// Puts a service on it, in place of the link that it had with an earlier start of the job's machine.
    pub fn connect(&self, service: &Member) -> Result<()> {
        let (network, port, address) = (
            network_of(service)?,
            format!("service-{}", service.number),
            address(service.number),
        );
        let _ = ip(&network, &format!("link delete {PORT}\n"));
        let peer = format!("{PORT} netns {}", path(&network));
        ip(
            &self.bridge,
            &format!(
                "link add {port} master {BRIDGE} type veth peer name {peer}\nlink set {port} up\n"
            ),
        )?;
        ip(
            &network,
            &format!("address add {address}/{PREFIX_LENGTH} dev {PORT}\nlink set {PORT} up\n"),
        )
    }
}

fn network_of(member: &Member) -> Result<File> {
    let [network] = namespaces::open(member.paths, member.leader, ["ns/net"])?;
    // Whatever else has been checked: nothing is ever to be done to the host's.
    if namespace::is_own(&network, "net")? {
        bail!("machine {} has the host's network", member.paths.name());
    }
    Ok(network)
}

// As other processes find it that this one waits for.
fn path(network: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd())
}

fn ip(network: &File, change: &str) -> Result<()> {
    let command = [
        "nsenter",
        &format!("--net={}", path(network)),
        "ip",
        "-batch",
        "-",
    ]
    .map(Into::into);
    command::run_checked_with_stdin(command::memory_file(change)?, &command, LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_an_address_of_its_own() {
        assert_eq!(address(0).to_string(), "198.18.0.1");
        assert_eq!(address(253).to_string(), "198.18.0.254");
    }

    #[test]
    fn the_hosts_network_is_nothing_to_be_linked_to() {
        assert!(check(&Network::Nat).is_ok() && check(&Network::None).is_ok());
        assert!(check(&Network::Host).is_err() && check(&Network::Namespace("/x".into())).is_err());
    }
}
