//! The caches of jobs: one for each project, a file system in a file, which bounds it and is deleted at once, whatever
//! is in it. Jobs of one project that run at the same time share it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use nspawn_common::command;
use nspawn_common::lifecycle::lock;
use nspawn_common::lifecycle::lock::Resource;
use nspawn_common::machine::paths::CACHE_ROOT;
use nspawn_common::sys::fs::remove_file_if_present;

use nspawn_common::command::ext4;
use nspawn_common::sys::idmapped_mount;

/// Where a job's machine has it, as the config stage says.
pub const IN_MACHINE: &str = "/cache";

/// How long each step may take.
const LIMIT: Duration = Duration::from_secs(60);
/// A cache of which less than one in so many blocks, or inodes, is free begins anew.
const FREE_PART: u64 = 10;
/// e2fsck(8), "Exit code"
const UNCORRECTED: i32 = 4;

/// The file of the cache of a project.
pub fn file(project: &str) -> PathBuf {
    Path::new(CACHE_ROOT).join(format!("{project}.ext4"))
}

/// The cache in `file`, mounted nowhere yet, with its owners as `users` has them; made if there is none, or none of
/// use, with this `size` in bytes. It is mounted in a mount namespace that this process has to itself from here on.
pub fn open(file: &Path, size: u64, point: &Path, users: &File) -> Result<OwnedFd> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(point)?;
    let _lock = lock::host(Resource::Caches, lock::CACHES_LIMIT)?;
    unshare(CloneFlags::CLONE_NEWNS).context("can't have mounts of its own")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    if file.exists() && (mount_it(file, point).is_err() || !has_room(point)) {
        discard(file, point)?;
    }
    if !file.exists() {
        make(file, size)?;
        mount_it(file, point)?;
    }
    File::open(file)?.set_modified(SystemTime::now())?;
    idmapped_mount::clone_mapped(point, users)
}

// What is full begins anew, and what is broken; but not what there is only no means to mount now.
fn discard(file: &Path, point: &Path) -> Result<()> {
    if umount(point).is_err() {
        let command = ["e2fsck", "-p"]
            .map(OsStr::new)
            .into_iter()
            .chain([file.as_os_str()])
            .map(OsString::from);
        let checked = command::run(&command.collect::<Vec<_>>(), LIMIT)?;
        // e2fsck(8): less is right, or is so now.
        if checked.status.code().is_some_and(|code| code < UNCORRECTED) {
            return mount_it(file, point);
        }
    }
    remove_file_if_present(file)
}

/// Mounts it. For [`nspawn_common::machine::namespaces::run_inside`].
pub fn attach(cache: &OwnedFd) -> Result<()> {
    let show = || -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(IN_MACHINE)?;
        idmapped_mount::attach(cache, Path::new(IN_MACHINE))?;
        // Only a repair of the file system needs it, which makes it then.
        let _ = fs::remove_dir(Path::new(IN_MACHINE).join("lost+found"));
        // A job's scripts may run as somebody else.
        Ok(fs::set_permissions(
            IN_MACHINE,
            fs::Permissions::from_mode(0o1777),
        )?)
    };
    show().with_context(|| format!("can't show the project's cache at {IN_MACHINE}"))
}

fn make(file: &Path, size: u64) -> Result<()> {
    let unfinished = file.with_extension("new");
    let made = File::create(&unfinished).and_then(|file| file.set_len(size));
    made.with_context(|| format!("can't make {}", unfinished.display()))?;
    let options = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        "-i",
        "8192",
        "-J",
        "size=4",
        "-O",
        "^resize_inode",
        "-E",
    ];
    let options = options.into_iter().chain(["lazy_itable_init=1,nodiscard"]);
    let command: Vec<_> = options
        .map(OsStr::new)
        .chain([unfinished.as_os_str()])
        .map(OsString::from)
        .collect();
    command::run_checked(&command, LIMIT)?;
    // Or a crash of the host may leave the name and not what it stands for.
    File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, file).with_context(|| format!("can't make {}", file.display()))
}

fn mount_it(file: &Path, point: &Path) -> Result<()> {
    ext4::mount(file, point).with_context(|| {
        format!(
            "can't mount the cache {}; delete it, and the next job makes a new one",
            file.display()
        )
    })
}

fn has_room(point: &Path) -> bool {
    statvfs(point).is_ok_and(|there| {
        let has_blocks = there.blocks_available() > there.blocks() / FREE_PART;
        has_blocks && there.files_available() > there.files() / FREE_PART
    })
}
