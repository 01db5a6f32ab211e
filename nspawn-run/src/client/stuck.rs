//! Threads of this program that can't be killed.
//!
//! A process in the machine may hold the lock of a pipe while it waits for a FUSE file system that
//! the machine provides: see [`fuse`]. A thread that reads or writes the pipe then waits for the
//! lock, and this program can't end before that thread.

use std::fs;
use std::thread;
use std::time::Duration;

use nspawn_common::lifecycle::fuse;
use nspawn_common::machine::paths::MachinePaths;

/// Time after which a thread that still waits is stuck. A slow disk takes less.
const PATIENCE: Duration = Duration::from_secs(1);

/// Frees the threads that are stuck, for which it aborts all FUSE file systems of the machine.
pub fn free_threads(paths: &MachinePaths) {
    if !has_uninterruptible_thread() {
        return;
    }
    thread::sleep(PATIENCE);
    if has_uninterruptible_thread() {
        fuse::abort_connections(paths);
    }
}

fn has_uninterruptible_thread() -> bool {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let mut states = tasks.flatten().map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        is_uninterruptible(&stat)
    });
    states.any(|is_uninterruptible| is_uninterruptible)
}

/// Returns whether the state in a stat file is D (proc_pid_stat(5)). The name before it may contain
/// anything.
fn is_uninterruptible(stat: &str) -> bool {
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('D'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_follows_the_name() {
        assert!(is_uninterruptible("12 (nspawn-run) D 1 2 3"));
        assert!(!is_uninterruptible("12 (a) D 1) S 1 2 3"));
        assert!(!is_uninterruptible(""));
        assert!(!has_uninterruptible_thread());
    }
}
