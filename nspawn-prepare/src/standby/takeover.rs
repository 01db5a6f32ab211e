//! Takeover: turns a standby machine into the requested machine, with its name.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nspawn_common::agent::client;
use nspawn_common::lifecycle::lock::{Lock, Resource};
use nspawn_common::lifecycle::{lock, lost_writes, remove, ssh};
use nspawn_common::machine::mounts::UnitMounts;
use nspawn_common::machine::namespaces;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::fs::remove_file_if_present;
use nspawn_common::sys::namespace;
use nspawn_common::systemd::machined::Registration;

use crate::create::spec::MachineSpec;
use crate::create::state;
use crate::create::step::Step;
use crate::services::etc_hosts;
use crate::standby::{fingerprint, machines, pool};

/// Time limit for the agent of a standby machine to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(2);

/// Time limit for a change of a machine's /etc/hosts.
const HOSTS_LIMIT: Duration = Duration::from_secs(5);

/// Takes over a standby machine as the machine of `spec`, if one has the same fingerprint.
///
/// `lock` becomes the lock of the machine. It is an out parameter, because the caller must hold it
/// even if the takeover fails after the machine has the requested name.
pub fn take(spec: &MachineSpec, lock: &mut Option<Lock>) -> Result<()> {
    if spec.pool.is_some() || !pool::exist() || fingerprint::check(spec).is_err() {
        return Ok(());
    }
    let fingerprint = fingerprint::compute(spec)?;
    let candidates = machines::all()?;
    // The first pass skips locked machines. A lock's holder does not always take the machine over,
    // so the second pass waits for those.
    for waits in [false, true] {
        for from in &candidates {
            if !is_match(from, &fingerprint) || (!waits && Lock::is_held(from)) {
                continue;
            }
            if take_machine(from, spec, &fingerprint, lock)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn is_match(paths: &MachinePaths, fingerprint: &[u8]) -> bool {
    machines::has_content(&paths.fingerprint_file(), fingerprint)
}

// Returns whether the machine was taken over. If another process has it, or it does not answer, it
// was not.
fn take_machine(
    from: &MachinePaths,
    spec: &MachineSpec,
    fingerprint: &[u8],
    lock: &mut Option<Lock>,
) -> Result<bool> {
    let Some(standby_lock) = Lock::try_acquire_of_existing(from)? else {
        return Ok(false);
    };
    // Another process may have taken it over while this one waited for the lock.
    if !is_match(from, fingerprint) {
        return Ok(false);
    }
    let Ok((state, registration)) = detach(from) else {
        // The next refill replaces a machine without a fingerprint.
        remove_file_if_present(&from.fingerprint_file())?;
        return Ok(false);
    };
    *lock = Some(standby_lock);
    if let Err(error) = hand_over(from, spec, state, &registration) {
        remove_after_failed_takeover(from, lock);
        return Err(error);
    }
    Ok(true)
}

// Checks that the agent answers and that the machine has lost no writes, reads the state, and
// unregisters the machine from systemd-machined.
fn detach(from: &MachinePaths) -> Result<(State, Registration)> {
    client::ping(from, AGENT_LIMIT)?;
    let state = State::read(from.name())?;
    lost_writes::Watch::open(&UnitMounts::of(from)?, &state)?.check()?;
    Ok((state, Registration::unregister(from)?))
}

// Removes a machine whose takeover failed before the state directories were exchanged. After that,
// the machine has the requested name, and the caller removes it.
fn remove_after_failed_takeover(from: &MachinePaths, lock: &mut Option<Lock>) {
    if !from.state_file().exists() {
        return;
    }
    if let Some(lock) = lock.take() {
        // The error of the takeover is reported, and the next cleanup of stale machines removes
        // what is left.
        let _ = remove::remove_machine(from.name(), lock);
    }
}

// The marks are removed before anything else changes. If this process is killed at any point, the
// machine is stale under one name or the other.
fn hand_over(
    from: &MachinePaths,
    spec: &MachineSpec,
    standby: State,
    registration: &Registration,
) -> Result<()> {
    let to = &spec.paths;
    let failure = || format!("can't take over machine {}", from.name());
    fs::remove_file(from.fingerprint_file()).with_context(failure)?;
    fs::remove_file(from.standby_mark()).with_context(failure)?;
    if from.layer().exists() {
        fs::rename(from.layer(), to.layer()).with_context(failure)?;
    }
    exchange(&from.state_dir(), &to.state_dir()).with_context(failure)?;
    // The state directory of the standby machine now has only the lock that was created under the
    // new name.
    remove::remove_state_directory(from)?;
    let state = State {
        layer_size: standby.layer_size,
        started_as: standby.started_as,
        ..state::new(spec)?
    };
    Step::file(to.state_file(), state.to_json().to_string().into_bytes()).run()?;
    let to = &state.paths();
    set_host_name(from, to, registration.leader).with_context(failure)?;
    registration.register(to)?;
    ssh::publish(to)
}

fn exchange(one: &Path, other: &Path) -> Result<()> {
    // The search for a free UID range looks at all state directories, and must not miss one.
    let _lock = lock::host(Resource::UidRanges, lock::UID_RANGES_LIMIT)?;
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)?;
    Ok(())
}

// Sets the host name from outside: the machine may lack the capability for it.
fn set_host_name(from: &MachinePaths, to: &MachinePaths, leader: u32) -> Result<()> {
    let [namespace] = namespaces::open(to, leader, ["ns/uts"])?;
    let (old, new) = (from.name().as_str(), to.name().as_str());
    namespace::set_host_name(&namespace, new)?;
    namespaces::run_inside(to, leader, HOSTS_LIMIT, || etc_hosts::rename(old, new))
}
