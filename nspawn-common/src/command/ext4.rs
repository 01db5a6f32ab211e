//! File systems of type ext4 in image files.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::command;

/// Time limit for mounting a file system.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// Mounts the file system in `image`. A loop device that already has the image is used again.
pub fn mount(image: &Path, target: &Path) -> Result<()> {
    // The inode tables need not be initialized before their use, by a machine that lives for minutes.
    let command = ["mount", "-t", "ext4", "-o", "loop,noatime,noinit_itable"].map(OsStr::new);
    let command: Vec<_> = command
        .into_iter()
        .chain([image.as_os_str(), target.as_os_str()])
        .map(OsString::from)
        .collect();
    command::run_checked(&command, MOUNT_LIMIT).map(drop)
}
