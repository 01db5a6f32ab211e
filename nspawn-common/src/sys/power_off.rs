//! Powers off a PID namespace (reboot(2), "Behavior inside PID namespaces").
#![allow(unsafe_code)]

use std::fs::File;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, getppid};

/// Ends all processes of a PID namespace at once, as if its PID 1 had powered off its system.
///
/// The parent of PID 1 sees that PID 1 ended by SIGINT. The call has no effect if `namespace` is no
/// namespace below that of this process, or if this process lacks the rights.
pub fn power_off(namespace: &File) {
    // SAFETY: until its end the child only makes system calls, which are async-signal-safe.
    match unsafe { fork() } {
        // SAFETY: _exit(2) ends the process and runs no code of this program.
        Ok(ForkResult::Child) => unsafe { libc::_exit(enter_and_power_off(namespace)) },
        Ok(ForkResult::Parent { child }) => drop(waitpid(child, None)),
        Err(_) => {}
    }
}

/// Returns the exit status of a process that does nothing else.
fn enter_and_power_off(namespace: &File) -> i32 {
    if setns(namespace, CloneFlags::CLONE_NEWPID).is_err() {
        return 1;
    }
    // Only a child of this process is in the namespace.
    // SAFETY: until its end the child only makes system calls, which are async-signal-safe.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => power_off_own(),
        Ok(ForkResult::Parent { child }) => i32::from(waitpid(child, None).is_err()),
        Err(_) => 1,
    }
}

fn power_off_own() -> i32 {
    // The number of a parent in another PID namespace is 0 (getppid(2)). If it is not, this process
    // has the namespace of the host, which must not power off.
    if getppid().as_raw() == 0 {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    1
}
