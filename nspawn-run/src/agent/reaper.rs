//! Ends of child processes.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

pub use nspawn_common::sys::wait::{ProcessEnd, reap_next as next, wait_for};

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
