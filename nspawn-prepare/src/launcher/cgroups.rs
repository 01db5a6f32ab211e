//! The machine's cgroup with the limits of its unit, so that programs in the machine can read them.
//!
//! The limits stand on the unit's cgroup. systemd-nspawn moves the machine to `payload` below that cgroup, and the
//! machine sees `payload` as the root of its cgroups. So `payload` is made here, before anything of the machine runs,
//! and gets the same limits. They are not delegated: the machine's root can read and not write them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use nspawn_common::machine::paths::{MachinePaths, PAYLOAD_CGROUP};

/// Files of limits that programs read to size themselves (cgroup.rst).
const FILES: [&str; 5] = [
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "cpu.max",
    "pids.max",
];

/// The cgroup of this process until systemd-nspawn moves itself to `supervisor`.
const LAUNCHER: &str = "launcher";

/// Makes the machine's cgroup with the limits of the unit's. A unit without limits is left as it is.
pub fn show_limits(paths: &MachinePaths) -> Result<()> {
    let unit = paths.cgroup();
    let limits = limits_of(&unit);
    if limits.is_empty() {
        return Ok(());
    }
    make_cgroup(&unit, &limits)
        .with_context(|| format!("can't show the limits of {} in the machine", paths.unit()))
}

fn limits_of(unit: &Path) -> Vec<(&'static str, String)> {
    let read = |file: &'static str| Some((file, fs::read_to_string(unit.join(file)).ok()?));
    FILES
        .into_iter()
        .filter_map(read)
        .filter(|(_, limit)| !limit.starts_with("max"))
        .collect()
}

fn make_cgroup(unit: &Path, limits: &[(&str, String)]) -> Result<()> {
    // A cgroup whose controllers are enabled for those below it can't have processes (cgroup.rst, "No Internal Process
    // Constraint").
    let launcher = unit.join(LAUNCHER);
    fs::create_dir(&launcher)?;
    fs::write(launcher.join("cgroup.procs"), "0")?;
    let controllers = fs::read_to_string(unit.join("cgroup.controllers"))?;
    let enable: Vec<_> = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    fs::write(unit.join("cgroup.subtree_control"), enable.join(" "))?;
    let payload = unit.join(PAYLOAD_CGROUP);
    fs::create_dir(&payload)?;
    for (file, limit) in limits {
        fs::write(payload.join(file), limit)?;
    }
    // systemd-nspawn looks for `payload` below the cgroup that it is started in. Only from version 254 on it can be
    // started in a cgroup beside `payload`. With this mount, `launcher/payload` is `payload` to all versions. The mount
    // is in the unit's mount namespace, which the machine does not see.
    nix::mount::mount(
        Some(unit),
        &launcher,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}
