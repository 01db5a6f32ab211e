//! Ends of child processes (waitpid(2)).
//!
//! nix's wrapper is not used, since it does not support real-time signals.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// End of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// Exit with this status.
    Exited(u8),
    /// Termination by the signal with this number.
    Signaled(u8),
}

/// Waits until `child` ends.
pub fn wait_for(child: Pid) -> nix::Result<ProcessEnd> {
    loop {
        match wait(child.as_raw(), 0) {
            Ok(Some((_, end))) => return Ok(end),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Returns a child that has ended, if there is one.
pub fn reap_next() -> Option<(Pid, ProcessEnd)> {
    wait(-1, libc::WNOHANG).ok().flatten()
}

fn wait(which: libc::pid_t, flags: libc::c_int) -> nix::Result<Option<(Pid, ProcessEnd)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    let pid = Errno::result(unsafe { libc::waitpid(which, &raw mut status, flags) })?;
    Ok((pid > 0).then(|| (Pid::from_raw(pid), end_of(status))))
}

// An exit status and a signal's number have eight bits at most.
fn end_of(status: libc::c_int) -> ProcessEnd {
    if libc::WIFEXITED(status) {
        ProcessEnd::Exited(libc::WEXITSTATUS(status) as u8)
    } else {
        ProcessEnd::Signaled(libc::WTERMSIG(status) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_and_signal_are_told_apart() {
        assert_eq!(end_of(42 << 8), ProcessEnd::Exited(42));
        assert_eq!(end_of(9), ProcessEnd::Signaled(9));
        // A core dump, and a real-time signal.
        assert_eq!(end_of(11 | 0x80), ProcessEnd::Signaled(11));
        assert_eq!(end_of(34), ProcessEnd::Signaled(34));
    }
}
