//! Signals that ask a program to end, turned into an error where it waits: so that it can undo what
//! it has begun.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Failure;

/// The signals that ask a program to end.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

static SIGNALS: OnceLock<SignalFd> = OnceLock::new();
/// The signal that has come, or 0.
static TAKEN: AtomicI32 = AtomicI32::new(0);
static IS_IGNORING: AtomicBool = AtomicBool::new(false);

/// Undoes what a caller may have set that would keep a program from learning how its children end.
pub fn reset_child_signal() {
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// From now on SIGTERM, SIGINT and SIGHUP don't end this process, but its next wait for a tool. One
/// that is ignored, as nohup(1) has it, stays ignored.
///
/// # Errors
/// No descriptors left.
pub fn catch() -> Result<()> {
    let signals: SigSet = ENDING
        .into_iter()
        .filter(|signal| !is_ignored(*signal))
        .collect();
    signals.thread_block().context("can't block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).context("can't watch for signals")?;
    SIGNALS.get_or_init(|| signals);
    Ok(())
}

/// Fails if a signal has come, and so does every later call until [`ignore`].
///
/// # Errors
/// [`Fault::Interrupted`](crate::error::Fault::Interrupted).
pub fn check() -> Result<()> {
    let Some(signals) = watched() else {
        return Ok(());
    };
    if let Ok(Some(info)) = signals.read_signal() {
        TAKEN.store(
            i32::try_from(info.ssi_signo).unwrap_or_default(),
            Ordering::Relaxed,
        );
    }
    match TAKEN.load(Ordering::Relaxed) {
        0 => Ok(()),
        number => {
            Err(Failure::interrupted(Signal::try_from(number).unwrap_or(Signal::SIGTERM)).into())
        }
    }
}

/// From now on nothing is interrupted: what was begun is undone.
pub fn ignore() {
    IS_IGNORING.store(true, Ordering::Relaxed);
}

/// Readable when a signal has come that [`check`] has not seen.
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    watched().map(AsFd::as_fd)
}

/// Waits, `limit` at most, until `events` is readable or a signal has come, which [`check`] tells. Whether `events`
/// is; it may return early without.
///
/// # Errors
/// The kernel's.
pub fn wait_readable(events: BorrowedFd, limit: Duration) -> Result<bool> {
    let mut events = [PollFd::new(events, PollFlags::POLLIN)];
    poll(&mut events, limit)?;
    Ok(events[0].any() == Some(true))
}

/// Waits, `limit` at most, for one of the `events` or a signal, which [`check`] tells; it may return early without.
///
/// # Errors
/// The kernel's.
pub fn poll(events: &mut [PollFd], limit: Duration) -> Result<()> {
    let mut fds = events.to_vec();
    fds.extend(descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    match nix::poll::poll(
        &mut fds,
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
    ) {
        Ok(_) => events.clone_from_slice(&fds[..events.len()]),
        Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("can't wait for events"),
    }
    Ok(())
}

/// From now on they end this process again; those that came meanwhile are forgotten.
///
/// # Errors
/// None that is known.
pub fn restore() -> Result<()> {
    while let Some(Ok(Some(_))) = SIGNALS.get().map(SignalFd::read_signal) {}
    SigSet::from_iter(ENDING)
        .thread_unblock()
        .context("can't unblock signals")
}

/// Ends this process by `signal`, so that its parent learns the reason from the wait status.
pub fn die_by(signal: Signal) {
    let _ = raise(signal).and_then(|()| SigSet::from_iter(ENDING).thread_unblock());
}

fn watched() -> Option<&'static SignalFd> {
    SIGNALS
        .get()
        .filter(|_| !IS_IGNORING.load(Ordering::Relaxed))
}

// Only asks: to set an action, as signal(2) does, would drop a signal that has come and is blocked.
fn is_ignored(number: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the old one is written, and nothing else done.
    let asked = unsafe { libc::sigaction(number as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it has been written if that succeeded.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn a_second_catch_loses_no_signal() {
        // In a process of its own, since signals are caught for all of it.
        // SAFETY: the child is this thread alone, and takes no lock that another may have held.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let is_caught =
                    catch().is_ok() && raise(Signal::SIGTERM).is_ok() && catch().is_ok();
                std::process::exit(i32::from(!is_caught || check().is_ok()))
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0))
            }
        }
    }
}
