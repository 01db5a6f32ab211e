//! File locks with a time limit.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::command;
use crate::text;

/// Time that flock(1) may take beyond the time limit of the lock.
const MARGIN: Duration = Duration::from_secs(60);

/// Sharing of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Lock of several processes at a time.
    Shared,
    /// Lock of one process at a time.
    Exclusive,
}

/// Locks `file`. Fails if another process keeps it locked for longer than `limit`.
pub fn lock(file: File, mode: Mode, limit: Duration) -> Result<Flock<File>> {
    let (option, nonblocking) = match mode {
        Mode::Shared => ("--shared", FlockArg::LockSharedNonblock),
        Mode::Exclusive => ("--exclusive", FlockArg::LockExclusiveNonblock),
    };
    let file = match Flock::lock(file, nonblocking) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(errno.into()),
    };
    // flock(2) has no time limit, but flock(1) has. Its stdin is the open file of this process, so
    // the lock that it takes is the lock of this process.
    let seconds = limit.as_secs().to_string();
    let command = command::argv(["flock", option, "--timeout", &seconds, "0"]);
    let outcome = command::run_with_stdin(file.try_clone()?, &command, limit + MARGIN)?;
    if !outcome.status.success() {
        bail!(
            "another process has been busy with it for {seconds} s{}",
            text::indent(&outcome.stderr)
        );
    }
    Flock::lock(file, nonblocking).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn wait_for_a_lock_ends_after_its_time_limit() {
        let path = std::env::temp_dir().join(format!("nspawn-flock-{}", std::process::id()));
        let open = || File::create(&path).unwrap();
        let held = lock(open(), Mode::Exclusive, SECOND).unwrap();
        for mode in [Mode::Exclusive, Mode::Shared] {
            let error = lock(open(), mode, SECOND).unwrap_err();
            assert!(error.to_string().contains("busy"), "{error:#}");
        }
        drop(held);
        let shared = [(); 2].map(|()| lock(open(), Mode::Shared, SECOND).unwrap());
        drop(shared);
        fs::remove_file(&path).unwrap();
    }
}
