//! File systems of type ext4 in image files.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::command;

/// Time limit for mounting a file system.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// Journal of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// No journal, for a file system that does not outlive a crash.
    None,
    /// Journal of the minimum size.
    Small,
}

/// Returns the command that creates a file system in `image`.
pub fn format_command(image: &Path, journal: Journal) -> Vec<OsString> {
    let features: &[&str] = match journal {
        Journal::None => &["-O", "^has_journal,^resize_inode"],
        Journal::Small => &["-J", "size=4", "-O", "^resize_inode"],
    };
    let mut command = command::argv(["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192"]);
    command.extend(features.iter().map(OsString::from));
    command.extend(["-E", "lazy_itable_init=1,nodiscard"].map(OsString::from));
    command.push(image.into());
    command
}

/// Mounts the file system in `image`. A loop device that already has the image is used again.
pub fn mount(image: &Path, target: &Path) -> Result<()> {
    // The inode tables need not be initialized before their use, by a machine that lives for
    // minutes.
    let options = "loop,nodev,noatime,noinit_itable";
    let mut command = command::argv(["mount", "-t", "ext4", "-o", options]);
    command.extend([image.into(), target.into()]);
    command::run_checked(&command, MOUNT_LIMIT).map(drop)
}
