//! Lists the machines of this host.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::lifecycle::stale;
use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::paths::{
    LAYER_ROOT, MachinePaths, POOL_ROOT, SLICE_CGROUP, STATE_ROOT, slice_cgroup_of_job,
};
use crate::machine::state::State;
use crate::sys::fs::{if_present, ignore_missing};

/// Returns the names of all machines of which anything exists on this host, sorted.
pub fn all() -> Result<Vec<MachineName>> {
    let mut names = names_of_directories(STATE_ROOT)?;
    names.extend(names_of_directories(LAYER_ROOT)?);
    names.extend(names_of_units()?);
    names.retain(|name| !stale::is_taken_over(&MachinePaths::named(name)));
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Returns the machines that are services of the job in the machine `job`.
pub fn services_of(job: &MachineName) -> Result<Vec<State>> {
    // Only recorded services count, so layers and units need not be listed.
    let mut services = Vec::new();
    for name in names_of_directories(STATE_ROOT)? {
        if !name.as_str().starts_with(job.as_str()) {
            continue;
        }
        let state = State::read(&name).ok();
        let is_service =
            |state: &State| state.service.as_ref().is_some_and(|role| role.job == *job);
        services.extend(state.filter(is_service));
    }
    Ok(services)
}

/// Returns the parts of the machine that exist, in words.
#[must_use]
pub fn existing_parts(paths: &MachinePaths) -> Vec<&'static str> {
    let parts = [
        ("unit", paths.cgroup()),
        ("slice", slice_cgroup_of_job(paths.name())),
        ("network", paths.network_cgroup()),
        ("command", paths.command_cgroup()),
        ("layer", paths.layer()),
        ("state", paths.state_dir()),
    ];
    parts
        .into_iter()
        .filter(|(_, path)| fs::symlink_metadata(path).is_ok())
        .map(|(part, _)| part)
        .collect()
}

/// Deletes all standby pools, so that they are not filled again.
pub fn delete_pools() -> Result<()> {
    ignore_missing(fs::remove_dir_all(POOL_ROOT))
        .with_context(|| format!("can't remove {POOL_ROOT}"))
}

fn names_of_directories(root: &str) -> Result<Vec<MachineName>> {
    let entries = directories(root)?.into_iter();
    Ok(entries
        .filter_map(|entry| MachineName::new(entry).ok())
        .collect())
}

fn names_of_units() -> Result<Vec<MachineName>> {
    let mut names = Vec::new();
    for entry in directories(SLICE_CGROUP)? {
        if let Some(job) = paths::job_of_slice(&entry) {
            let units = directories(slice_cgroup_of_job(&job))?;
            names.extend(units.iter().filter_map(|unit| machine_of_unit(unit)));
            names.push(job);
        }
        names.extend(machine_of_unit(&entry));
    }
    Ok(names)
}

fn machine_of_unit(unit: &OsStr) -> Option<MachineName> {
    MachineName::new(paths::name_of_unit(unit)?).ok()
}

/// Returns the names of the directories in `root`, which may be missing.
fn directories(root: impl AsRef<Path>) -> Result<Vec<OsString>> {
    let root = root.as_ref();
    let entries =
        if_present(fs::read_dir(root)).with_context(|| format!("can't read {}", root.display()))?;
    let Some(entries) = entries else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}
