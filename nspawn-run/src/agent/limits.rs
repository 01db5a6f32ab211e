//! The machine's limits on the cgroups of commands.
//!
//! The limits of the machine apply to its commands in any case. But some runtimes, such as Go's and
//! Java's before 21, read the limits of their own cgroup and of none above it. Without limits
//! there, they would use memory and threads as if they had the whole host.

use std::fs;
use std::io;
use std::path::Path;

/// Root of the machine's cgroups. It shows the limits of the machine's unit.
const ROOT: &str = "/sys/fs/cgroup";
/// Files of the limits that runtimes read (cgroup.rst).
const FILES: [&str; 2] = ["memory.max", "cpu.max"];
/// Controllers of these files.
const CONTROLLERS: &str = "+memory +cpu";
/// Cgroup for processes that were in the agent's cgroup before the agent: systemd-nspawn's stub
/// init.
const INIT: &str = "init";

/// File of a limit, with its content.
pub type Limit = (&'static str, String);

/// Returns the limits for the cgroups of commands below `parent`.
///
/// There are none if the kernel can't enforce limits there.
pub fn inherit(parent: &Path) -> Vec<Limit> {
    let read = |file| Some((file, fs::read_to_string(Path::new(ROOT).join(file)).ok()?));
    let limits: Vec<Limit> = FILES
        .into_iter()
        .filter_map(read)
        .filter(|(_, limit)| !limit.starts_with("max"))
        .collect();
    if limits.is_empty() || enable_controllers(parent).is_err() {
        return Vec::new();
    }
    limits
}

/// Sets the limits of a new cgroup.
pub fn set(cgroup: &Path, limits: &[Limit]) {
    for (file, limit) in limits {
        // Errors are ignored, since the limit of the machine applies anyway.
        let _ = fs::write(cgroup.join(file), limit);
    }
}

// The kernel enables controllers only below a cgroup that has no processes itself.
fn enable_controllers(parent: &Path) -> io::Result<()> {
    let processes = fs::read_to_string(parent.join("cgroup.procs"))?;
    if !processes.is_empty() {
        let init = parent.join(INIT);
        fs::create_dir_all(&init)?;
        for process in processes.lines() {
            fs::write(init.join("cgroup.procs"), process)?;
        }
    }
    fs::write(parent.join("cgroup.subtree_control"), CONTROLLERS)
}
