//! Connects the machines of a job and its services to each other.

use std::time::Duration;

use anyhow::{Context, Error, Result};
use nspawn_common::lifecycle::list;
use nspawn_common::machine::namespaces;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::ServiceRole;
use nspawn_common::systemd::machined;

use crate::services::etc_hosts;
use crate::services::network;
use crate::services::network::{Member, ServiceNetwork};

/// Time limit for a change of a machine's /etc/hosts.
const HOSTS_LIMIT: Duration = Duration::from_secs(20);

/// Connects the machine of the job and the services that run for it.
///
/// Adds the services' names to the /etc/hosts of all these machines. `leader` is the PID 1 of the
/// job's machine. Returns the errors that the job can tolerate: a service may have ended since it
/// was created, and a job may have spoilt the files of its machine.
pub fn connect_services(job: &MachinePaths, leader: u32) -> Result<Vec<Error>> {
    let states = list::services_of(job.name())?;
    let services: Vec<_> = states
        .iter()
        .filter_map(|state| Some((state.paths(), state.service.as_ref()?)))
        .collect();
    if services.is_empty() {
        return Ok(Vec::new());
    }
    let network = ServiceNetwork::create(&Member {
        paths: job,
        leader,
        number: 0,
    })?;
    let lines = hosts_lines(services.iter().map(|(_, role)| *role));
    let mut errors = Vec::new();
    errors.extend(add_hosts(job, leader, &lines).err());
    for (paths, role) in &services {
        let connected = connect_service(&network, paths, role, &lines)
            .with_context(|| format!("can't connect the service {}", role.requested_image));
        errors.extend(connected.err());
    }
    Ok(errors)
}

fn connect_service(
    network: &ServiceNetwork,
    paths: &MachinePaths,
    role: &ServiceRole,
    hosts_lines: &[String],
) -> Result<()> {
    let leader = machined::wait_for_leader(paths, Duration::ZERO)?;
    network.connect(&Member {
        paths,
        leader,
        number: role.number,
    })?;
    add_hosts(paths, leader, hosts_lines)
}

fn add_hosts(paths: &MachinePaths, leader: u32, lines: &[String]) -> Result<()> {
    namespaces::run_inside(paths, leader, HOSTS_LIMIT, || etc_hosts::add(lines))
}

/// Returns the lines of hosts(5) for the services that have names.
fn hosts_lines<'a>(roles: impl Iterator<Item = &'a ServiceRole>) -> Vec<String> {
    let named = roles.filter(|role| !role.aliases.is_empty());
    named
        .map(|role| {
            let address = network::address(role.number);
            format!("{address} {}", role.aliases.join(" "))
        })
        .collect()
}
