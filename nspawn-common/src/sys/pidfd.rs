//! Waiting for the end of a process, by pidfd_open(2).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

use crate::sys::signals;

/// Waits until process `pid`, a child of this process, ends. Returns `false` after `limit`.
///
/// Fails if a signal asks this program to end.
pub fn wait_for_exit(pid: i32, limit: Duration) -> Result<bool> {
    let pidfd = open(pid)?;
    let deadline = Instant::now() + limit;
    loop {
        signals::check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if signals::wait_readable(pidfd.as_fd(), left)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

// Opens a descriptor that is readable once the process has ended (kernel 5.3).
fn open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and accesses no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).with_context(|| format!("can't watch process {pid}"))?;
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}
