//! A cgroup for each command, below the agent's own (systemd delegates it: `Delegate=yes`).

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
use nix::unistd::ForkResult;
use nspawn_common::sys::fs::ignore_missing;
use nspawn_common::sys::{cgroup, fork};

use crate::agent::descendants;
use crate::agent::limits;
use crate::agent::limits::Limit;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long until those that were missed are looked for.
const KILL_ROUND: Duration = Duration::from_millis(500);
/// How often descendants outside of the cgroup are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The cgroup of the agent itself and of its sessions, below that of its unit.
const LEAF: &str = "agent";

/// How often processes are looked for that others have forked while these were asked to end.
const TERMINATE_ROUNDS: u32 = 100;

/// The agent's own cgroup.
pub struct Cgroups {
    root: PathBuf,
    used: u64,
    limits: Vec<Limit>,
}

impl Cgroups {
    /// Finds the cgroup and moves this process into a leaf of it: cgroups(7) wants processes in
    /// leaves alone.
    ///
    /// # Errors
    /// The cgroup is not delegated, or not one of version 2.
    pub fn enter() -> Result<Self> {
        let own = own()?;
        // systemd 254 and newer start it there, and spare it the move: see fork_into().
        let root = if own.ends_with(LEAF) {
            own.parent().context("a leaf of nothing")?.to_owned()
        } else {
            let leaf = Cgroup {
                path: own.join(LEAF),
                limits: Vec::new(),
            };
            leaf.make()?;
            leaf.add_self()?;
            own
        };
        let limits = limits::inherit(&root);
        Ok(Self {
            root,
            used: 0,
            limits,
        })
    }

    /// A name for the next command's cgroup.
    pub fn next(&mut self) -> Cgroup {
        self.used += 1;
        Cgroup {
            path: self.root.join(format!("command-{}", self.used)),
            limits: self.limits.clone(),
        }
    }
}

fn own() -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").context("can't tell the agent's cgroup")?;
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .context("the machine has no cgroups of version 2")?;
    Ok(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

/// Kills the agent and its sessions: all that is in the leaf. Called in the agent's unit, in a cgroup
/// beside or above that leaf.
///
/// # Errors
/// There is no agent.
pub fn kill_agent() -> Result<()> {
    let own = own()?;
    let leaf = own
        .ancestors()
        .map(|ancestor| ancestor.join(LEAF))
        .find(|leaf| leaf.exists());
    cgroup::kill(&leaf.context("there is no agent")?).context("can't kill the agent")
}

/// The cgroup of one command and of all that it starts.
#[derive(Clone)]
pub struct Cgroup {
    path: PathBuf,
    limits: Vec<Limit>,
}

impl Cgroup {
    /// Makes it; one left by an earlier agent will do.
    ///
    /// # Errors
    /// The file system's.
    pub fn make(&self) -> Result<()> {
        fs::create_dir(&self.path)
            .or_else(|error| {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    Ok(())
                } else {
                    Err(error)
                }
            })
            .with_context(|| format!("can't make the cgroup {}", self.path.display()))?;
        limits::set(&self.path, &self.limits);
        Ok(())
    }

    /// Moves this process into it.
    ///
    /// # Errors
    /// The file system's.
    pub fn add_self(&self) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
            .with_context(|| format!("can't enter the cgroup {}", self.path.display()))
    }

    /// Forks a child that starts in this cgroup: see [`fork::fork_into`].
    pub fn fork_into(&self) -> Result<ForkResult> {
        let directory = File::open(&self.path).context("can't open a cgroup")?;
        fork::fork_into(&directory)
    }

    /// Removes it if it is empty; `false` while something runs in it.
    pub fn remove(&self) -> bool {
        fs::remove_dir(&self.path).is_ok() || !self.path.exists()
    }

    /// Kills all its processes, all at once and those that are being forked too (kernel 5.14). It need not
    /// be there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&self) -> Result<()> {
        ignore_missing(cgroup::kill(&self.path)).context("can't kill the command's processes")
    }

    /// As [`Cgroup::kill`], with all descendants of this process wherever they are, and waits until they
    /// are gone.
    ///
    /// # Errors
    /// They don't end in time.
    pub fn kill_all(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            self.kill()?;
            descendants::signal(&descendants::descendants(), &[Signal::SIGKILL]);
            if self.wait_until_empty(KILL_ROUND, None)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("the command's processes do not end");
            }
        }
    }

    /// Asks all its processes and all descendants of this one to end, and kills those that still run
    /// after `grace`; a `host` that hangs up meanwhile is an error.
    ///
    /// # Errors
    /// As [`Cgroup::kill_all`]; the host went away.
    pub fn stop(&self, grace: Duration, host: BorrowedFd) -> Result<()> {
        self.terminate();
        if self.wait_until_empty(grace, Some(host))? {
            Ok(())
        } else {
            self.kill_all()
        }
    }

    // What is forked meanwhile is seen in the next round, but not by all that could fork for ever.
    fn terminate(&self) {
        let mut told = HashSet::new();
        for _ in 0..TERMINATE_ROUNDS {
            let all = descendants::below(&self.path)
                .into_iter()
                .chain(descendants::descendants());
            let untold: Vec<_> = all.filter(|process| told.insert(*process)).collect();
            // As systemd does (systemd.kill(5)): one that is stopped could not end.
            descendants::signal(&untold, &[Signal::SIGTERM, Signal::SIGCONT]);
            if untold.is_empty() {
                return;
            }
        }
    }

    // `false` when `limit` has passed first. The end of a descendant elsewhere wakes nobody, so it is
    // looked for now and then.
    fn wait_until_empty(&self, limit: Duration, host: Option<BorrowedFd>) -> Result<bool> {
        let mut events = File::open(self.path.join("cgroup.events")).ok();
        let deadline = Instant::now() + limit;
        loop {
            let is_populated = events.as_mut().map_or(Ok(false), is_populated)?;
            if !is_populated
                && !descendants::descendants()
                    .into_iter()
                    .any(descendants::is_alive)
            {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // A change is an exceptional condition of the file (cgroups(7)).
            let mut fds: Vec<_> = host
                .map(|host| PollFd::new(host, PollFlags::empty()))
                .into_iter()
                .collect();
            fds.extend(
                events
                    .as_ref()
                    .map(|events| PollFd::new(events.as_fd(), PollFlags::POLLPRI)),
            );
            let wait = if is_populated {
                left
            } else {
                left.min(LOOK_INTERVAL)
            };
            match poll(
                &mut fds,
                PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX),
            ) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("can't watch a cgroup"),
            }
            if host.is_some() && fds[0].any() == Some(true) {
                bail!("the host went away, so its command is ended");
            }
        }
    }
}

fn is_populated(events: &mut File) -> Result<bool> {
    let mut text = String::new();
    events
        .rewind()
        .and_then(|()| events.read_to_string(&mut text))
        .context("can't read a cgroup's events")?;
    Ok(cgroup::value(&text, "populated") == Some(1))
}
