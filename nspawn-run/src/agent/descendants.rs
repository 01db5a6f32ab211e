//! Finding processes: those of a cgroup, and those that descend from this one wherever they have gone.
//!
//! A command can leave its cgroup: `su` does, where logind gives it a session of its own. It can't leave
//! its ancestors, once this process is the one to which orphans go (`PR_SET_CHILD_SUBREAPER`).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nspawn_common::sys::process::is_running;

/// Makes this process the one to which the orphans among its descendants go.
///
/// # Errors
/// None that is known.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context("can't become the parent of orphans")
}

/// The processes of a cgroup, and of those that were made below it.
#[must_use]
pub fn below(cgroup: &Path) -> Vec<Pid> {
    let own = numbers(&fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default());
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.into_iter()
        .chain(below.flat_map(|entry| self::below(&entry.path())))
        .collect()
}

/// The children of this process, their children, and so on.
#[must_use]
pub fn descendants() -> Vec<Pid> {
    let mut found = children(Pid::this());
    let mut seen = 0;
    while let Some(next) = found.get(seen).copied() {
        found.extend(children(next));
        seen += 1;
    }
    found
}

/// Sends signals to processes; one that is gone meanwhile needs none.
pub fn signal(processes: &[Pid], signals: &[Signal]) {
    for process in processes {
        for signal in signals {
            let _ = kill(*process, *signal);
        }
    }
}

/// Returns whether a process still runs. A zombie does not.
pub fn is_alive(process: Pid) -> bool {
    u32::try_from(process.as_raw()).is_ok_and(is_running)
}

// Each thread has its own (proc_pid_task(5), "children").
fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task"))
        .into_iter()
        .flatten()
        .flatten();
    threads
        .flat_map(|thread| {
            numbers(&fs::read_to_string(thread.path().join("children")).unwrap_or_default())
        })
        .collect()
}

// A process that this namespace does not see is 0.
fn numbers(text: &str) -> Vec<Pid> {
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .filter(|number| *number > 0)
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_of_children_descend_from_us() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let mut grandchildren = Vec::new();
        while grandchildren.is_empty() {
            grandchildren = children(pid);
        }
        let all = descendants();
        assert!(
            all.contains(&pid) && all.contains(&grandchildren[0]),
            "{all:?}"
        );
        assert!(is_alive(pid));
        signal(&[pid, grandchildren[0]], &[Signal::SIGKILL]);
        while is_alive(pid) {}
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }
}
