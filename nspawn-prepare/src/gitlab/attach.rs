//! Attaches a job's cache and services to a machine that is already running.
//!
//! A standby machine starts before the job is known, so nothing of the job can be part of its
//! start.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result};
use nspawn_common::lifecycle::uid_range;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::namespaces;
use nspawn_common::machine::passwd;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::sys::idmapped_mount;
use nspawn_common::sys::idmapped_mount::Owner;
use nspawn_common::systemd::machined;

use crate::gitlab::cache;
use crate::services::connect;

/// Time limit for work on the machine's files.
const INSIDE_LIMIT: Duration = Duration::from_secs(20);
/// Directory of the job's sources, which the config stage announces.
pub const BUILDS_IN_MACHINE: &str = "/builds";

/// Attaches everything that the state of the machine names. A new cache gets `cache_size` bytes.
///
/// Prints errors that the job can tolerate on stdout, from where the parent process forwards them
/// to the job's log.
pub fn attach(machine: &MachineName, cache_size: u64) -> Result<()> {
    let state = State::read(machine)?;
    let paths = state.paths();
    let leader = machined::wait_for_leader(&paths, Duration::ZERO)?;
    for warning in connect::connect_services(&paths, leader)? {
        print_warning(&warning);
    }
    if state.user.is_some() {
        warn_if_err(namespaces::run_inside(
            &paths,
            leader,
            INSIDE_LIMIT,
            open_builds,
        ));
    }
    // A job must work without a cache, because a cache may be deleted at any time.
    let attached = attach_cache(&paths, &state, leader, cache_size);
    warn_if_err(attached.context("the job runs without its project's cache"));
    Ok(())
}

fn warn_if_err(result: Result<()>) {
    if let Err(error) = result {
        print_warning(&error);
    }
}

fn print_warning(error: &anyhow::Error) {
    println!("{error:#}");
}

fn attach_cache(paths: &MachinePaths, state: &State, leader: u32, size: u64) -> Result<()> {
    let Some(file) = &state.cache else {
        return Ok(());
    };
    let ids = uid_range::of(paths).context("the machine has the host's users")?;
    let user = find_user(paths, state, leader)?;
    let supervisor = processes::supervisor(paths).context("the machine has ended")?;
    let [unit] = namespaces::open(paths, supervisor, ["ns/mnt"])?;
    let cache = cache::open(file, size, &paths.cache_mount(), &unit, (ids, user))?;
    namespaces::run_inside(paths, leader, INSIDE_LIMIT, || cache::attach(&cache))
}

/// Returns the IDs of the user that runs the job's scripts.
fn find_user(paths: &MachinePaths, state: &State, leader: u32) -> Result<Owner> {
    let Some(name) = &state.user else {
        return Ok(idmapped_mount::ROOT);
    };
    let [root] = namespaces::open(paths, leader, ["root"])?;
    let user = passwd::find_in_root(&root, OsStr::new(name))?;
    Ok(Owner {
        user: user.uid,
        group: user.gid,
    })
}

/// Opens the builds directory to all users of the machine, for scripts that don't run as root.
fn open_builds() -> Result<()> {
    create_builds().with_context(|| format!("can't create {BUILDS_IN_MACHINE}"))
}

fn create_builds() -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(BUILDS_IN_MACHINE)?;
    fs::set_permissions(BUILDS_IN_MACHINE, Permissions::from_mode(0o1777))
}
