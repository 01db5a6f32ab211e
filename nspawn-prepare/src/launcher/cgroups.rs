//! Limits the number of the machine's cgroups, and shows the limits of the machine's unit to programs
//! in the machine.
//!
//! The limits are set on the unit's cgroup. systemd-nspawn moves the machine to `payload` below
//! that cgroup, and the machine sees `payload` as the root of its cgroups. So the launcher creates
//! `payload` before anything of the machine runs, and sets the same limits there. The files are not
//! delegated: the machine's root can read them, and not write.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths;
use nspawn_common::machine::paths::{LAUNCHER_CGROUP, MachinePaths, PAYLOAD_CGROUP, SLICE_CGROUP};
use nspawn_common::sys::fs::bind_mount;

/// Files of limits that programs read to size themselves (cgroup.rst).
const FILES: [&str; 5] = [
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "cpu.max",
    "pids.max",
];

/// Limits of the cgroups below the unit's (cgroup-v2.rst).
///
/// The kernel has 65535 numbers for cgroups with the memory controller. Once they are used up, the
/// host can't start a unit. A booted machine has 30 cgroups, and 2048 are enough for hundreds of
/// containers in it. Each charge of memory walks up all levels; containers in containers have 20.
const TREE_LIMITS: [(&str, &str); 2] = [
    ("cgroup.max.descendants", "2048"),
    ("cgroup.max.depth", "64"),
];
/// Number of cgroups of all machines together, which leaves the host a quarter.
const MAX_CGROUPS: &str = "49152";

/// Limits the number of the machine's cgroups. If the unit has limits, creates the machine's cgroup
/// with them, and moves this process out of the unit's own.
///
/// Returns the cgroup for other processes of the unit, which must not be in the unit's own.
pub fn set_up(paths: &MachinePaths) -> Result<File> {
    let unit = paths.cgroup();
    limit_tree(&unit)
        .with_context(|| format!("can't limit the number of cgroups of {}", paths.unit()))?;
    let launcher = unit.join(LAUNCHER_CGROUP);
    let cgroup = fs::create_dir(&launcher)
        .and_then(|()| File::open(&launcher))
        .with_context(|| format!("can't create {}", launcher.display()))?;
    let limits = limits_of(&unit, paths.slice_of());
    if !limits.is_empty() {
        create_payload(&unit, &launcher, &limits)
            .with_context(|| format!("can't show the limits of {} in the machine", paths.unit()))?;
    }
    Ok(cgroup)
}

// The machine sees neither of these cgroups, so it can't raise their limits.
fn limit_tree(unit: &Path) -> io::Result<()> {
    for (file, limit) in TREE_LIMITS {
        fs::write(unit.join(file), limit)?;
    }
    let all = Path::new(SLICE_CGROUP).join(TREE_LIMITS[0].0);
    // Each write waits for other changes of cgroups.
    if fs::read_to_string(&all)?.trim() != MAX_CGROUPS {
        fs::write(all, MAX_CGROUPS)?;
    }
    Ok(())
}

/// Returns the limits of the unit, or those of the slice that it shares with other machines of
/// `job` if these are lower.
fn limits_of(unit: &Path, job: Option<&MachineName>) -> Vec<(&'static str, String)> {
    let slice = job.map(paths::slice_cgroup_of_job);
    let cgroups: Vec<&Path> = [Some(unit), slice.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    let read = |file: &'static str| {
        let limits = cgroups.iter().filter_map(|cgroup| {
            let limit = fs::read_to_string(cgroup.join(file)).ok()?;
            Some((number(&limit)?, limit))
        });
        let (_, lowest) = limits.min_by_key(|(number, _)| *number)?;
        Some((file, lowest))
    };
    FILES.into_iter().filter_map(read).collect()
}

/// Returns the number with which a limit begins; `None` if it is `max`.
fn number(limit: &str) -> Option<u64> {
    limit.split_whitespace().next()?.parse().ok()
}

fn create_payload(unit: &Path, launcher: &Path, limits: &[(&str, String)]) -> Result<()> {
    // A cgroup that has processes can't enable controllers for the cgroups below it (cgroup.rst, "No
    // Internal Process Constraint").
    fs::write(launcher.join("cgroup.procs"), "0")?;
    enable_controllers(unit)?;
    let payload = unit.join(PAYLOAD_CGROUP);
    fs::create_dir(&payload)?;
    for (file, limit) in limits {
        fs::write(payload.join(file), limit)?;
    }
    // systemd-nspawn looks for `payload` below its own cgroup. Only from version 254 on it also
    // finds it beside its cgroup. With this mount, `launcher/payload` is `payload` for all
    // versions. The mount is in the unit's mount namespace, which the machine does not see.
    bind_mount(unit, launcher)?;
    Ok(())
}

fn enable_controllers(cgroup: &Path) -> Result<()> {
    let controllers = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let enable: Vec<_> = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    fs::write(cgroup.join("cgroup.subtree_control"), enable.join(" "))?;
    Ok(())
}
