//! A cgroup for each command, below the agent's own, which systemd delegates (`Delegate=yes`).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};
use nspawn_common::sys::fs::ignore_missing;
use nspawn_common::sys::{cgroup, fork};

use crate::agent::descendants;
use crate::agent::limits;
use crate::agent::limits::Limit;

/// Time limit for killed processes to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Time after which processes that the last round of kills has missed are killed.
const KILL_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between searches for descendants outside of the cgroup.
const SEARCH_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of searches for processes that were forked while others got SIGTERM.
const TERMINATE_ROUNDS: u32 = 100;

/// Cgroup of the agent itself and of its sessions, below that of the agent's unit.
const LEAF: &str = "agent";

/// Error of a session whose host has closed the connection.
pub const HOST_IS_GONE: &str = "the host closed the connection, so its command was stopped";

/// Cgroup of the agent's unit.
pub struct AgentCgroup {
    path: PathBuf,
    /// Number of cgroups that commands have got.
    commands: u64,
    limits: Vec<Limit>,
}

impl AgentCgroup {
    /// Finds the cgroup, and moves this process into a leaf below it.
    ///
    /// A cgroup with controllers may have processes only in leaves (cgroups(7)).
    pub fn enter() -> Result<Self> {
        let current = current_cgroup()?;
        // systemd 254 and newer starts the agent in the leaf. This saves the slow move: see
        // `fork::fork_into`.
        let path = if current.ends_with(LEAF) {
            let parent = current
                .parent()
                .context("the agent's cgroup has no parent")?;
            parent.to_owned()
        } else {
            let leaf = current.join(LEAF);
            create(&leaf)?;
            fs::write(leaf.join("cgroup.procs"), "0")
                .with_context(|| format!("can't enter the cgroup {}", leaf.display()))?;
            current
        };
        let limits = limits::inherit(&path);
        Ok(Self {
            path,
            commands: 0,
            limits,
        })
    }

    /// Returns the cgroup for the next command, which is not created yet.
    pub fn next_command(&mut self) -> CommandCgroup {
        self.commands += 1;
        CommandCgroup {
            path: self.path.join(format!("command-{}", self.commands)),
            limits: self.limits.clone(),
        }
    }
}

fn current_cgroup() -> Result<PathBuf> {
    let cgroups =
        fs::read_to_string("/proc/self/cgroup").context("can't read the agent's cgroup")?;
    let path = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .context("the machine has no cgroups of version 2")?;
    Ok(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

// Creates a cgroup, unless an earlier agent has left it.
fn create(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.with_context(|| format!("can't create the cgroup {}", path.display())),
    }
}

/// Kills the agent and its sessions, which are all processes in the leaf.
///
/// The caller is a process of the agent's unit, in a cgroup beside the leaf or above it.
pub fn kill_agent() -> Result<()> {
    let leaf = current_cgroup()?
        .ancestors()
        .map(|ancestor| ancestor.join(LEAF))
        .find(|leaf| leaf.exists())
        .context("no agent is running")?;
    cgroup::kill(&leaf).context("can't kill the agent")
}

/// Cgroup of a command and of all processes that the command starts.
#[derive(Clone)]
pub struct CommandCgroup {
    path: PathBuf,
    limits: Vec<Limit>,
}

impl CommandCgroup {
    /// Creates the cgroup, unless an earlier agent has left it.
    pub fn create(&self) -> Result<()> {
        create(&self.path)?;
        limits::set(&self.path, &self.limits);
        Ok(())
    }

    /// Forks a child that starts in this cgroup: see [`fork::fork_into`].
    pub fn fork_into(&self) -> Result<ForkResult> {
        let directory = File::open(&self.path).context("can't open a cgroup")?;
        fork::fork_into(&directory)
    }

    /// Removes the cgroup. Returns `false` if there are still processes in it.
    pub fn remove(&self) -> bool {
        fs::remove_dir(&self.path).is_ok() || !self.path.exists()
    }

    /// Kills all processes of the cgroup at once, also those that are being forked (kernel 5.14).
    ///
    /// A cgroup that does not exist is not an error.
    pub fn kill(&self) -> Result<()> {
        ignore_missing(cgroup::kill(&self.path)).context("can't kill the command's processes")
    }

    /// Kills all processes of the cgroup and all descendants of this process, and waits for their
    /// end.
    pub fn kill_all(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            self.kill()?;
            descendants::signal(&descendants::descendants(), &[Signal::SIGKILL]);
            if self.wait_until_empty(KILL_INTERVAL, None)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("can't kill the command's processes: they do not end");
            }
        }
    }

    /// Sends SIGTERM to all processes of the cgroup and all descendants of this process, and kills
    /// those that still run after `grace_period`.
    ///
    /// Fails if `host` closes the connection meanwhile.
    pub fn stop(&self, grace_period: Duration, host: BorrowedFd) -> Result<()> {
        self.terminate();
        if self.wait_until_empty(grace_period, Some(host))? {
            return Ok(());
        }
        self.kill_all()
    }

    // A process that is forked meanwhile gets its signal in the next round. The number of rounds is
    // limited because of processes that fork without end.
    fn terminate(&self) {
        let mut seen = HashSet::new();
        for _ in 0..TERMINATE_ROUNDS {
            let mut processes = descendants::in_cgroup(&self.path);
            processes.extend(descendants::descendants());
            let new: Vec<Pid> = processes
                .into_iter()
                .filter(|process| seen.insert(*process))
                .collect();
            // SIGCONT follows as in systemd (systemd.kill(5)), since a stopped process can't end.
            descendants::signal(&new, &[Signal::SIGTERM, Signal::SIGCONT]);
            if new.is_empty() {
                return;
            }
        }
    }

    // Returns `false` if there are still processes after `limit`. No event reports the end of a
    // descendant outside of the cgroup, so a search for them is repeated.
    fn wait_until_empty(&self, limit: Duration, host: Option<BorrowedFd>) -> Result<bool> {
        let mut events = File::open(self.path.join("cgroup.events")).ok();
        let deadline = Instant::now() + limit;
        loop {
            let is_populated = events.as_mut().map_or(Ok(false), is_populated)?;
            if !is_populated && !has_descendants() {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let wait = if is_populated {
                left
            } else {
                left.min(SEARCH_INTERVAL)
            };
            wait_for_change(events.as_ref(), host, wait)?;
        }
    }
}

// Waits until the events of a cgroup change. Fails if the host closes the connection.
fn wait_for_change(events: Option<&File>, host: Option<BorrowedFd>, limit: Duration) -> Result<()> {
    let mut fds: Vec<PollFd> = Vec::new();
    // The kernel reports POLLHUP and POLLERR even if no event is requested.
    fds.extend(host.map(|host| PollFd::new(host, PollFlags::empty())));
    // A change of the file is an exceptional condition (cgroups(7)).
    fds.extend(events.map(|events| PollFd::new(events.as_fd(), PollFlags::POLLPRI)));
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("can't watch a cgroup"),
    }
    if host.is_some() && fds[0].any() == Some(true) {
        bail!(HOST_IS_GONE);
    }
    Ok(())
}

fn has_descendants() -> bool {
    descendants::descendants()
        .into_iter()
        .any(descendants::is_alive)
}

fn is_populated(events: &mut File) -> Result<bool> {
    let mut text = String::new();
    events
        .rewind()
        .and_then(|()| events.read_to_string(&mut text))
        .context("can't read the events of a cgroup")?;
    Ok(text.contains("populated 1"))
}
