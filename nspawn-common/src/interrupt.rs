//! Signals that ask a program to end, turned into an error where it waits: so that it can undo what
//! it has begun.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Error, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

static SIGNALS: OnceLock<SignalFd> = OnceLock::new();
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The error of a program that was asked to end.
#[derive(Debug)]
pub struct Interrupted(Signal);

impl fmt::Display for Interrupted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "interrupted by {}", self.0)
    }
}

impl std::error::Error for Interrupted {}

/// From now on SIGTERM, SIGINT and SIGHUP don't end this process, but its next wait for a tool.
///
/// # Errors
/// No descriptors left.
pub fn catch() -> Result<()> {
    let signals = ending_signals();
    signals.thread_block().context("can't block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).context("can't watch for signals")?;
    SIGNALS.get_or_init(|| signals);
    Ok(())
}

/// Fails if a signal has come. Only once: what is undone then is not interrupted again.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<()> {
    let Some(signals) = watched() else { return Ok(()) };
    let Ok(Some(info)) = signals.read_signal() else { return Ok(()) };
    TAKEN.store(true, Ordering::Relaxed);
    let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
    Err(Interrupted(signal.unwrap_or(Signal::SIGTERM)).into())
}

/// Readable when [`check`] would fail.
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    watched().map(AsFd::as_fd)
}

/// Ends this process by the signal behind `error`, if one is: who waits for it then sees the truth.
pub fn die_if_interrupted(error: &Error) {
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        let _ = raise(*signal).and_then(|()| ending_signals().thread_unblock());
    }
}

fn watched() -> Option<&'static SignalFd> {
    SIGNALS.get().filter(|_| !TAKEN.load(Ordering::Relaxed))
}

fn ending_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}
