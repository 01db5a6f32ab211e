//! Processes of a machine, found by its unit's cgroup.

use std::fs;

use crate::machine::paths::{LAUNCHER_CGROUP, MachinePaths, SUPERVISOR_CGROUP};
use crate::sys::cgroup;

/// Returns the process ID of the machine's supervisor, systemd-nspawn, which is in the unit's mount
/// namespace.
#[must_use]
pub fn supervisor(paths: &MachinePaths) -> Option<u32> {
    let processes = cgroup::processes(&paths.cgroup().join(SUPERVISOR_CGROUP));
    processes.first().copied()
}

/// Returns the process ID of the machine's leader, the PID 1 of its PID namespace.
///
/// The leader is the child of the supervisor that is number 1 in a namespace of its own.
/// systemd-nspawn registers the machine before it moves itself to its last cgroup. The cgroups are
/// searched in the order in which it moves, so that it is found during the move as well.
#[must_use]
pub fn leader(paths: &MachinePaths) -> Option<u32> {
    let unit = paths.cgroup();
    let launcher = unit.join(LAUNCHER_CGROUP);
    let supervisor = unit.join(SUPERVISOR_CGROUP);
    [unit, launcher, supervisor]
        .iter()
        .flat_map(|cgroup| cgroup::processes(cgroup))
        .flat_map(leaders_below)
        .find(|leader| is_member(paths, *leader))
}

fn leaders_below(supervisor: u32) -> Vec<u32> {
    // proc_pid_task(5)
    let path = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace();
    children
        .filter_map(|child| child.parse().ok())
        .filter(|child| is_pid_1(*child))
        .collect()
}

/// Returns whether the process is PID 1 of a namespace below this process's own (`NSpid` in
/// proc_pid_status(5)).
fn is_pid_1(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.is_some_and(|pids| pids.split_whitespace().skip(1).last() == Some("1"))
}

/// Returns whether the process belongs to the machine's unit.
#[must_use]
pub fn is_member(paths: &MachinePaths, process: u32) -> bool {
    cgroup::contains(&paths.cgroup(), process)
}

/// Returns whether any process of the machine's unit runs.
#[must_use]
pub fn is_running(paths: &MachinePaths) -> bool {
    cgroup::is_populated(&paths.cgroup())
}

/// Returns whether the machine is frozen, as `systemctl freeze` does it.
#[must_use]
pub fn is_frozen(paths: &MachinePaths) -> bool {
    cgroup::is_frozen(&paths.cgroup())
}
