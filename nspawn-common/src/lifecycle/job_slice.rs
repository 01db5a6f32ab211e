//! The slice that a job and its services share, with the limits of the job.
//!
//! The unit of each machine has limits of its own. Without the slice, a job could multiply its
//! limits by its services.

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::command::argv;
use crate::lifecycle::limits;
use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::paths::MachinePaths;
use crate::sys::cgroup;
use crate::sys::fs::ignore_missing;
use crate::text;

/// Time limit for stopping a slice without units.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Returns the commands that create the slice with the limits among `properties`.
///
/// The slice is started first. systemd unloads a slice that has not started, and reads its limits
/// again from a directory, whose changes it can miss within a clock tick.
pub fn create_commands(job: &MachineName, properties: &[OsString]) -> [Vec<OsString>; 2] {
    let slice = paths::slice_of_job(job);
    let mut set = argv(["systemctl", "set-property", "--runtime", &slice]);
    set.extend(limits::only_limits(properties));
    [argv(["systemctl", "start", &slice]), set]
}

/// Removes the slice of the job after the removal of `machine`, if there is one, unless other
/// machines use it.
///
/// A service leaves the slice of a job that exists, since the job's machine may be about to start.
pub fn remove_if_unused(job: &MachineName, machine: &MachineName) -> Result<()> {
    let cgroup = paths::slice_cgroup_of_job(job);
    let settings = paths::slice_settings_of_job(job);
    if !cgroup.exists() && !settings.exists() {
        return Ok(());
    }
    let is_awaited = job != machine && MachinePaths::named(job).state_file().exists();
    if is_awaited || cgroup::is_populated(&cgroup) {
        return Ok(());
    }
    let slice = paths::slice_of_job(job);
    let stopped = command::run(&argv(["systemctl", "stop", &slice]), STOP_LIMIT)?;
    if cgroup.exists() {
        bail!("can't stop {slice}{}", text::indent(&stopped.stderr));
    }
    ignore_missing(fs::remove_dir_all(&settings))
        .with_context(|| format!("can't remove {}", settings.display()))
}
