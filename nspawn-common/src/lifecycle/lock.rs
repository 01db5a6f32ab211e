//! Locks: of a machine, held by whoever makes or removes it; and of all machines, held by whoever counts
//! them. The kernel gives back those of a process that dies.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::command::flock::{self, Mode};
use crate::machine::paths::{CACHE_ROOT, LAYER_ROOT, MachinePaths, POOLS, STATE_ROOT};
use crate::sys::signals;

/// How long another process may be busy with a machine.
const LOCK_LIMIT: Duration = Duration::from_secs(600);
/// How long a process may take between fork(2) and execve(2).
const MOMENT: Duration = Duration::from_millis(100);
/// How long the end of a machine that runs commands may take.
const USE_LIMIT: Duration = Duration::from_secs(120);
/// How long removing an image may take.
const IMAGE_LIMIT: Duration = Duration::from_secs(60);
/// How long others may take to choose a range of users.
const USERS_LIMIT: Duration = Duration::from_secs(10);
/// How long others may take to make caches and to mount them.
const CACHES_LIMIT: Duration = Duration::from_secs(60);

/// A lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Waits for the machine's lock and makes the machine's state directory where there is none.
    ///
    /// # Errors
    /// The file system's; another process has been busy with the machine for too long.
    pub fn acquire(paths: &MachinePaths) -> Result<Self> {
        loop {
            let Some(file) = open(paths)? else { continue };
            if let Some(lock) = Self::wait(file, &paths.lock_file())? {
                return Ok(lock);
            }
        }
    }

    /// As [`Lock::acquire`], but makes nothing; `None` where there is no machine, or no longer.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
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

    // `None` if a holder has removed the file meanwhile.
    fn wait(file: File, path: &Path) -> Result<Option<Self>> {
        let lock = flock::lock(file, Mode::Exclusive, LOCK_LIMIT)
            .with_context(|| format!("can't lock {}", path.display()))?;
        Ok(is_at(&lock, path).then_some(Self { _file: lock }))
    }

    /// As [`Lock::acquire`]; `None` where another process has the lock, and is not just about to end: a
    /// process that is killed leaves it, for a moment, to a tool that it was about to start.
    ///
    /// # Errors
    /// The file system's.
    pub fn try_acquire(paths: &MachinePaths) -> Result<Option<Self>> {
        let deadline = Instant::now() + MOMENT;
        loop {
            let Some(file) = open(paths)? else { continue };
            if let Some(done) = Self::take(file, &paths.lock_file(), deadline)? {
                return Ok(done);
            }
        }
    }

    /// As [`Lock::try_acquire`], but makes nothing; `None` also where there is no machine, or no longer.
    ///
    /// # Errors
    /// The file system's.
    pub fn try_acquire_of_existing(paths: &MachinePaths) -> Result<Option<Self>> {
        let deadline = Instant::now() + MOMENT;
        loop {
            let Some(file) = open_existing(paths)? else {
                return Ok(None);
            };
            if let Some(done) = Self::take(file, &paths.lock_file(), deadline)? {
                return Ok(done);
            }
        }
    }

    // `None` where that is to be tried anew.
    fn take(file: File, path: &Path, deadline: Instant) -> Result<Option<Option<Self>>> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) if is_at(&lock, path) => return Ok(Some(Some(Self { _file: lock }))),
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => return Ok(Some(None)),
            Err((_, Errno::EWOULDBLOCK)) => std::thread::sleep(MOMENT / 10),
            Err((_, errno)) => return Err(errno).context("can't lock the machine"),
        }
        Ok(None)
    }

    /// Waits `limit` at most for the lock of all machines.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn of_all(limit: Duration) -> Result<Self> {
        Self::of_directory(STATE_ROOT, limit)
    }

    /// Waits for the lock of all machines' users: see [`crate::lifecycle::uid_range`].
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn of_users() -> Result<Self> {
        Self::of_directory(LAYER_ROOT, USERS_LIMIT)
    }

    /// Waits `limit` at most for the lock of all that stands by.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn of_pools(limit: Duration) -> Result<Self> {
        Self::of_directory(POOLS, limit)
    }

    /// Waits for the lock of all jobs' caches.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn of_caches() -> Result<Self> {
        Self::of_directory(CACHE_ROOT, CACHES_LIMIT)
    }

    /// Waits until nobody is removing the image at `path`, and lets nobody begin to; others may use it as well.
    /// `None` if it is gone by then. `nspawn-image` removes by this, and asks the machines' states besides.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn of_image(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("can't open the image {}", path.display()))?,
        };
        let lock = flock::lock(file, Mode::Shared, IMAGE_LIMIT);
        let lock = lock.with_context(|| format!("can't lock the image {}", path.display()))?;
        Ok(is_at(&lock, path).then_some(Self { _file: lock }))
    }

    fn of_directory(path: &str, limit: Duration) -> Result<Self> {
        let directory = make_private_dir(Path::new(path)).and_then(|()| File::open(path));
        let directory = directory.with_context(|| format!("can't open {path}"))?;
        let lock = flock::lock(directory, Mode::Exclusive, limit)
            .with_context(|| format!("can't lock {path}"))?;
        Ok(Self { _file: lock })
    }

    /// Whether a process has the machine's lock. Leaves no trace.
    #[must_use]
    pub fn is_held(paths: &MachinePaths) -> bool {
        // Read-only: who watches for the end of a holder is not woken by this one.
        let Ok(file) = File::open(paths.lock_file()) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, Errno::EWOULDBLOCK))
        )
    }
}

/// A part in the use of a machine without an init, held until dropped.
#[derive(Debug)]
pub struct Use {
    file: Flock<File>,
    path: PathBuf,
}

impl Use {
    /// Takes part in the use of the machine; waits while somebody ends it.
    ///
    /// # Errors
    /// The file system's; there is no such machine.
    pub fn begin(paths: &MachinePaths) -> Result<Self> {
        // Its state: what is made for this could be made while the machine is removed, and so be left.
        let path = paths.state_file();
        let file = File::open(&path).with_context(|| format!("can't open {}", path.display()))?;
        let file = flock::lock(file, Mode::Shared, USE_LIMIT);
        Ok(Self {
            file: file.with_context(|| format!("can't lock {}", path.display()))?,
            path,
        })
    }

    /// Whether nobody else takes part; then nobody does until this is dropped. Another machine that has the
    /// name by now is nobody's to end.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.file.relock(FlockArg::LockExclusiveNonblock).is_ok() && is_at(&self.file, &self.path)
    }
}

// `None` if a holder has removed the directory meanwhile.
fn open(paths: &MachinePaths) -> Result<Option<File>> {
    let path = paths.lock_file();
    signals::check()?;
    let error = match make_private_dir(&paths.state_dir()).and_then(|()| open_lock(&path)) {
        Ok(file) => return Ok(Some(file)),
        Err(error) => error,
    };
    if let Some(obstacle) = obstacle(Path::new(STATE_ROOT), paths) {
        bail!(
            "can't lock machine {}: {} is in the way; remove it",
            paths.name(),
            obstacle.display()
        );
    }
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::AlreadyExists => Ok(None),
        _ => Err(error).with_context(|| format!("can't open {}", path.display())),
    }
}

// Returns what is in the place of a directory or of the lock and can't be one, such as a link that leads nowhere. It
// would be there at every attempt.
fn obstacle(root: &Path, paths: &MachinePaths) -> Option<PathBuf> {
    let directories = [root.to_owned(), paths.state_dir()];
    let mut wrong = directories
        .into_iter()
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|there| !there.is_dir()));
    let is_file = |there: fs::Metadata| there.is_file();
    let lock = || {
        Some(paths.lock_file())
            .filter(|path| fs::symlink_metadata(path).is_ok_and(|there| !is_file(there)))
    };
    wrong.next().or_else(lock)
}

// `None` if there is none.
fn open_existing(paths: &MachinePaths) -> Result<Option<File>> {
    let path = paths.lock_file();
    signals::check()?;
    match OpenOptions::new().write(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => file
            .map(Some)
            .with_context(|| format!("can't open {}", path.display())),
    }
}

// A holder may have removed the file while we waited: then we hold the lock of nothing.
fn is_at(lock: &File, path: &Path) -> bool {
    let same = |there: &fs::Metadata, ours: &fs::Metadata| {
        (there.dev(), there.ino()) == (ours.dev(), ours.ino())
    };
    fs::metadata(path).is_ok_and(|there| lock.metadata().is_ok_and(|ours| same(&there, &ours)))
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}
