//! Forked child processes that run code of this program.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getpid, getppid, pipe2, setsid};

use crate::error::TimedOut;
use crate::sys::pidfd;

/// Maximum length of the error that a child reports, in bytes. A pipe holds at least as much, so
/// the child can write it before anything reads.
const MAX_ERROR: usize = 4096;

/// Flag of clone3(2). libc's constant has a type that is too narrow (linux/sched.h).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Runs `work` in a child process and returns its error.
pub fn run(work: impl FnOnce() -> Result<()>) -> Result<()> {
    run_child(start, None, work)
}

/// Runs `work` in a child process that is in `cgroup`, and returns its error.
///
/// The child is killed if this process ends: killing the cgroup of this process does not reach it.
pub fn run_in_cgroup(cgroup: &File, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let parent = getpid();
    let with_parent = || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before the call.
        if getppid() != parent {
            bail!("the parent process has ended");
        }
        work()
    };
    run_child(|| fork_into(cgroup), None, with_parent)
}

/// Runs `work` in a process that this one does not wait for, and that is no child of it.
///
/// The process is in `cgroup`, or else in that of this process. It ends with the exit status that
/// `work` returns, which nobody sees.
pub fn run_detached(cgroup: Option<&File>, work: impl FnOnce() -> i32) -> Result<()> {
    let start_work = || cgroup.map_or_else(start, fork_into);
    run(|| match start_work()? {
        ForkResult::Child => exit(work()),
        ForkResult::Parent { .. } => Ok(()),
    })
}

/// Runs `work` in a child process, which is killed after `limit`, and returns its error.
///
/// Fails with [`TimedOut`] after `limit`, and if a signal asks this program to end.
pub fn run_with_limit(limit: Duration, work: impl FnOnce() -> Result<()>) -> Result<()> {
    run_child(start, Some(limit), work)
}

fn start() -> Result<ForkResult> {
    fork().context("can't start a process")
}

fn run_child(
    start: impl FnOnce() -> Result<ForkResult>,
    limit: Option<Duration>,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let child = match start()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => exit(report(work(), File::from(writer))),
    };
    drop(writer);
    let status = wait(child, limit)?;
    if status == WaitStatus::Exited(child, 0) {
        return Ok(());
    }
    let mut message = Vec::new();
    File::from(reader)
        .take(MAX_ERROR as u64)
        .read_to_end(&mut message)?;
    if message.is_empty() {
        bail!("a child process ended without a result: {status:?}");
    }
    Err(anyhow!(String::from_utf8_lossy(&message).into_owned()))
}

// Writes the error to the pipe and returns the child's exit status.
fn report(result: Result<()>, mut writer: File) -> i32 {
    let Err(error) = result else { return 0 };
    let message = format!("{error:#}").into_bytes();
    let _ = writer.write_all(&message[..message.len().min(MAX_ERROR)]);
    1
}

fn wait(child: Pid, limit: Option<Duration>) -> Result<WaitStatus> {
    let Some(limit) = limit else {
        return Ok(waitpid(child, None)?);
    };
    let has_ended = pidfd::wait_for_exit(child.as_raw(), limit);
    if !matches!(has_ended, Ok(true)) {
        kill(child, Signal::SIGKILL)?;
    }
    let status = waitpid(child, None)?;
    if !has_ended? {
        bail!(TimedOut(format!(
            "a child process did not end within {} seconds",
            limit.as_secs()
        )));
    }
    Ok(status)
}

/// Forks this process, which must have a single thread.
///
/// # Panics
/// In a debug build, if this process has several threads.
pub fn fork() -> nix::Result<ForkResult> {
    assert_single_thread();
    // SAFETY: this process has a single thread, so no other thread can hold a lock that the child
    // would wait for. The child may do everything that the parent may.
    unsafe { nix::unistd::fork() }
}

/// Forks this process, which must have a single thread. The child starts in `cgroup` (kernel 5.7).
///
/// Moving the child there afterwards may take ten milliseconds, since the kernel then waits for
/// all processors.
///
/// # Panics
/// In a debug build, if this process has several threads.
pub fn fork_into(cgroup: &File) -> Result<ForkResult> {
    assert_single_thread();
    let arguments = libc::clone_args {
        flags: CLONE_INTO_CGROUP,
        exit_signal: Signal::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
    };
    // SAFETY: clone3(2) reads a structure of the given size. The child shares no memory with this
    // process, and as in `fork`, no other thread can hold a lock.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of_val(&arguments),
        )
    };
    Ok(match Errno::result(pid).context("can't fork")? {
        0 => ForkResult::Child,
        pid => ForkResult::Parent {
            child: Pid::from_raw(i32::try_from(pid)?),
        },
    })
}

/// Makes the process of `command` end with SIGKILL when this process ends.
pub fn kill_with_parent(command: &mut Command) {
    // SAFETY: in the child the closure only calls prctl(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
}

/// Panics in a debug build if this process has several threads.
pub(super) fn assert_single_thread() {
    debug_assert!(
        fs::read_dir("/proc/self/task").map_or(true, |threads| threads.count() == 1),
        "this process has several threads"
    );
}

/// Checks that this process can fork, which a limit on processes may prevent.
pub fn check() -> nix::Result<()> {
    // SAFETY: the child only calls _exit(2), which is async-signal-safe.
    match unsafe { nix::unistd::fork() }? {
        // SAFETY: _exit(2) ends the process and runs no code of this program.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => waitpid(child, None).map(drop),
    }
}

/// Makes the process of `command` independent of the caller of this program.
///
/// The process has a session of its own, and only its stdin, stdout and stderr. It keeps neither
/// locks nor the pipes of a process that waits for the output of this program.
pub fn detach(command: &mut Command) {
    let detach = || {
        setsid()?;
        // SAFETY: close_range(2) takes three integers (kernel 5.11 for the flag). The descriptors
        // stay open until execve(2).
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                RawFd::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        Ok(())
    };
    // SAFETY: in the child the closure only makes system calls, which are async-signal-safe.
    unsafe { command.pre_exec(detach) };
}
