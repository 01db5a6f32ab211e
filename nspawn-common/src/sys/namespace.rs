//! Namespaces of other processes (namespaces(7)).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, chroot, fchdir, setgid, setgroups, setuid};

use crate::sys::fork;

/// Opens a file of process `pid` in /proc, such as `ns/net`.
///
/// The process may have ended and its number may belong to another process. The caller must check
/// that after the call.
pub fn open(pid: u32, name: &str) -> io::Result<File> {
    File::open(format!("/proc/{pid}/{name}"))
}

/// Returns whether `namespace` is the namespace of this `kind` that this process is in.
pub fn is_own(namespace: &File, kind: &str) -> Result<bool> {
    let read = |path: String| fs::read_link(path).context("can't compare namespaces");
    Ok(read(format!("/proc/self/fd/{}", namespace.as_raw_fd()))?
        == read(format!("/proc/self/ns/{kind}"))?)
}

/// Namespaces and root directory of a process.
#[derive(Debug)]
pub struct Environment {
    /// User namespace.
    pub users: File,
    /// Mount namespace.
    pub mounts: File,
    /// Root directory.
    pub root: File,
}

impl Environment {
    /// Runs `work` as root of the user namespace, with the files of the mount namespace.
    ///
    /// `work` runs in a child process that stays in the PID namespace of this process, so that no
    /// process inside can access it. Those files may block it, so it is killed after `limit`.
    pub fn run(&self, limit: Duration, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let has_own_users = !is_own(&self.users, "user")?;
        fork::run_with_limit(limit, || {
            self.enter(has_own_users)
                .context("can't enter its namespaces")?;
            work()
        })
    }

    fn enter(&self, has_own_users: bool) -> io::Result<()> {
        // setns(2) refuses to enter the user namespace that the process is in already.
        if has_own_users {
            setns(&self.users, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
        fchdir(&self.root)?;
        chroot(".")?;
        setgroups(&[])?;
        setgid(Gid::from_raw(0))?;
        setuid(Uid::from_raw(0))?;
        Ok(())
    }
}

/// Sets the host name in the UTS namespace `namespace`.
///
/// This also works where a process inside may not do so itself.
pub fn set_host_name(namespace: &File, name: &str) -> Result<()> {
    fork::run(|| {
        setns(namespace, CloneFlags::CLONE_NEWUTS)
            .and_then(|()| nix::unistd::sethostname(name))
            .context("can't set the machine's host name")
    })
}
