//! Subvolumes of btrfs, which are created and deleted as a whole.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use crate::command;

/// Inode number of the root of each subvolume. No other file on btrfs has it (btrfs-subvolume(8)).
const ROOT_INODE: u64 = 256;
/// Time limit for deleting all subvolumes of a layer.
const DELETE_LIMIT: Duration = Duration::from_secs(600);

/// Returns whether `path` is a btrfs subvolume.
pub fn is_subvolume(path: &Path) -> bool {
    is_on_btrfs(path)
        && fs::symlink_metadata(path)
            .is_ok_and(|metadata| metadata.is_dir() && metadata.ino() == ROOT_INODE)
}

/// Returns whether a subvolume can be created at `path`, whose parents may be missing.
pub fn can_be_below(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .is_some_and(is_on_btrfs)
}

/// Deletes all subvolumes at and below `path`, where nothing may be mounted.
///
/// Errors are ignored. The caller deletes the remaining files, and reports what it can't delete.
pub fn delete(path: &Path) {
    if !is_on_btrfs(path) {
        return;
    }
    let mut command = command::argv(["btrfs", "--quiet", "subvolume", "delete"]);
    command.push(path.into());
    if is_subvolume(path)
        && command::run(&command, DELETE_LIMIT).is_ok_and(|outcome| outcome.status.success())
    {
        return;
    }
    // A subvolume that contains others can only be deleted after them, so begin with the innermost.
    let delete = ["btrfs", "--quiet", "subvolume", "delete", "{}"];
    let _ = command::run(&for_each(path, &["-depth"], &delete), DELETE_LIMIT);
}

/// Clears the read-only flag of all subvolumes at and below `path`.
///
/// Errors are ignored, as in [`delete`].
pub fn make_writable(path: &Path) {
    if !is_on_btrfs(path) {
        return;
    }
    let clear = [
        "btrfs", "property", "set", "-f", "-t", "subvol", "{}", "ro", "false",
    ];
    let _ = command::run(&for_each(path, &[], &clear), DELETE_LIMIT);
}

// Returns the command that runs `command` for each subvolume, whose path replaces `{}`. Outer
// subvolumes come first, unless an option of find(1) in `order` changes that.
fn for_each(path: &Path, order: &[&str], command: &[&str]) -> Vec<OsString> {
    let inode = ROOT_INODE.to_string();
    let mut find: Vec<OsString> = vec!["find".into(), path.into()];
    find.extend(order.iter().map(OsString::from));
    find.extend(["-type", "d", "-inum", &inode, "-exec"].map(OsString::from));
    find.extend(command.iter().map(OsString::from));
    find.push(";".into());
    find
}

fn is_on_btrfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| file_system.filesystem_type() == BTRFS_SUPER_MAGIC)
}
