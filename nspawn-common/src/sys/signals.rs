//! Signals that ask a program to end, as errors of the functions that wait.
//!
//! SIGTERM, SIGINT and SIGHUP are blocked and read from a signalfd(2). So a program can undo what
//! it has begun before it ends.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, raise, signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Failure;

/// Signals that ask a program to end.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

static SIGNALS: OnceLock<SignalFd> = OnceLock::new();
/// Number of the last signal that was received, or 0.
static RECEIVED: AtomicI32 = AtomicI32::new(0);
static IS_IGNORING: AtomicBool = AtomicBool::new(false);

/// Sets the default action of SIGCHLD.
///
/// A caller may have ignored SIGCHLD. Then this program could not wait for its children.
pub fn reset_child_signal() {
    // SAFETY: the default action runs no code of this program.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// Sets the default action of all signals, and blocks none.
pub fn reset_all() -> nix::Result<()> {
    // The action of these signals can't be set (signal(7)).
    let is_fixed = |number: &Signal| [Signal::SIGKILL, Signal::SIGSTOP].contains(number);
    for number in Signal::iterator().filter(|number| !is_fixed(number)) {
        // SAFETY: the default action runs no code of this program.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Makes SIGTERM, SIGINT and SIGHUP end the next wait instead of this process.
///
/// A signal that is ignored, as nohup(1) does it, stays ignored.
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

/// Fails with [`Fault::Interrupted`](crate::error::Fault::Interrupted) if a signal has been
/// received.
///
/// Each later call fails too, until [`ignore`].
pub fn check() -> Result<()> {
    let Some(signals) = watched() else {
        return Ok(());
    };
    if let Ok(Some(info)) = signals.read_signal() {
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        RECEIVED.store(number, Ordering::Relaxed);
    }
    match RECEIVED.load(Ordering::Relaxed) {
        0 => Ok(()),
        number => {
            let signal = Signal::try_from(number).unwrap_or(Signal::SIGTERM);
            Err(Failure::interrupted(signal).into())
        }
    }
}

/// Ignores SIGTERM, SIGINT and SIGHUP, so that cleanup runs to completion.
pub fn ignore() {
    IS_IGNORING.store(true, Ordering::Relaxed);
}

/// Returns a descriptor that is readable if a signal has arrived that [`check`] has not read.
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    watched().map(AsFd::as_fd)
}

/// Waits until `descriptor` is readable, a signal arrives, or `limit` has passed.
///
/// Returns whether the descriptor is readable. The wait may also end early without a reason.
pub fn wait_readable(descriptor: BorrowedFd, limit: Duration) -> Result<bool> {
    let mut events = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut events, limit)?;
    Ok(events[0].any() == Some(true))
}

/// Waits until one of the `events` occurs, a signal arrives, or `limit` has passed.
///
/// [`check`] reports the signal. The wait may also end early without a reason.
pub fn poll(events: &mut [PollFd], limit: Duration) -> Result<()> {
    let mut fds = events.to_vec();
    fds.extend(descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match nix::poll::poll(&mut fds, timeout) {
        Ok(_) => events.clone_from_slice(&fds[..events.len()]),
        Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("can't wait for events"),
    }
    Ok(())
}

/// Restores the action that the signals had before [`catch`], and discards pending ones.
pub fn restore() -> Result<()> {
    while let Some(Ok(Some(_))) = SIGNALS.get().map(SignalFd::read_signal) {}
    release()
}

/// Restores the action that the signals had before [`catch`]. A pending one takes effect now.
pub fn release() -> Result<()> {
    SigSet::from_iter(ENDING)
        .thread_unblock()
        .context("can't unblock signals")
}

/// Ends this process by `signal`, so that its parent sees the signal in the wait status.
pub fn die_by(signal: Signal) {
    let _ = raise(signal).and_then(|()| SigSet::from_iter(ENDING).thread_unblock());
}

fn watched() -> Option<&'static SignalFd> {
    SIGNALS
        .get()
        .filter(|_| !IS_IGNORING.load(Ordering::Relaxed))
}

// Returns whether the signal is ignored. signal(2) is not used for that: it would set an action,
// and so discard a signal that has arrived and is blocked.
fn is_ignored(number: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, sigaction(2) only writes the present one.
    let result = unsafe { libc::sigaction(number as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: sigaction(2) has written the action if it succeeded.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;

    /// Runs `test` in a child, because signals are blocked for a whole process. Returns the child
    /// and its end, which is the status 0 if `test` returns true.
    fn run_in_child(test: impl FnOnce() -> bool) -> (Pid, WaitStatus) {
        // SAFETY: the child has this thread alone, and takes no lock that another thread may hold.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => std::process::exit(i32::from(!test())),
            ForkResult::Parent { child } => (child, waitpid(child, None).unwrap()),
        }
    }

    #[test]
    fn second_catch_loses_no_signal() {
        let (child, end) = run_in_child(|| {
            catch().is_ok() && raise(Signal::SIGTERM).is_ok() && catch().is_ok() && check().is_err()
        });
        assert_eq!(end, WaitStatus::Exited(child, 0));
    }

    #[test]
    fn release_loses_no_signal_that_is_pending() {
        let raise_pending = || catch().is_ok() && raise(Signal::SIGTERM).is_ok();
        let (child, end) = run_in_child(|| raise_pending() && restore().is_ok());
        assert_eq!(end, WaitStatus::Exited(child, 0));
        let (child, end) = run_in_child(|| raise_pending() && release().is_ok());
        assert_eq!(end, WaitStatus::Signaled(child, Signal::SIGTERM, false));
    }
}
