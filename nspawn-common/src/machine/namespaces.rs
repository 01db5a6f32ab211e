//! Namespaces of running machines.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::error::TimedOut;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::sys::namespace::{self, Environment};

/// Opens files in /proc, such as `ns/net`, of process `leader`, the machine's PID 1.
pub fn open<const N: usize>(
    paths: &MachinePaths,
    leader: u32,
    names: [&str; N],
) -> Result<[File; N]> {
    let has_ended = || format!("machine {} has ended", paths.name());
    let mut files = Vec::with_capacity(N);
    for name in names {
        files.push(namespace::open(leader, name).with_context(has_ended)?);
    }
    // The leader may have ended before, and another process may have its number.
    if !processes::is_member(paths, leader) {
        bail!(has_ended());
    }
    files.try_into().map_err(|_| anyhow!(has_ended()))
}

/// Runs `work` as the machine's root on the machine's files: see [`Environment::run`].
pub fn run_inside(
    paths: &MachinePaths,
    leader: u32,
    limit: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let [users, mounts, root] = open(paths, leader, ["ns/user", "ns/mnt", "root"])?;
    let environment = Environment {
        users,
        mounts,
        root,
    };
    environment.run(limit, work).map_err(|error| {
        if error.is::<TimedOut>() {
            anyhow!("can't access the files of machine {} in time", paths.name())
        } else if crate::error::is_interrupted(&error) {
            error
        } else {
            anyhow!("in machine {}: {error:#}", paths.name())
        }
    })
}
