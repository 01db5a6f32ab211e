//! Locks of a machine and of host-wide resources. The kernel releases the locks of a process that
//! dies.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::command::flock;
use crate::command::flock::Kind;
use crate::machine::paths::{CACHE_ROOT, LAYER_ROOT, MachinePaths, POOL_ROOT, STATE_ROOT};
use crate::sys::fs::if_present;
use crate::sys::signals;

/// Time limit for another process that creates or removes the machine.
const MACHINE_LIMIT: Duration = Duration::from_secs(600);
/// Time that a process may take between fork(2) and execve(2).
const EXEC_TIME: Duration = Duration::from_millis(100);
/// Time limit for creating the lock file while other processes remove its directory.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two attempts to create the lock file.
const OPEN_PAUSE: Duration = Duration::from_millis(1);
/// Time limit for stopping a machine that runs for its commands only.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// Time limit for other processes that allocate a UID range.
pub const UID_RANGES_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for other processes that create caches and mount them.
pub const CACHES_LIMIT: Duration = Duration::from_secs(60);

/// A resource that all machines of this host share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The number of machines, which `--max-machines` limits.
    Machines,
    /// The UID ranges of machines: see [`crate::lifecycle::uid_range`].
    UidRanges,
    /// The standby pools.
    Pools,
    /// The caches of jobs.
    Caches,
}

impl Resource {
    fn directory(self) -> &'static str {
        match self {
            Self::Machines => STATE_ROOT,
            Self::UidRanges => LAYER_ROOT,
            Self::Pools => POOL_ROOT,
            Self::Caches => CACHE_ROOT,
        }
    }
}

/// Waits for the lock of a host-wide resource, for `limit` at most.
pub fn host(resource: Resource, limit: Duration) -> Result<Lock> {
    let path = resource.directory();
    let directory = make_private_dir(Path::new(path))
        .and_then(|()| File::open(path))
        .with_context(|| format!("can't open {path}"))?;
    let file = flock::lock(directory, Kind::Exclusive, limit)
        .with_context(|| format!("can't lock {path}"))?;
    Ok(Lock { _file: file })
}

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Result of one attempt to lock a machine without waiting.
enum Attempt {
    Acquired(Lock),
    /// Another process holds the lock.
    Busy,
    /// The lock file was removed meanwhile, or its holder may be about to exit.
    Retry,
}

impl Lock {
    /// Waits for the machine's lock, and creates the machine's state directory if it is missing.
    ///
    /// # Errors
    /// Fails if another process takes too long to create or remove the machine.
    pub fn acquire(paths: &MachinePaths) -> Result<Self> {
        loop {
            if let Some(lock) = Self::wait(open(paths)?, &paths.lock_file())? {
                return Ok(lock);
            }
        }
    }

    /// Waits for the lock of an existing machine. Returns `None` if the machine is missing.
    ///
    /// # Errors
    /// Fails if another process takes too long to create or remove the machine.
    pub fn acquire_of_existing(paths: &MachinePaths) -> Result<Option<Self>> {
        loop {
            let Some(file) = open_existing(paths)? else {
                return Ok(None);
            };
            if let Some(lock) = Self::wait(file, &paths.lock_file())? {
                return Ok(Some(lock));
            }
        }
    }

    /// Waits for the lock. Returns `None` if its previous holder has removed the file meanwhile.
    fn wait(file: File, path: &Path) -> Result<Option<Self>> {
        let file = flock::lock(file, Kind::Exclusive, MACHINE_LIMIT)
            .with_context(|| format!("can't lock {}", path.display()))?;
        Ok(flock::is_at(&file, path).then_some(Self { _file: file }))
    }

    /// Locks the machine, and creates its state directory if it is missing. Returns `None` if
    /// another process holds the lock.
    ///
    /// A process that is killed leaves its lock to a child that has not called execve(2) yet. The
    /// lock is tried again for as long as that may take.
    pub fn try_acquire(paths: &MachinePaths) -> Result<Option<Self>> {
        let deadline = Instant::now() + EXEC_TIME;
        loop {
            match Self::attempt(open(paths)?, &paths.lock_file(), deadline)? {
                Attempt::Acquired(lock) => return Ok(Some(lock)),
                Attempt::Busy => return Ok(None),
                Attempt::Retry => {}
            }
        }
    }

    /// Locks an existing machine like [`Lock::try_acquire`]. It also returns `None` if the machine
    /// is missing.
    pub fn try_acquire_of_existing(paths: &MachinePaths) -> Result<Option<Self>> {
        let deadline = Instant::now() + EXEC_TIME;
        loop {
            let Some(file) = open_existing(paths)? else {
                return Ok(None);
            };
            match Self::attempt(file, &paths.lock_file(), deadline)? {
                Attempt::Acquired(lock) => return Ok(Some(lock)),
                Attempt::Busy => return Ok(None),
                Attempt::Retry => {}
            }
        }
    }

    fn attempt(file: File, path: &Path, deadline: Instant) -> Result<Attempt> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) if flock::is_at(&file, path) => {
                return Ok(Attempt::Acquired(Self { _file: file }));
            }
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                return Ok(Attempt::Busy);
            }
            Err((_, Errno::EWOULDBLOCK)) => thread::sleep(EXEC_TIME / 10),
            Err((_, errno)) => return Err(errno).context("can't lock the machine"),
        }
        Ok(Attempt::Retry)
    }

    /// Returns whether a process holds the machine's lock. Leaves no trace.
    #[must_use]
    pub fn is_held(paths: &MachinePaths) -> bool {
        // A file that is open for reading only wakes no process that watches for the end of the
        // lock's holder.
        let Ok(file) = File::open(paths.lock_file()) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, Errno::EWOULDBLOCK))
        )
    }
}

/// A shared lock that each command in an `--init=none` machine holds until it is dropped.
///
/// The lock is of the machine's state file. A file of its own could be created while the machine is
/// removed, and would then be left.
#[derive(Debug)]
pub struct RunGuard {
    file: Flock<File>,
    path: PathBuf,
}

impl RunGuard {
    /// Acquires the guard. Waits while another process stops the machine.
    ///
    /// # Errors
    /// Fails if the machine is missing.
    pub fn acquire(paths: &MachinePaths) -> Result<Self> {
        let path = paths.state_file();
        let file = File::open(&path).with_context(|| format!("can't open {}", path.display()))?;
        let file = flock::lock(file, Kind::Shared, STOP_LIMIT)
            .with_context(|| format!("can't lock {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// Returns whether no other command uses the machine. In that case none can begin until the
    /// guard is dropped.
    ///
    /// Also returns `false` if another machine has the name by now, which this command must not
    /// stop.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.file.relock(FlockArg::LockExclusiveNonblock).is_ok()
            && flock::is_at(&self.file, &self.path)
    }
}

/// Opens the machine's lock file, and creates it if it is missing.
///
/// The holder of the lock may remove the directory meanwhile, so this is tried for [`OPEN_LIMIT`].
fn open(paths: &MachinePaths) -> Result<File> {
    let path = paths.lock_file();
    let deadline = Instant::now() + OPEN_LIMIT;
    loop {
        signals::check()?;
        let error =
            match make_private_dir(&paths.state_dir()).and_then(|()| flock::open_private(&path)) {
                Ok(file) => return Ok(file),
                Err(error) => error,
            };
        if let Some(obstacle) = obstacle(Path::new(STATE_ROOT), paths) {
            bail!(
                "can't lock machine {}: {} is in the way; remove it",
                paths.name(),
                obstacle.display()
            );
        }
        let is_race = [ErrorKind::NotFound, ErrorKind::AlreadyExists].contains(&error.kind());
        if !is_race || Instant::now() >= deadline {
            return Err(error).with_context(|| format!("can't open {}", path.display()));
        }
        thread::sleep(OPEN_PAUSE);
    }
}

/// Returns the path at which something else is than the directory or the lock file that belongs
/// there.
///
/// A symbolic link that leads nowhere is an example. Every further attempt would fail at it.
fn obstacle(root: &Path, paths: &MachinePaths) -> Option<PathBuf> {
    for directory in [root.to_owned(), paths.state_dir()] {
        if fs::symlink_metadata(&directory).is_ok_and(|found| !found.is_dir()) {
            return Some(directory);
        }
    }
    let lock = paths.lock_file();
    let is_obstacle = fs::symlink_metadata(&lock).is_ok_and(|found| !found.is_file());
    is_obstacle.then_some(lock)
}

/// Opens the lock file of an existing machine. Returns `None` if it is missing.
fn open_existing(paths: &MachinePaths) -> Result<Option<File>> {
    let path = paths.lock_file();
    signals::check()?;
    if_present(OpenOptions::new().write(true).open(&path))
        .with_context(|| format!("can't open {}", path.display()))
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
