//! Detects that machines may have lost writes, because a disk was full.
//!
//! Layers of limited size and caches are sparse files, which together may exceed their disk. A
//! program writes to the page cache. If the disk is full when the kernel writes the pages back, the
//! kernel drops them, and a later read returns other data. Only fsync(2) reports that, and a
//! volatile overlay skips it. So each command in a machine ends with a check.
//!
//! Even the kernel does not notice every lost write: the loop driver takes a partial write for a
//! whole one (seen in kernel 6.18). Only the requests after it fail, perhaps those of another
//! machine. So a full disk is recorded, and no command succeeds in a machine that existed then.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Error, Result};
use nix::sys::statvfs::{Statvfs, statvfs};
use nix::unistd::{SysconfVar, syncfs, sysconf};

use crate::config::layer::Layer;
use crate::error::Failure;
use crate::lifecycle::limits;
use crate::machine::mounts::UnitMounts;
use crate::machine::name::MachineName;
use crate::machine::paths::{CACHE_ROOT, LAYER_ROOT, MachinePaths, STATE_ROOT};
use crate::machine::state::State;
use crate::sys::cgroup;
use crate::sys::clock;
use crate::sys::fs::write_atomic;

/// Free space below which a disk counts as nearly full, as a multiple of the memory that the
/// kernel allows for pages that are not yet written back.
///
/// It is more than 1 because machines write on while the kernel writes back.
const RESERVE: u64 = 2;
/// Space that ext4 withholds from all processes, in bytes and as a part of the disk. The smaller
/// one counts.
const WITHHELD: u64 = 16 << 20;
const WITHHELD_DIVISOR: u64 = 50;
/// Space that is too small for a few of the largest requests of the loop driver, in bytes.
const REQUESTS: u64 = 4 << 20;

/// File system in a file.
#[derive(Debug)]
struct Disk {
    /// Root directory of the file system.
    root: File,
    /// Directory of the file.
    store: &'static str,
}

/// File systems of a running machine that can lose writes.
#[derive(Debug)]
pub struct Watch {
    machine: MachineName,
    created: Option<Duration>,
    /// Overlay of the image and a layer on disk.
    overlay: Option<File>,
    disks: Vec<Disk>,
}

impl Watch {
    /// Opens the file systems of the running machine with these mounts.
    ///
    /// The other kinds of layer reserve space for a write before they accept it.
    pub fn open(mounts: &UnitMounts, state: &State) -> Result<Self> {
        let paths = state.paths();
        let mut disks = Vec::new();
        if state.layer == Layer::Disk && state.layer_size.is_some() {
            disks.push(Disk {
                root: mounts.open(&paths.disk_mount())?,
                store: LAYER_ROOT,
            });
        }
        if state.cache.is_some() && paths.cache_mount().exists() {
            disks.push(Disk {
                root: mounts.open(&paths.cache_mount())?,
                store: CACHE_ROOT,
            });
        }
        let overlay = match state.layer {
            Layer::Disk => Some(mounts.open(&paths.root_mount())?),
            _ => None,
        };
        Ok(Self {
            machine: state.name.clone(),
            created: state.created,
            overlay,
            disks,
        })
    }

    /// Fails if the machine may have lost a write.
    pub fn check(&self) -> Result<()> {
        // A volatile overlay reports all errors since its mount, and writes nothing back.
        let has_failed = |root: &File| syncfs(root).is_err();
        if self.overlay.as_ref().is_some_and(has_failed) {
            return Err(record_loss(&self.machine, LAYER_ROOT));
        }
        self.check_disks(Disk::has_failed)
    }

    /// Fails if the machine may have lost a write, or loses one that was made before this call.
    ///
    /// This waits for a disk only if the disk is nearly full, and then writes everything back.
    pub fn check_and_secure(&self) -> Result<()> {
        self.check()?;
        if self.disks.iter().any(|disk| is_nearly_full(disk.store)) {
            self.check_disks(|disk| syncfs(&disk.root).is_err())?;
        }
        Ok(())
    }

    fn check_disks(&self, has_failed: impl Fn(&Disk) -> bool) -> Result<()> {
        if let Some(disk) = self.disks.iter().find(|disk| has_failed(disk)) {
            return Err(record_loss(&self.machine, disk.store));
        }
        for disk in &self.disks {
            note_if_full(disk.store);
            // Both times are of the same clock.
            let was_full = recorded_time(disk.store);
            if was_full.is_some() && was_full >= self.created {
                return Err(failure(&self.machine, disk.store));
            }
        }
        Ok(())
    }
}

/// Fails if the machine may have lost a write: see [`Watch::check_and_secure`]. A machine that has
/// ended is not checked.
pub fn check_if_running(state: &State) -> Result<()> {
    let watch = UnitMounts::of(&state.paths()).and_then(|mounts| Watch::open(&mounts, state));
    watch.map_or(Ok(()), |watch| watch.check_and_secure())
}

impl Disk {
    /// Returns whether the file system has lost metadata.
    ///
    /// ext4 looks for that when it changes metadata, and then refuses all changes (kernel 5.9).
    fn has_failed(&self) -> bool {
        self.root.set_modified(SystemTime::now()).is_err()
    }
}

/// Explains why the layer of a machine that is being started again can't be mounted.
///
/// The kernel refuses a volatile overlay on a file system with an error that nobody has seen.
pub fn explain_mount_error(paths: &MachinePaths, error: Error) -> Error {
    match File::open(paths.disk_mount()) {
        Ok(root) if syncfs(&root).is_err() => record_loss(paths.name(), LAYER_ROOT),
        _ => error,
    }
}

/// Records that the disk of `store` is full, if it is. Call this before anything is deleted there.
pub fn note_if_full(store: &str) {
    if statvfs(store).is_ok_and(|disk| is_full(&disk)) {
        record_full(store);
    }
}

/// Returns whether the disk of `store` may be too small for everything that is not yet written back.
#[must_use]
pub fn is_nearly_full(store: &str) -> bool {
    let Ok(disk) = statvfs(store) else {
        return true;
    };
    let free = disk.blocks_available() * disk.fragment_size();
    let is_below = |bytes: u64| free / RESERVE < bytes;
    // The kernel takes a hundred times longer to print its counters than to return the size of the
    // memory.
    limits::memory().is_none_or(is_below) && max_unwritten().is_none_or(is_below)
}

/// Returns whether a request of the loop driver may fail, which uses the space for root as well.
fn is_full(disk: &Statvfs) -> bool {
    let [free, size] =
        [disk.blocks_free(), disk.blocks()].map(|blocks| blocks * disk.fragment_size());
    free < WITHHELD.min(size / WITHHELD_DIVISOR) + REQUESTS
}

/// Returns the number of bytes that the kernel keeps at most in memory before it writes them back.
fn max_unwritten() -> Option<u64> {
    let counters = fs::read_to_string("/proc/vmstat").ok()?;
    let page_size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(cgroup::value(&counters, "nr_dirty_threshold")? * u64::try_from(page_size).ok()?)
}

/// Returns the file that records when the disk of `store` was full the last time.
fn record_file(store: &str) -> Option<PathBuf> {
    let device = fs::metadata(store).ok()?.dev();
    Some(Path::new(STATE_ROOT).join(format!(".full-{device}")))
}

/// Records that the disk of `store` is full, and deletes the caches on it, which may have lost
/// writes. Jobs that use them keep them.
fn record_full(store: &str) {
    let Some(record) = record_file(store) else {
        return;
    };
    // A state directory that is full as well must not hide the failure of this machine.
    let _ = write_atomic(&record, clock::awake().as_millis().to_string().as_bytes());
    if record_file(CACHE_ROOT).as_ref() != Some(&record) {
        return;
    }
    for cache in fs::read_dir(CACHE_ROOT).into_iter().flatten().flatten() {
        if cache
            .path()
            .extension()
            .is_some_and(|ending| ending == "ext4")
        {
            let _ = fs::remove_file(cache.path());
        }
    }
}

/// Records that the disk of `store` is full, since `machine` has lost a write.
fn record_loss(machine: &MachineName, store: &str) -> Error {
    record_full(store);
    failure(machine, store)
}

fn recorded_time(store: &str) -> Option<Duration> {
    let time = fs::read_to_string(record_file(store)?).ok()?;
    time.parse().ok().map(Duration::from_millis)
}

fn failure(machine: &MachineName, store: &str) -> Error {
    Failure::host(format!(
        "machine {machine} may have lost writes, because the disk of {store} was full or failed; free space there, and \
         create the machine again"
    ))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwritten_pages_are_bounded() {
        let bytes = max_unwritten().unwrap();
        assert!(bytes > 1 << 20 && bytes < 1 << 46, "{bytes}");
    }
}
