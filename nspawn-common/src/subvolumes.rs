//! Subvolumes of btrfs: trees that are made and deleted as a whole.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use crate::tool;

/// The inode number of every subvolume's root, and of nothing else on a btrfs (btrfs-subvolume(8)).
const ROOT_INODE: u64 = 256;
/// How long deleting all of a layer's may take.
const DELETE_LIMIT: Duration = Duration::from_secs(600);

/// Whether `path` is one.
#[must_use]
pub fn is_one(path: &Path) -> bool {
    is_on_btrfs(path) && fs::symlink_metadata(path).is_ok_and(|root| root.is_dir() && root.ino() == ROOT_INODE)
}

/// Whether one could be made as `path`, whose parents need not be there yet.
#[must_use]
pub fn can_be_below(path: &Path) -> bool {
    path.ancestors().find(|ancestor| ancestor.exists()).is_some_and(is_on_btrfs)
}

/// Deletes `path` if it is one, and those at and below it that a machine has made. What remains, and why, whoever
/// deletes the rest will say.
pub fn delete(path: &Path) {
    if !is_on_btrfs(path) {
        return;
    }
    let command = ["btrfs", "--quiet", "subvolume", "delete"].map(OsStr::new);
    let one = command.into_iter().chain([path.as_os_str()]).map(Into::into).collect::<Vec<_>>();
    if is_one(path) && tool::run(&one, DELETE_LIMIT).is_ok_and(|outcome| outcome.status.success()) {
        return;
    }
    // One with others in it can't go before them.
    let (root, what) = ([OsStr::new("find"), path.as_os_str()], ["-depth", "-type", "d", "-inum"].map(OsStr::new));
    let inode = ROOT_INODE.to_string();
    let each = [OsStr::new(&inode), OsStr::new("-exec")].into_iter().chain(command);
    let all = root.into_iter().chain(what).chain(each).chain(["{}", ";"].map(OsStr::new));
    let _ = tool::run(&all.map(Into::into).collect::<Vec<_>>(), DELETE_LIMIT);
}

fn is_on_btrfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|there| there.filesystem_type() == BTRFS_SUPER_MAGIC)
}
