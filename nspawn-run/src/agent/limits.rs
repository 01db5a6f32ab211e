//! The machine's limits on the cgroups of commands.
//!
//! The limits of the machine hold for its commands anyway. But some runtimes, such as Go's and Java's before 21, look
//! for limits in their own cgroup and in none above it, and would size themselves for the whole host.

use std::fs;
use std::io;
use std::path::Path;

/// The root of the machine's cgroups, which shows the limits of its unit.
const ROOT: &str = "/sys/fs/cgroup";
/// Files of limits that runtimes read, and the controllers that these belong to (cgroup.rst).
const FILES: [&str; 2] = ["memory.max", "cpu.max"];
const CONTROLLERS: &str = "+memory +cpu";
/// The cgroup of processes that were in the agent's cgroup before the agent: systemd-nspawn's stub init.
const INIT: &str = "init";

/// A file of a limit, and its content.
pub type Limit = (&'static str, String);

/// Returns the limits for the cgroups of commands below `parent`; none where the kernel can't have them there.
pub fn inherit(parent: &Path) -> Vec<Limit> {
    let read = |file| Some((file, fs::read_to_string(Path::new(ROOT).join(file)).ok()?));
    let limits: Vec<Limit> = FILES
        .into_iter()
        .filter_map(read)
        .filter(|(_, limit)| !limit.starts_with("max"))
        .collect();
    if limits.is_empty() || enable_controllers(parent).is_err() {
        Vec::new()
    } else {
        limits
    }
}

/// Sets the limits of a new cgroup.
pub fn set(cgroup: &Path, limits: &[Limit]) {
    for (file, limit) in limits {
        // Without it the machine's limit still holds.
        let _ = fs::write(cgroup.join(file), limit);
    }
}

// The kernel enables controllers only below a cgroup that has no processes itself.
fn enable_controllers(parent: &Path) -> io::Result<()> {
    let processes = fs::read_to_string(parent.join("cgroup.procs"))?;
    if !processes.is_empty() {
        let init = parent.join(INIT);
        fs::create_dir_all(&init)?;
        processes
            .lines()
            .try_for_each(|process| fs::write(init.join("cgroup.procs"), process))?;
    }
    fs::write(parent.join("cgroup.subtree_control"), CONTROLLERS)
}
