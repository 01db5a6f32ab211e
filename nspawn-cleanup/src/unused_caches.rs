//! The caches of projects that have no jobs any more.
//!
//! Caches outlive reboots, so that the wall clock alone tells how long one was not used, and that jumps. So each look at
//! the caches is noted, and makes none older than the time since the look before it, and than [`MOST_BETWEEN`]. A host
//! that was off, or restored from a snapshot, or whose clock was wrong, loses no cache by that.

use std::fs::{self, DirEntry, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock;
use nspawn_common::lifecycle::lock::Resource;
use nspawn_common::machine::paths::CACHE_ROOT;
use nspawn_common::machine::state::State;
use nspawn_common::sys::fs::remove_file_if_present;

/// How long a cache stays that no job has used.
const UNUSED_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The most by which a cache ages from one look to the next. `nspawn-ci-stale.timer` has one every quarter of an hour.
const MOST_BETWEEN: Duration = Duration::from_secs(24 * 3600);
/// The file whose time of modification is that of the last look.
const LOOKED: &str = ".looked";

/// Deletes those, or prints which they are.
pub fn remove_unused(only_tell: bool) -> Result<()> {
    let entries = match fs::read_dir(CACHE_ROOT) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("can't read {CACHE_ROOT}"))?,
    };
    // Nobody begins to use one meanwhile.
    let _lock = lock::host(Resource::Caches, lock::CACHES_LIMIT)?;
    let note = Path::new(CACHE_ROOT).join(LOOKED);
    let now = SystemTime::now();
    let looked = modified(&note);
    for path in entries.flatten().filter(is_cache).map(|entry| entry.path()) {
        consider(
            &path,
            looked.unwrap_or(SystemTime::UNIX_EPOCH),
            now,
            only_tell,
        )?;
    }
    if only_tell {
        return Ok(());
    }
    let noted = File::create(&note).and_then(|file| file.set_modified(now));
    noted.with_context(|| format!("can't write {}", note.display()))
}

fn consider(cache: &Path, looked: SystemTime, now: SystemTime, only_tell: bool) -> Result<()> {
    // One that is gone meanwhile is not unused.
    let Some(used) = modified(cache) else {
        return Ok(());
    };
    let age = age(used, looked, now);
    if age > UNUSED_LIMIT && !is_in_use(cache)? {
        return if only_tell {
            crate::print_line(&format!("{}: unused", cache.display()))
        } else {
            remove_file_if_present(cache)
        };
    }
    match now.checked_sub(age) {
        Some(time) if time != used && !only_tell => set_modified(cache, time),
        _ => Ok(()),
    }
}

// How long a cache was not used that was last used at `used`, if the look before this one was at `looked`. The wall
// clock may have jumped between any two of the three.
fn age(used: SystemTime, looked: SystemTime, now: SystemTime) -> Duration {
    let between = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
    if used >= looked {
        return between(used, now).min(MOST_BETWEEN);
    }
    let at_look = between(used, looked);
    // Where the clock was set back, one that was used since then looks older than it is.
    let at_look = if used <= now {
        at_look.min(between(used, now))
    } else {
        at_look
    };
    at_look + between(looked, now).min(MOST_BETWEEN)
}

// A job may run for longer than a cache stays.
fn is_in_use(cache: &Path) -> Result<bool> {
    let states = list::all()?
        .into_iter()
        .filter_map(|name| State::read(&name).ok());
    Ok(states
        .filter_map(|state| state.cache)
        .any(|used: PathBuf| used == cache))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|there| there.modified()).ok()
}

fn set_modified(path: &Path, time: SystemTime) -> Result<()> {
    let set = File::open(path).and_then(|file| file.set_modified(time));
    set.with_context(|| format!("can't set the time of {}", path.display()))
}

// Its own files alone: the directory may be a file system's, with lost+found.
fn is_cache(entry: &DirEntry) -> bool {
    let is_named = ["ext4", "new"]
        .iter()
        .any(|kind| entry.path().extension().is_some_and(|there| there == *kind));
    is_named && entry.file_type().is_ok_and(|there| there.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = MOST_BETWEEN;

    #[test]
    fn a_cache_ages_as_the_host_looks_at_it() {
        let at = |days: u32| SystemTime::UNIX_EPOCH + 20_000 * DAY + days * DAY;
        for (used, looked, now, expected, what) in [
            (at(0), at(40), at(40) + HOUR, 40 * DAY + HOUR, "no jump"),
            (
                at(40),
                at(40),
                at(40) + HOUR,
                HOUR,
                "used after the last look",
            ),
            (
                at(0),
                at(1),
                at(90),
                2 * DAY,
                "the host was off, or restored, or its clock set forward",
            ),
            (at(1), at(1), at(90), DAY, "used just before that"),
            (at(90), at(1), at(90) + HOUR, HOUR, "used after that"),
            (at(90), at(91), at(2), DAY, "the clock was set back"),
            (
                at(90),
                at(1),
                at(2),
                Duration::ZERO,
                "used before it was set back",
            ),
            (
                at(2),
                at(90),
                at(2) + HOUR,
                HOUR,
                "used after it was set back, and looked at before that",
            ),
            (
                at(0),
                SystemTime::UNIX_EPOCH,
                at(90),
                DAY,
                "never looked at",
            ),
        ] {
            assert_eq!(age(used, looked, now), expected, "{what}");
        }
    }
}
