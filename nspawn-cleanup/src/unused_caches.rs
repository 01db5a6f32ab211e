//! Removal of the caches of projects that have no jobs any more.
//!
//! Caches outlive reboots, so only the wall clock measures how long a cache was not used, and that
//! clock jumps. Therefore each check records its time. A check makes no cache older than the time
//! since the check before it, and by [`MAX_STEP`] at most. A host that was off, was restored from a
//! snapshot, or had a wrong clock loses no cache for that reason.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock;
use nspawn_common::lifecycle::lock::Resource;
use nspawn_common::machine::paths::CACHE_ROOT;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::fs::{if_present, remove_file_if_present};

/// Age at which an unused cache is removed.
const UNUSED_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time by which a cache ages from one check to the next at most. `nspawn-ci-stale.timer` checks
/// every quarter of an hour.
const MAX_STEP: Duration = Duration::from_secs(24 * 3600);
/// File whose modification time is that of the last check.
const LAST_CHECK_FILE: &str = ".looked";

/// Deletes unused caches, or only prints their paths in a dry run.
pub fn remove_unused(dry_run: bool) -> Result<()> {
    let entries =
        if_present(fs::read_dir(CACHE_ROOT)).with_context(|| format!("can't read {CACHE_ROOT}"))?;
    let Some(entries) = entries else {
        return Ok(());
    };
    // The lock prevents that a job begins to use a cache during the check.
    let _lock = lock::host(Resource::Caches, lock::CACHES_LIMIT)?;
    let record = Path::new(CACHE_ROOT).join(LAST_CHECK_FILE);
    let now = SystemTime::now();
    let last_check = modification_time(&record).unwrap_or(SystemTime::UNIX_EPOCH);
    for entry in entries.flatten().filter(is_cache) {
        check(&entry.path(), last_check, now, dry_run)?;
    }
    if dry_run {
        return Ok(());
    }
    File::create(&record)
        .and_then(|file| file.set_modified(now))
        .with_context(|| format!("can't write {}", record.display()))
}

// Removes the cache if it is unused, and otherwise records its age in its modification time.
fn check(cache: &Path, last_check: SystemTime, now: SystemTime, dry_run: bool) -> Result<()> {
    let Some(last_use) = modification_time(cache) else {
        // Another process has removed the cache.
        return Ok(());
    };
    let age = age(last_use, last_check, now);
    if age > UNUSED_LIMIT && !is_in_use(cache)? {
        return if dry_run {
            let line = format!("{}: unused", cache.display());
            report::print_line(OsStr::new(&line))
        } else {
            remove_file_if_present(cache)
        };
    }
    match now.checked_sub(age) {
        Some(time) if time != last_use && !dry_run => set_modification_time(cache, time),
        _ => Ok(()),
    }
}

// Returns the time for which a cache was not used. The wall clock may have jumped between any two
// of the three times.
fn age(last_use: SystemTime, last_check: SystemTime, now: SystemTime) -> Duration {
    let between = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
    if last_use >= last_check {
        return between(last_use, now).min(MAX_STEP);
    }
    let mut age_at_check = between(last_use, last_check);
    if last_use <= now {
        // If the clock was set back after the check, a cache that was used since then would look
        // older than it is.
        age_at_check = age_at_check.min(between(last_use, now));
    }
    age_at_check + between(last_check, now).min(MAX_STEP)
}

// A job may run for longer than an unused cache is kept.
fn is_in_use(cache: &Path) -> Result<bool> {
    let used = list::all()?
        .into_iter()
        .filter_map(|name| State::read(&name).ok())
        .filter_map(|state| state.cache)
        .any(|used: PathBuf| used == cache);
    Ok(used)
}

fn modification_time(path: &Path) -> Option<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

fn set_modification_time(path: &Path, time: SystemTime) -> Result<()> {
    File::open(path)
        .and_then(|file| file.set_modified(time))
        .with_context(|| format!("can't set the modification time of {}", path.display()))
}

// The directory may be the root of a file system and contain lost+found.
fn is_cache(entry: &DirEntry) -> bool {
    let path = entry.path();
    let has_suffix = path
        .extension()
        .is_some_and(|suffix| suffix == "ext4" || suffix == "new");
    has_suffix && entry.file_type().is_ok_and(|kind| kind.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = MAX_STEP;

    #[test]
    fn cache_ages_only_between_checks() {
        let at = |days: u32| SystemTime::UNIX_EPOCH + 20_000 * DAY + days * DAY;
        for (last_use, last_check, now, expected, what) in [
            (at(0), at(40), at(40) + HOUR, 40 * DAY + HOUR, "no jump"),
            (
                at(40),
                at(40),
                at(40) + HOUR,
                HOUR,
                "used after the last check",
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
                "used after it was set back, and checked before that",
            ),
            (at(0), SystemTime::UNIX_EPOCH, at(90), DAY, "never checked"),
        ] {
            assert_eq!(age(last_use, last_check, now), expected, "{what}");
        }
    }
}
