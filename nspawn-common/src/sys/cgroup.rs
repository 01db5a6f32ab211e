//! Reads and controls cgroups of version 2 (cgroups(7)).

use std::fs;
use std::io;
use std::path::Path;

/// Mount point of the cgroup file system.
const ROOT: &str = "/sys/fs/cgroup";

/// Returns whether a process is in the cgroup or below it.
#[must_use]
pub fn is_populated(cgroup: &Path) -> bool {
    has_event(cgroup, "populated 1")
}

/// Returns whether the cgroup is frozen.
#[must_use]
pub fn is_frozen(cgroup: &Path) -> bool {
    has_event(cgroup, "frozen 1")
}

/// Kills all processes in the cgroup and below it with SIGKILL, at once.
pub fn kill(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
}

/// Returns the process IDs in the cgroup itself.
#[must_use]
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let processes = processes.lines();
    processes.filter_map(|line| line.parse().ok()).collect()
}

/// Returns whether the process is in the cgroup or below it.
#[must_use]
pub fn contains(cgroup: &Path, process: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let cgroup = cgroup.strip_prefix(ROOT).unwrap_or(cgroup);
    // Version 2 has one line, with nothing between two colons.
    text.lines()
        .filter_map(|line| line.split_once("::/"))
        .any(|(_, path)| Path::new(path).starts_with(cgroup))
}

fn has_event(cgroup: &Path, event: &str) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == event))
}
