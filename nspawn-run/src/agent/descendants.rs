//! The processes of a command: those of its cgroup, and the descendants of its session.
//!
//! A command can leave its cgroup. For example, logind moves `su` into a session of its own. But a
//! command can't leave its ancestors, because orphans become children of the session
//! (`PR_SET_CHILD_SUBREAPER`).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nspawn_common::sys::process::is_running;

/// Makes this process the parent of orphans among its descendants.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context("can't become the parent of orphans")
}

/// Returns the processes in a cgroup and in the cgroups below it.
pub fn in_cgroup(cgroup: &Path) -> Vec<Pid> {
    let mut processes = read_pids(&cgroup.join("cgroup.procs"));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes.extend(in_cgroup(&entry.path()));
        }
    }
    processes
}

/// Returns the children of this process, their children, and so on.
pub fn descendants() -> Vec<Pid> {
    let mut found = children(Pid::this());
    let mut visited = 0;
    while let Some(next) = found.get(visited).copied() {
        found.extend(children(next));
        visited += 1;
    }
    found
}

/// Sends `signals` to `processes`. A process that has ended meanwhile is not an error.
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

// Each thread has its own list of children (proc_pid_task(5), "children").
fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task"));
    threads
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|thread| read_pids(&thread.path().join("children")))
        .collect()
}

// The kernel shows a process outside of this PID namespace as 0.
fn read_pids(file: &Path) -> Vec<Pid> {
    fs::read_to_string(file)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .filter(|pid| *pid > 0)
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn grandchildren_are_descendants() {
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
