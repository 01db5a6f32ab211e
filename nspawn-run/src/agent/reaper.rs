//! Ends of child processes.
//!
//! This module calls waitpid(2) itself, because nix does not know the real-time signals.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// End of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// The process exited with this status.
    Exited(u8),
    /// The signal of this number ended the process.
    Signaled(u8),
}

/// Blocks SIGCHLD and returns a descriptor that is readable when a child has ended.
pub fn watch() -> Result<SignalFd> {
    let mut child_signal = SigSet::empty();
    child_signal.add(Signal::SIGCHLD);
    child_signal.thread_block().context("can't block SIGCHLD")?;
    SignalFd::with_flags(
        &child_signal,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )
    .context("can't watch for the end of processes")
}

/// Waits for the end of `child`.
pub fn wait_for(child: Pid) -> nix::Result<ProcessEnd> {
    loop {
        match wait(child.as_raw(), 0) {
            Ok(Some((_, end))) => return Ok(end),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reaps a child that has ended, if there is one.
pub fn next() -> Option<(Pid, ProcessEnd)> {
    wait(-1, libc::WNOHANG).ok().flatten()
}

fn wait(pid: libc::pid_t, flags: libc::c_int) -> nix::Result<Option<(Pid, ProcessEnd)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int, which is the type of `status`.
    let result = unsafe { libc::waitpid(pid, &raw mut status, flags) };
    let pid = Errno::result(result)?;
    Ok((pid > 0).then(|| (Pid::from_raw(pid), decode_status(status))))
}

// An exit status and the number of a signal have no more than eight bits.
fn decode_status(status: libc::c_int) -> ProcessEnd {
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
    fn wait_statuses_are_decoded() {
        assert_eq!(decode_status(42 << 8), ProcessEnd::Exited(42));
        assert_eq!(decode_status(9), ProcessEnd::Signaled(9));
        let with_core_dump = 11 | 0x80;
        assert_eq!(decode_status(with_core_dump), ProcessEnd::Signaled(11));
        let real_time_signal = 34;
        assert_eq!(decode_status(real_time_signal), ProcessEnd::Signaled(34));
    }
}
