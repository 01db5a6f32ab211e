//! A cgroup for each command, below the agent's own (systemd delegates it: `Delegate=yes`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The agent's own cgroup.
pub struct Cgroups {
    root: PathBuf,
    used: u64,
}

impl Cgroups {
    /// Finds the cgroup and moves this process into a leaf of it: cgroups(7) wants processes in
    /// leaves alone.
    ///
    /// # Errors
    /// The cgroup is not delegated, or not one of version 2.
    pub fn enter() -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("can't tell the agent's cgroup")?;
        let path =
            own.lines().find_map(|line| line.strip_prefix("0::")).context("the machine has no cgroups of version 2")?;
        let root = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
        let leaf = Cgroup { path: root.join("agent") };
        leaf.make()?;
        leaf.add_self()?;
        Ok(Self { root, used: 0 })
    }

    /// A name for the next command's cgroup. Those that have become empty are removed.
    pub fn next(&mut self) -> Cgroup {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            // Fails, as it should, for those in use.
            let _ = fs::remove_dir(entry.path());
        }
        self.used += 1;
        Cgroup { path: self.root.join(format!("command-{}", self.used)) }
    }
}

/// The cgroup of one command and of all that it starts.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes it; one left by an earlier agent will do.
    ///
    /// # Errors
    /// The file system's.
    pub fn make(&self) -> Result<()> {
        fs::create_dir(&self.path)
            .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .with_context(|| format!("can't make the cgroup {}", self.path.display()))
    }

    /// Moves this process into it.
    ///
    /// # Errors
    /// The file system's.
    pub fn add_self(&self) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
            .with_context(|| format!("can't enter the cgroup {}", self.path.display()))
    }

    /// Kills all its processes (kernel 5.14) and waits until they are gone.
    ///
    /// # Errors
    /// They don't end in time.
    pub fn kill(&self) -> Result<()> {
        let events = self.path.join("cgroup.events");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("can't watch a cgroup")?;
        inotify.add_watch(&events, AddWatchFlags::IN_MODIFY).context("can't watch a cgroup")?;
        fs::write(self.path.join("cgroup.kill"), "1").context("can't kill the command's processes")?;
        let deadline = Instant::now() + KILL_LIMIT;
        while fs::read_to_string(&events).is_ok_and(|events| events.contains("populated 1")) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the command's processes do not end");
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => drop(inotify.read_events()),
                Err(error) => return Err(error).context("can't watch a cgroup"),
            }
        }
        Ok(())
    }
}
