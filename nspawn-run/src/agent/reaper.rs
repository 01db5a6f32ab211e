//! How children end. By waitpid(2) itself, since nix does not know the real-time signals.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit status.
    Exited(u8),
    /// By the signal of this number.
    Signaled(u8),
}

/// A descriptor that is readable when a child has ended, in a process that blocks SIGCHLD from now on.
///
/// # Errors
/// No descriptors left.
pub fn watch() -> Result<SignalFd> {
    let mut child_ends = SigSet::empty();
    child_ends.add(Signal::SIGCHLD);
    child_ends.thread_block().context("can't block SIGCHLD")?;
    SignalFd::with_flags(&child_ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("can't watch for ends")
}

/// Waits for the end of `child`.
///
/// # Errors
/// It is no child.
pub fn wait_for(child: Pid) -> nix::Result<End> {
    loop {
        match wait(child.as_raw(), 0) {
            Ok(Some((_, end))) => return Ok(end),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A child that has ended, if there is one.
#[must_use]
pub fn next() -> Option<(Pid, End)> {
    wait(-1, libc::WNOHANG).ok().flatten()
}

fn wait(which: libc::pid_t, flags: libc::c_int) -> nix::Result<Option<(Pid, End)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int, which is what `status` is.
    let pid = Errno::result(unsafe { libc::waitpid(which, &raw mut status, flags) })?;
    Ok((pid > 0).then(|| (Pid::from_raw(pid), end_of(status))))
}

// The lowest eight bits are all that a status and a signal's number have.
fn end_of(status: libc::c_int) -> End {
    if libc::WIFEXITED(status) {
        End::Exited(libc::WEXITSTATUS(status) as u8)
    } else {
        End::Signaled(libc::WTERMSIG(status) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_signals() {
        assert_eq!(end_of(42 << 8), End::Exited(42));
        assert_eq!(end_of(9), End::Signaled(9));
        // With a core dump; and a real-time signal.
        assert_eq!(end_of(11 | 0x80), End::Signaled(11));
        assert_eq!(end_of(34), End::Signaled(34));
    }
}
