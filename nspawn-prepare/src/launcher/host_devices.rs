//! Access to the host's block devices, which the machine must not have.
//!
//! The device policy of the machine's unit allows no loop device. If it did, the machine could open
//! all of them, and the layers of other machines with them. So the file systems in files are mounted
//! by a process in the cgroup of the host's PID 1, to which the policy does not apply. Its mounts
//! are in the unit's mount namespace, like all others.

use std::fs::File;

use anyhow::{Context, Result};
use nspawn_common::sys::fork;

/// Cgroup of the host's PID 1, which every host has. It has no device policy.
const CGROUP: &str = "/sys/fs/cgroup/init.scope";

/// Runs `work` in a child process that may open all devices of the host.
pub fn with_access(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let cgroup = File::open(CGROUP).with_context(|| format!("can't open {CGROUP}"))?;
    fork::run_in_cgroup(&cgroup, work)
}
