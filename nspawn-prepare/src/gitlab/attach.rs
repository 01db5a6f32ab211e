//! What a job's machine gets once it runs, also one that stood by and knew of no job: its project's cache, and its
//! services.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result};
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::{ServiceRole, State};
use nspawn_common::systemd::machined;

use crate::gitlab::cache;
use crate::services::etc_hosts;
use crate::services::network;
use crate::services::network::{Link, Member};
use nspawn_common::machine::namespaces;

/// How long a machine's files may take to be used.
const INSIDE_LIMIT: Duration = Duration::from_secs(20);
/// Where a job's sources are, as the config stage says.
pub const BUILDS_IN_MACHINE: &str = "/builds";

/// Attaches to the machine what its state names. A new cache has `cache_size` bytes.
pub fn attach(machine: &MachineName, cache_size: u64) -> Result<()> {
    let paths = MachinePaths::new(machine);
    let state = State::read(paths.name())?;
    let leader = leader(&paths)?;
    connect(&paths, leader)?;
    if state.user.is_some() {
        told(namespaces::run_inside(
            &paths,
            leader,
            INSIDE_LIMIT,
            open_builds,
        ));
    }
    // A job must do without a cache at any time.
    told(
        show_cache(&paths, &state, leader, cache_size)
            .context("the job goes without its project's cache"),
    );
    Ok(())
}

// What a job can do without, or has spoilt itself. Whoever has the machine equipped passes it on.
fn told(done: Result<()>) {
    if let Err(error) = done {
        println!("{error:#}");
    }
}

fn show_cache(paths: &MachinePaths, state: &State, leader: u32, size: u64) -> Result<()> {
    let Some(file) = &state.cache else {
        return Ok(());
    };
    let [users] = namespaces::open(paths, leader, ["ns/user"])?;
    let cache = cache::open(file, size, &paths.cache_mount(), &users)?;
    namespaces::run_inside(paths, leader, INSIDE_LIMIT, || cache::attach(&cache))
}

fn leader(paths: &MachinePaths) -> Result<u32> {
    machined::wait_for_leader(paths, Duration::ZERO)
}

// A service that has ended meanwhile is none; its job goes on.
fn connect(job: &MachinePaths, leader_of_job: u32) -> Result<()> {
    let states = list::services_of(job.name())?;
    let roles: Vec<_> = states
        .iter()
        .filter_map(|state| state.service.as_ref().map(|role| (state, role)))
        .collect();
    if roles.is_empty() {
        return Ok(());
    }
    let link = Link::make(&Member {
        paths: job,
        leader: leader_of_job,
        number: 0,
    })?;
    let lines: Vec<_> = roles
        .iter()
        .filter(|(_, role)| !role.aliases.is_empty())
        .map(|(_, role)| line(role))
        .collect();
    told(namespaces::run_inside(
        job,
        leader_of_job,
        INSIDE_LIMIT,
        || etc_hosts::add(&lines),
    ));
    for (state, role) in roles {
        let paths = MachinePaths::new(&state.name);
        let join = || {
            let member = Member {
                paths: &paths,
                leader: leader(&paths)?,
                number: role.number,
            };
            link.connect(&member)?;
            namespaces::run_inside(&paths, member.leader, INSIDE_LIMIT, || {
                etc_hosts::add(&lines)
            })
        };
        told(
            join()
                .with_context(|| format!("the service {} is not connected", role.requested_image)),
        );
    }
    Ok(())
}

fn line(role: &ServiceRole) -> String {
    format!(
        "{} {}",
        network::address(role.number),
        role.aliases.join(" ")
    )
}

// For scripts that don't run as root.
fn open_builds() -> Result<()> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(BUILDS_IN_MACHINE);
    made.and_then(|()| fs::set_permissions(BUILDS_IN_MACHINE, Permissions::from_mode(0o1777)))
        .with_context(|| format!("can't make {BUILDS_IN_MACHINE}"))
}
