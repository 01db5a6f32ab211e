//! The caches of projects that have no jobs any more.

use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result};
use nspawn_common::lifecycle;
use nspawn_common::lock::Lock;
use nspawn_common::paths::CACHE_ROOT;

/// How long a cache stays that no job has used.
const UNUSED_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Deletes those, or prints which they are.
pub fn remove_unused(only_tell: bool) -> Result<()> {
    let entries = match fs::read_dir(CACHE_ROOT) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("can't read {CACHE_ROOT}"))?,
    };
    // Nobody begins to use one meanwhile.
    let _lock = Lock::of_caches()?;
    for path in entries.flatten().filter(is_unused).map(|entry| entry.path()) {
        if only_tell {
            crate::print_line(&format!("{}: unused", path.display()))?;
        } else {
            lifecycle::remove_if_there(&path)?;
        }
    }
    Ok(())
}

// Its own files alone: the directory may be a file system's, with lost+found.
fn is_unused(cache: &DirEntry) -> bool {
    let is_ours = ["ext4", "new"].iter().any(|kind| cache.path().extension().is_some_and(|there| there == *kind));
    if !is_ours || !cache.file_type().is_ok_and(|there| there.is_file()) {
        return false;
    }
    let age = || cache.metadata().ok()?.modified().ok()?.elapsed().ok();
    age().is_some_and(|age| age > UNUSED_LIMIT)
}
