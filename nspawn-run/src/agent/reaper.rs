//! Ends of the agent's children.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
pub use nspawn_common::sys::wait::{End, next_ended, wait_for};

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
