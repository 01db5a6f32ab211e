//! Caches of jobs, one for each project.
//!
//! A cache is a file system in an image file. The file bounds the cache's size, and deleting it
//! takes no time, whatever is in the cache. Jobs of one project that run at the same time share the
//! cache.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::mount::umount;
use nix::sched::{CloneFlags, setns};
use nix::sys::statvfs::statvfs;
use nspawn_common::command;
use nspawn_common::command::ext4::{self, Content};
use nspawn_common::lifecycle::lock::Resource;
use nspawn_common::lifecycle::{lock, lost_writes};
use nspawn_common::machine::paths::CACHE_ROOT;
use nspawn_common::sys::fs::remove_file_if_present;
use nspawn_common::sys::idmapped_mount::{self, IdRange, Owner};

/// Directory of the cache in a job's machine, which the config stage announces.
pub const IN_MACHINE: &str = "/cache";

/// Time limit for creating or checking a file system.
const LIMIT: Duration = Duration::from_secs(60);
/// Divisor for the free part: a cache is full if less than a tenth of its blocks or inodes is free.
const FREE_DIVISOR: u64 = 10;
/// Directory of block devices (sysfs(5)).
const BLOCK_DEVICES: &str = "/sys/block";
/// Exit status from which on e2fsck left errors uncorrected (e2fsck(8), "Exit code").
const UNCORRECTED: i32 = 4;

/// Returns the image file of a project's cache.
pub fn file(project: &str) -> PathBuf {
    Path::new(CACHE_ROOT).join(format!("{project}.ext4"))
}

/// Returns a detached mount of the cache in `file`, with owner IDs mapped to those of a machine.
///
/// The files of `user`, who runs the job's scripts, belong to root in the file. So the jobs of a
/// project share a cache, whoever their users are. A cache that is missing, full or corrupt is created with this `size` in bytes. This process
/// enters the mount namespace `unit` of the machine's unit, in which the cache is mounted on
/// `point` as well.
pub fn open(
    file: &Path,
    size: u64,
    point: &Path,
    unit: &File,
    (ids, user): (IdRange, Owner),
) -> Result<OwnedFd> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(point)?;
    let _lock = lock::host(Resource::Caches, lock::CACHES_LIMIT)?;
    setns(unit, CloneFlags::CLONE_NEWNS).context("can't enter the mount namespace of its unit")?;
    if file.exists() && (mount_cache(file, point).is_err() || !is_usable(point)) {
        discard(file, point)?;
    }
    if !file.exists() {
        create(file, size)?;
        mount_cache(file, point)?;
    }
    // The time tells when the cache was last used.
    File::open(file)?.set_modified(SystemTime::now())?;
    idmapped_mount::clone_for_user(point, ids, user)
}

/// Deletes a cache that is full or corrupt. Keeps one that merely can't be mounted right now.
fn discard(file: &Path, point: &Path) -> Result<()> {
    let is_mounted = umount(point).is_ok();
    if !is_mounted && (is_mounted_elsewhere(file)? || is_sound(file)?) {
        return mount_cache(file, point);
    }
    lost_writes::note_if_full(CACHE_ROOT);
    remove_file_if_present(file)
}

/// Returns whether another job has mounted the cache.
///
/// The mount is in a mount namespace that e2fsck(8) does not see. The kernel knows it: a mounted
/// device can't be opened exclusively (open(2), `O_EXCL`).
fn is_mounted_elsewhere(file: &Path) -> Result<bool> {
    for device in fs::read_dir(BLOCK_DEVICES).context("can't list the loop devices")? {
        let device = device?.file_name();
        if has_backing_file(&device, file) && is_busy(&device) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Compares the names alone, which are unique: the kernel reports the path as in the mount
/// namespace where the loop device was set up.
fn has_backing_file(device: &OsStr, file: &Path) -> bool {
    let attribute = Path::new(BLOCK_DEVICES)
        .join(device)
        .join("loop/backing_file");
    let path = fs::read(attribute).unwrap_or_default();
    let path = path.strip_suffix(b"\n").unwrap_or(&path);
    Path::new(OsStr::from_bytes(path)).file_name() == file.file_name()
}

fn is_busy(device: &OsStr) -> bool {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(Path::new("/dev").join(device));
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

/// Checks the file system, and repairs what can be repaired safely.
fn is_sound(file: &Path) -> Result<bool> {
    let mut check = command::argv(["e2fsck", "-p"]);
    check.push(file.into());
    let status = command::run(&check, LIMIT)?.status;
    Ok(status.code().is_some_and(|code| code < UNCORRECTED))
}

/// Mounts the cache in the machine. Run this by [`nspawn_common::machine::namespaces::run_inside`].
pub fn attach(cache: &OwnedFd) -> Result<()> {
    mount_in_machine(cache)
        .with_context(|| format!("can't mount the project's cache on {IN_MACHINE}"))
}

fn mount_in_machine(cache: &OwnedFd) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(IN_MACHINE)?;
    idmapped_mount::attach(cache, Path::new(IN_MACHINE))?;
    // Only e2fsck(8) needs this directory, and creates it then.
    let _ = fs::remove_dir(Path::new(IN_MACHINE).join("lost+found"));
    // The job's scripts may run as another user than root.
    fs::set_permissions(IN_MACHINE, fs::Permissions::from_mode(0o1777))?;
    Ok(())
}

fn create(file: &Path, size: u64) -> Result<()> {
    let unfinished = file.with_extension("new");
    File::create(&unfinished)
        .and_then(|file| file.set_len(size))
        .with_context(|| format!("can't create {}", unfinished.display()))?;
    command::run_checked(&ext4::format_command(&unfinished, size), LIMIT)?;
    // Without the sync, a crash of the host may leave the name without the content.
    File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, file).with_context(|| format!("can't create {}", file.display()))
}

fn mount_cache(file: &Path, point: &Path) -> Result<()> {
    ext4::mount(file, point, Content::Durable).with_context(|| {
        format!(
            "can't mount the cache {}; delete it, and the next job creates a new one",
            file.display()
        )
    })
}

/// Returns whether the cache has room, and has never lost a write.
fn is_usable(point: &Path) -> bool {
    has_room(point) && ext4::has_failed(point).is_ok_and(|has_failed| !has_failed)
}

fn has_room(point: &Path) -> bool {
    statvfs(point).is_ok_and(|free| {
        let has_blocks = free.blocks_available() > free.blocks() / FREE_DIVISOR;
        has_blocks && free.files_available() > free.files() / FREE_DIVISOR
    })
}
