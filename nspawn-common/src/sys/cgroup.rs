//! Cgroups of version 2 (cgroups(7), and the kernel's cgroup-v2.rst).

use std::fs;
use std::io;
use std::path::Path;

/// Mount point of the cgroup file system.
const ROOT: &str = "/sys/fs/cgroup";

/// Returns whether any process is in the cgroup or below it.
pub fn is_populated(cgroup: &Path) -> bool {
    read_event(cgroup, "populated")
}

/// Returns whether the cgroup is frozen, for example by `systemctl freeze`.
pub fn is_frozen(cgroup: &Path) -> bool {
    read_event(cgroup, "frozen")
}

/// Sends SIGKILL to all processes in the cgroup and below it at once (kernel 5.14).
pub fn kill(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
}

/// Returns the IDs of the processes in the cgroup itself.
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let lines = processes.lines();
    lines.filter_map(|line| line.parse().ok()).collect()
}

/// Returns whether process `pid` is in the cgroup or below it.
pub fn contains(cgroup: &Path, pid: u32) -> bool {
    let cgroup = cgroup.strip_prefix(ROOT).unwrap_or(cgroup);
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // The line of version 2 has an empty list of controllers, so "::/" precedes its path.
    memberships
        .lines()
        .filter_map(|line| line.split_once("::/"))
        .any(|(_, path)| Path::new(path).starts_with(cgroup))
}

/// Returns the number behind `key` in a file of "key number" lines, such as `cpu.stat`.
pub fn value(text: &str, key: &str) -> Option<u64> {
    let entries = text.lines().filter_map(|line| line.split_once(' '));
    entries
        .filter(|(name, _)| *name == key)
        .find_map(|(_, number)| number.parse().ok())
}

// Returns a flag of cgroup.events. A cgroup that does not exist has no flag set.
fn read_event(cgroup: &Path, key: &str) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| value(&events, key) == Some(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_found_by_its_whole_key() {
        let text = "user_usec 5\nusage_usec 17\n";
        assert_eq!(value(text, "usage_usec"), Some(17));
        assert_eq!(value(text, "usage"), None);
        assert_eq!(value("", "usage_usec"), None);
    }

    #[test]
    fn missing_cgroup_is_empty() {
        let missing = Path::new("/sys/fs/cgroup/no/such/cgroup");
        assert!(!is_populated(missing) && !is_frozen(missing));
        assert!(processes(missing).is_empty());
        assert!(!contains(missing, std::process::id()));
    }
}
