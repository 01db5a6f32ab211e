//! The namespaces of a machine that runs, and work inside them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::command;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, chroot, fchdir, fork, pipe, setgid, setgroups, setuid};

/// How much may be said of a failure, in bytes.
const MAX_WORDS: u64 = 4096;

/// Opens what /proc has of the machine's PID 1, process `leader`.
pub fn open<const N: usize>(
    paths: &MachinePaths,
    leader: u32,
    names: [&str; N],
) -> Result<[File; N]> {
    let open = |name| File::open(format!("/proc/{leader}/{name}")).context("the machine has ended");
    let files = names.map(open).into_iter().collect::<Result<Vec<_>>>()?;
    // It may have ended since, and its number be another process's.
    if !processes::is_member(paths, leader) {
        bail!("machine {} has ended", paths.name());
    }
    files.try_into().map_err(|_| anyhow!("no namespaces"))
}

/// Whether the namespace of this `kind` is this process's own.
pub fn is_ours(namespace: &File, kind: &str) -> Result<bool> {
    let name = |path: String| fs::read_link(path).context("can't tell namespaces apart");
    Ok(name(format!("/proc/self/fd/{}", namespace.as_raw_fd()))?
        == name(format!("/proc/self/ns/{kind}"))?)
}

/// Does `work` as the machine's root, with the machine's files and users, and no process of the machine's to see it.
/// What those files are may hold it up, for `limit` at most.
///
/// # Errors
/// Those of `work`; it takes too long.
pub fn inside(
    paths: &MachinePaths,
    leader: u32,
    limit: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let [users, mounts, root] = open(paths, leader, ["ns/user", "ns/mnt", "root"])?;
    let has_own_users = !is_ours(&users, "user")?;
    let (told, tell) = pipe()?;
    // SAFETY: this process has a single thread, so the child may do all that a program may.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let entered = enter(has_own_users.then_some(&users), &mounts, &root);
            let Err(error) = entered.and_then(|()| work()) else {
                std::process::exit(0)
            };
            let _ = File::from(tell).write_all(format!("{error:#}").as_bytes());
            std::process::exit(1)
        }
    };
    drop(tell);
    let ended = command::wait_for_exit(child.as_raw(), limit);
    if !matches!(ended, Ok(true)) {
        kill(child, Signal::SIGKILL)?;
    }
    waitpid(child, None)?;
    if !ended? {
        bail!(
            "machine {} keeps its own files from being used",
            paths.name()
        );
    }
    let mut words = String::new();
    File::from(told)
        .take(MAX_WORDS)
        .read_to_string(&mut words)?;
    if words.is_empty() {
        Ok(())
    } else {
        Err(anyhow!("in machine {}: {words}", paths.name()))
    }
}

fn enter(users: Option<&File>, mounts: &File, root: &File) -> Result<()> {
    let entered = || -> io::Result<()> {
        if let Some(users) = users {
            setns(users, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(mounts, CloneFlags::CLONE_NEWNS)?;
        fchdir(root)?;
        chroot(".")?;
        setgroups(&[])?;
        setgid(Gid::from_raw(0))?;
        setuid(Uid::from_raw(0))?;
        Ok(())
    };
    entered().context("can't enter it")
}
