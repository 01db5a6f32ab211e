//! Waiting for a condition that file system events announce, by inotify(7).

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::sys::clock;

/// Time for which a condition is checked all the time before its events are watched. Most
/// conditions are met sooner, and then the ten milliseconds are saved that the kernel takes to
/// close an inotify instance.
const SOON: Duration = Duration::from_millis(250);
/// Pause between two checks in that time.
const SHORT_PAUSE: Duration = Duration::from_millis(2);
/// Pause between two checks of a condition whose events can't be watched.
const PAUSE: Duration = Duration::from_millis(10);

/// Opens a non-blocking inotify instance.
pub fn open() -> Result<Inotify> {
    Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context("can't watch for file system events")
}

/// Waits until `is_met` returns true. Returns `false` after `limit`.
///
/// The condition is checked again after each of the `events` in the directory of `path`. That
/// directory is created if it does not exist. If other programs have all inotify instances of this
/// user, the condition is checked all the time.
pub fn wait_until(
    path: &Path,
    events: AddWatchFlags,
    limit: Duration,
    mut is_met: impl FnMut() -> bool,
) -> Result<bool> {
    let begin = Instant::now();
    let deadline = begin + limit;
    if clock::poll_until(begin + SOON.min(limit), SHORT_PAUSE, &mut is_met) {
        return Ok(true);
    }
    let directory = path.parent().unwrap_or(path);
    let inotify = match open() {
        Err(error) if error.downcast_ref() == Some(&Errno::EMFILE) => {
            return Ok(clock::poll_until(deadline, PAUSE, is_met));
        }
        result => result?,
    };
    fs::create_dir_all(directory)
        .and_then(|()| Ok(inotify.add_watch(directory, events)?))
        .with_context(|| format!("can't watch {}", directory.display()))?;
    while !is_met() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => drop(inotify.read_events()),
            Err(error) => return Err(error).context("can't watch for file system events"),
        }
    }
    Ok(true)
}
