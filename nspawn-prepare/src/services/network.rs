//! The private network of a job's machine and its services.
//!
//! The network is a bridge in the network namespace of the job's machine, with a veth link to each
//! service. No other machine is connected to it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::command;
use nspawn_common::config::network::Network;
use nspawn_common::machine::namespaces;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::namespace;

/// Time limit for a change of a network.
const LIMIT: Duration = Duration::from_secs(20);
/// Interface of the bridge, in the job's machine.
const BRIDGE: &str = "services";
/// Interface of the link to the bridge, in a service's machine.
const PORT: &str = "job";
/// Addresses of all such networks.
///
/// They can be the same, because two of these networks are never connected. They belong to a
/// network that is reserved for benchmarks (RFC 2544), so that no other network has them.
const NETWORK: [u8; 3] = [198, 18, 0];
const PREFIX_LENGTH: u8 = 24;

/// A machine in the network.
pub struct Member<'a> {
    pub paths: &'a MachinePaths,
    /// PID 1 of the machine.
    pub leader: u32,
    /// Number of the service, from 1 on; 0 is the job.
    pub number: u8,
}

/// Returns the address of a service by its number, from 1 on; 0 is the job.
pub fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number + 1)
}

/// Refuses a `--network=` that gives the machine no network namespace of its own.
pub fn check(network: &Network) -> Result<()> {
    if matches!(network, Network::Host | Network::Namespace(_)) {
        bail!(
            "can't connect services with --network={network}: services need a network of the machine's own; choose \
             another --network"
        );
    }
    Ok(())
}

/// The network of a job and its services.
pub struct ServiceNetwork {
    /// Network namespace with the bridge.
    bridge: File,
}

impl ServiceNetwork {
    /// Creates the bridge in the machine of the job.
    pub fn create(job: &Member) -> Result<Self> {
        let bridge = network_of(job)?;
        let address = address(0);
        let commands = format!(
            "link add {BRIDGE} type bridge\n\
             address add {address}/{PREFIX_LENGTH} dev {BRIDGE}\n\
             link set {BRIDGE} up\n"
        );
        run_ip(&bridge, &commands).context("can't create the network of the services")?;
        Ok(Self { bridge })
    }

    /// Connects a service to the bridge.
    ///
    /// Replaces the link that the service has from an earlier start of the job's machine.
    pub fn connect(&self, service: &Member) -> Result<()> {
        let network = network_of(service)?;
        let port = format!("service-{}", service.number);
        let address = address(service.number);
        // The command fails if there is no link.
        let _ = run_ip(&network, &format!("link delete {PORT}\n"));
        let peer = format!("{PORT} netns {}", path(&network));
        run_ip(
            &self.bridge,
            &format!(
                "link add {port} master {BRIDGE} type veth peer name {peer}\nlink set {port} up\n"
            ),
        )?;
        run_ip(
            &network,
            &format!("address add {address}/{PREFIX_LENGTH} dev {PORT}\nlink set {PORT} up\n"),
        )
    }
}

fn network_of(member: &Member) -> Result<File> {
    let [network] = namespaces::open(member.paths, member.leader, ["ns/net"])?;
    // This check is the last line of defense: the network of the host must never be changed.
    if namespace::is_own(&network, "net")? {
        bail!("machine {} has the host's network", member.paths.name());
    }
    Ok(network)
}

/// Returns the path by which the child processes of this one open the namespace.
fn path(network: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd())
}

fn run_ip(network: &File, commands: &str) -> Result<()> {
    let command = [
        "nsenter",
        &format!("--net={}", path(network)),
        "ip",
        "-batch",
        "-",
    ]
    .map(Into::into);
    command::run_checked_with_stdin(command::memory_file(commands)?, &command, LIMIT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_numbers_of_the_services() {
        assert_eq!(address(0).to_string(), "198.18.0.1");
        assert_eq!(address(253).to_string(), "198.18.0.254");
    }

    #[test]
    fn networks_that_are_not_the_machines_own_are_refused() {
        assert!(check(&Network::Nat).is_ok() && check(&Network::None).is_ok());
        assert!(check(&Network::Host).is_err() && check(&Network::Namespace("/x".into())).is_err());
    }
}
