//! Removes a machine without a trace.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::command::btrfs;
use crate::lifecycle::deferred_unmount::DeferredUnmount;
use crate::lifecycle::job_slice;
use crate::lifecycle::lock::Lock;
use crate::lifecycle::lost_writes;
use crate::lifecycle::unmount;
use crate::lifecycle::{ssh, stop};
use crate::machine::name::MachineName;
use crate::machine::paths::{LAYER_ROOT, MachinePaths};
use crate::machine::state::State;
use crate::sys::fs::{ignore_missing, remove_file_if_present};
use crate::sys::mountinfo;
use crate::systemd::machined;

/// Time limit for deleting a layer.
const DELETE_LIMIT: Duration = Duration::from_secs(3600);

/// Stops the machine, waits until it has ended, and deletes everything that belongs to it.
///
/// A machine of which nothing exists is not an error.
///
/// # Errors
/// Fails if a process of the machine survives, or if a file can't be deleted. The next call finds
/// what remains.
pub fn remove_machine(name: &MachineName, lock: Lock) -> Result<()> {
    remove_contents(name, &lock)?;
    remove_state_directory(&MachinePaths::named(name))
}

/// Removes the state directory of a machine that consists of its lock only, which the caller holds.
pub fn remove_state_directory(paths: &MachinePaths) -> Result<()> {
    fs::remove_file(paths.lock_file()).context("can't remove the machine's lock")?;
    match fs::remove_dir(paths.state_dir()) {
        // Another process has just created a lock of its own there, so the name belongs to that
        // process.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => ignore_missing(removed).context("can't remove the machine's state directory"),
    }
}

/// Removes the machine like [`remove_machine`], but keeps its lock and the otherwise empty state
/// directory.
pub fn remove_contents(name: &MachineName, _lock: &Lock) -> Result<()> {
    let paths = &State::paths_of(name);
    let files = state_files(paths)?;
    // If a standby machine has no files left, the unit of that name belongs to the machine that
    // took it over.
    let has_unit = !paths.name().is_for_standby() && !stop::existing_cgroups(paths).is_empty();
    if files.is_empty() && !paths.layer().exists() && !has_unit {
        return job_slice::remove_if_unused(name, name);
    }
    // The marks go first: if this program is killed at any later point, the machine is stale.
    remove_file_if_present(&paths.ready_mark())?;
    remove_file_if_present(&paths.kept_mark())?;
    remove_file_if_present(&paths.fingerprint_file())?;
    remove_file_if_present(&paths.standby_mark())?;
    let deferred = DeferredUnmount::begin(paths);
    stop::stop_machine(name)?;
    ssh::unpublish(paths)?;
    unmount::detach(&paths.disk_mount())?;
    if deferred.is_none() {
        unmount::wait_until_released(&paths.disk());
    }
    lost_writes::note_if_full(LAYER_ROOT);
    delete_trees(&[paths.snapshot(), paths.layer()])?;
    machined::wait_until_gone(paths)?;
    for job in [Some(name), paths.slice_of()].into_iter().flatten() {
        job_slice::remove_if_unused(job, name)?;
    }
    // The state, which has the unit's name, goes last. List the files again, since the unit may
    // have created more of them before it ended.
    delete_trees(&state_files(paths)?)
}

/// Returns the files in the machine's state directory, except for the lock.
fn state_files(paths: &MachinePaths) -> Result<Vec<PathBuf>> {
    let directory = paths.state_dir();
    let entries: Vec<_> = fs::read_dir(&directory)
        .and_then(Iterator::collect::<io::Result<_>>)
        .with_context(|| format!("can't read {}", directory.display()))?;
    let lock = paths.lock_file();
    let files = entries.iter().map(fs::DirEntry::path);
    Ok(files.filter(|path| *path != lock).collect())
}

/// Deletes a file, an empty directory, or a directory that has only such entries.
///
/// Most machines have no more than that: their state, and a file system in a file.
fn delete_flat(path: &Path) -> io::Result<()> {
    let delete = |path: &Path| fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    match delete(path) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            for entry in fs::read_dir(path)? {
                delete(&entry?.path())?;
            }
            fs::remove_dir(path)
        }
        deleted => ignore_missing(deleted),
    }
}

/// Deletes trees that may have any depth, and subvolumes, immutable files and read-only subvolumes
/// in them.
///
/// rm(1) never follows a symbolic link. It crosses no file system, but it would cross a bind mount
/// of the same one, hence the check of the mount table.
fn delete_trees(paths: &[PathBuf]) -> Result<()> {
    let mounts = mountinfo::mounts_below(paths)?;
    if let Some(mount) = mounts.first() {
        let mount = mount.display();
        bail!("can't delete {mount}: a file system is mounted there; unmount it: umount {mount}");
    }
    // Deleting a subvolume takes the same time, whatever it contains.
    for path in paths.iter().filter(|path| btrfs::is_subvolume(path)) {
        btrfs::delete(path);
    }
    if paths.iter().all(|path| delete_flat(path).is_ok()) {
        return Ok(());
    }
    let rm = with_paths(
        &["rm", "--recursive", "--force", "--one-file-system", "--"],
        paths,
    );
    if command::run(&rm, DELETE_LIMIT)?.status.success() {
        return Ok(());
    }
    make_deletable(paths);
    if command::run(&rm, DELETE_LIMIT)?.status.success() {
        return Ok(());
    }
    make_deep_files_deletable(paths);
    command::run_checked(&rm, DELETE_LIMIT)
        .map(drop)
        .context("can't delete all files of the machine")
}

// The machine's root may have made subvolumes read-only and files immutable. rm(1) reports what
// could not be changed.
fn make_deletable(paths: &[PathBuf]) {
    for path in paths {
        btrfs::make_writable(path);
    }
    // chattr ignores symbolic links (chattr(1), -R).
    let chattr = with_paths(&["chattr", "-R", "-f", "-ia", "--"], paths);
    let _ = command::run(&chattr, DELETE_LIMIT);
    for path in paths {
        btrfs::delete(path);
    }
}

// Does the same for files whose paths may be too long for chattr and btrfs (PATH_MAX). Their depth
// is at least MIN_DEPTH, because the length of a name is at most 255. find(1) descends step by step
// and runs one chattr for each directory, which is slow.
fn make_deep_files_deletable(paths: &[PathBuf]) {
    const MIN_DEPTH: &str = "12";
    let mut chattr = with_paths(&btrfs::FIND, paths);
    chattr.extend(["-mindepth", MIN_DEPTH].map(OsString::from));
    let words = "( -type d -o -type f ) -execdir chattr -f -ia -- {} +";
    chattr.extend(words.split(' ').map(OsString::from));
    let _ = command::run(&chattr, DELETE_LIMIT);
    for path in paths {
        btrfs::delete_deep(path);
    }
}

fn with_paths(command: &[&str], paths: &[PathBuf]) -> Vec<OsString> {
    let words = command.iter().map(OsString::from);
    words.chain(paths.iter().map(OsString::from)).collect()
}
