//! File locks with a time limit. The kernel releases the locks of a process that dies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::command;
use crate::command::argv;
use crate::text;

/// Time that flock(1) may take beyond its own time limit.
const MARGIN: Duration = Duration::from_secs(60);

/// Opens a file for a lock, and creates it if it is missing. Other users can't open it.
pub fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The only lock of the file.
    Exclusive,
    /// A lock that others may share.
    Shared,
}

impl Kind {
    fn option(self) -> &'static str {
        match self {
            Self::Exclusive => "--exclusive",
            Self::Shared => "--shared",
        }
    }

    fn nonblocking(self) -> FlockArg {
        match self {
            Self::Exclusive => FlockArg::LockExclusiveNonblock,
            Self::Shared => FlockArg::LockSharedNonblock,
        }
    }
}

/// Locks the open file. Fails if another process holds the lock for longer than `limit`.
pub fn lock(file: File, kind: Kind, limit: Duration) -> Result<Flock<File>> {
    let file = match Flock::lock(file, kind.nonblocking()) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(errno.into()),
    };
    // flock(2) has no time limit, but flock(1) has one. Its stdin is the open file of this process,
    // so the lock that it takes is the lock of this process.
    let seconds = limit.as_secs().to_string();
    let flock = argv(["flock", kind.option(), "--timeout", &seconds, "0"]);
    let outcome = command::run_with_stdin(file.try_clone()?, &flock, limit + MARGIN)?;
    if !outcome.status.success() {
        bail!(
            "another process has held the lock for {seconds} s{}",
            text::indent(&outcome.stderr)
        );
    }
    Flock::lock(file, kind.nonblocking()).map_err(|(_, errno)| errno.into())
}

/// Returns whether the open file is still the one at `path`.
///
/// A process that held the lock may have removed the file meanwhile. A lock of that file protects
/// nothing.
pub fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(named), Ok(open)) = (fs::metadata(path), file.metadata()) else {
        return false;
    };
    (named.dev(), named.ino()) == (open.dev(), open.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_gives_up_after_its_time_limit() {
        let path = std::env::temp_dir().join(format!("nspawn-lock-{}", std::process::id()));
        let open = || File::create(&path).unwrap();
        let second = Duration::from_secs(1);
        let held = lock(open(), Kind::Exclusive, second).unwrap();
        for kind in [Kind::Exclusive, Kind::Shared] {
            let error = lock(open(), kind, second).unwrap_err();
            assert!(error.to_string().contains("held the lock"), "{error:#}");
        }
        drop(held);
        assert!(lock(open(), Kind::Shared, second).is_ok());
        fs::remove_file(&path).unwrap();
    }
}
