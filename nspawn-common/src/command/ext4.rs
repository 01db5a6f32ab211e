//! File systems of type ext4 in image files.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};

use crate::command;

/// Time limit for mounting a file system.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Sizes of the smallest and the largest journal, in MiB. A larger one makes no program faster.
const JOURNAL_SIZES: (u64, u64) = (4, 64);
/// Part of a file system that its journal has at most.
const JOURNAL_DIVISOR: u64 = 16;

/// Use of a file system, which decides what happens when a write fails or the host crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Content that is deleted after a crash.
    Temporary,
    /// Content that outlives a crash and a failed write without corruption.
    Durable,
}

impl Content {
    /// Returns the mount options (ext4(5)).
    ///
    /// The inode tables need not be initialized before their use, by a machine that lives for
    /// minutes. `errors=remount-ro` keeps a failed write of metadata from being forgotten.
    ///
    /// With `data_err=abort`, the journal of durable content ends when data can't be written. So a
    /// later mount shows no file whose data is missing. Before kernel 6.15, the journal learns
    /// about the data only with `dioread_lock`.
    const fn mount_options(self) -> &'static str {
        match self {
            Self::Temporary => {
                "loop,nodev,noatime,noinit_itable,errors=remount-ro,data=writeback,nobarrier"
            }
            Self::Durable => {
                "loop,nodev,noatime,noinit_itable,errors=remount-ro,data_err=abort,dioread_lock"
            }
        }
    }
}

/// Returns the command that creates a file system in `image`, a new file of `size` bytes.
///
/// Without a journal, ext4 would not use an inode again within seconds of its deletion, and looks
/// for another one at each creation of a file: after 60,000 deletions, that takes 100 times longer.
///
/// The orphan file, a default of mkfs.ext4 in trixie, has 2 MiB, which each mount reads block by
/// block. That takes longer than everything else in the mount.
pub fn format_command(image: &Path, size: u64) -> Vec<OsString> {
    let (smallest, largest) = JOURNAL_SIZES;
    let journal = ((size >> 20) / JOURNAL_DIVISOR).clamp(smallest, largest);
    let journal = format!("size={journal}");
    let mut command = command::argv(["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192"]);
    command.extend(command::argv([
        "-O",
        "^resize_inode,^orphan_file",
        "-J",
        &journal,
        // The new file contains only zeros, and so the journal needs no initialization.
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    ]));
    command.push(image.into());
    command
}

/// Returns the command that mounts the file system in `image`. A loop device that already has the
/// image is used again.
pub fn mount_command(image: &Path, target: &Path, content: Content) -> Vec<OsString> {
    let options = content.mount_options();
    let mut command = command::argv(["mount", "-t", "ext4", "-o", options]);
    command.extend([image.into(), target.into()]);
    command
}

/// Mounts the file system in `image`.
pub fn mount(image: &Path, target: &Path, content: Content) -> Result<()> {
    command::run_checked(&mount_command(image, target, content), MOUNT_LIMIT).map(drop)
}

/// Returns whether the file system that is mounted on `target` has ever failed.
///
/// The kernel records errors in the file system, so this includes errors of earlier mounts.
pub fn has_failed(target: &Path) -> Result<bool> {
    let device = File::open(target)?.metadata()?.dev();
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let device = fs::read_link(&device).with_context(|| format!("can't read {device}"))?;
    let name = device.file_name().context("a device has no name")?;
    let counters = Path::new("/sys/fs/ext4").join(name);
    for counter in ["errors_count", "warning_count"] {
        let path = counters.join(counter);
        let count =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        if count.trim() != "0" {
            return Ok(true);
        }
    }
    Ok(false)
}
