//! Processes of a machine, found by its unit's cgroup.

use crate::machine::paths::{MachinePaths, SUPERVISOR_CGROUP};
use crate::sys::cgroup;

/// Returns the process ID of the machine's supervisor, systemd-nspawn, which is in the unit's mount namespace.
#[must_use]
pub fn supervisor(paths: &MachinePaths) -> Option<u32> {
    cgroup::first_process(&paths.cgroup().join(SUPERVISOR_CGROUP))
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
