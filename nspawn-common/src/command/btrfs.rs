//! Subvolumes of btrfs, which are created and deleted as a whole.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use crate::command;

/// Inode number of the root of each subvolume. No other file on btrfs has it (btrfs-subvolume(8)).
const ROOT_INODE: u64 = 256;
/// Time limit for deleting all subvolumes of a layer.
const DELETE_LIMIT: Duration = Duration::from_secs(600);

/// Begin of a command of find(1), which refuses `-execdir` if PATH has a relative directory.
pub const FIND: [&str; 3] = [
    "env",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "find",
];

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
    if is_subvolume(path)
        && command::run(&delete_command(path), DELETE_LIMIT)
            .is_ok_and(|outcome| outcome.status.success())
    {
        return;
    }
    // A subvolume that contains others can only be deleted after them, so begin with the innermost.
    let mut find = find_subvolumes(path, &["-depth"]);
    find.push("-exec".into());
    find.extend(delete_command("{}".as_ref()));
    find.push(";".into());
    let _ = command::run(&find, DELETE_LIMIT);
}

/// Deletes the subvolumes that are deeper than the longest path (PATH_MAX), which [`delete`] can't.
///
/// btrfs(8) resolves its argument to an absolute path. find(1) descends step by step, so this moves
/// each subvolume up before it deletes it. None may be read-only.
pub fn delete_deep(path: &Path) {
    let Some(place) = place_beside(path).filter(|_| is_on_btrfs(path)) else {
        return;
    };
    let mut find = find_subvolumes(path, &["-mindepth", "1", "-depth"]);
    let moving = ["-execdir", "mv", "--no-target-directory", "--", "{}"];
    find.extend(moving.map(OsString::from));
    find.extend([place.clone().into(), ";".into(), "-exec".into()]);
    find.extend(delete_command(&place));
    find.push(";".into());
    let _ = command::run(&find, DELETE_LIMIT);
    delete(path);
}

fn delete_command(path: &Path) -> Vec<OsString> {
    let mut command = command::argv(["btrfs", "--quiet", "subvolume", "delete"]);
    command.push(path.into());
    command
}

// Returns a path of this program's own, to which a subvolume can be moved. The content of a
// subvolume is the machine's, and that of the directory of a layer is not.
fn place_beside(path: &Path) -> Option<PathBuf> {
    let directory = if is_subvolume(path) {
        path.parent()?
    } else {
        path
    };
    Some(directory.join("subvolume"))
}

/// Clears the read-only flag of all subvolumes at and below `path`.
///
/// Errors are ignored, as in [`delete`].
pub fn make_writable(path: &Path) {
    if !is_on_btrfs(path) {
        return;
    }
    // As in `delete_deep`, the path of a subvolume may be too long.
    let mut find = find_subvolumes(path, &[]);
    let clear = "-execdir btrfs property set -f -t subvol {} ro false ;";
    find.extend(clear.split(' ').map(OsString::from));
    let _ = command::run(&find, DELETE_LIMIT);
}

// Returns the words of find(1) that find all subvolumes, with options in `order`.
// Outer subvolumes come first, unless `-depth` changes that. A subvolume that contains others can
// only be deleted after them.
fn find_subvolumes(path: &Path, order: &[&str]) -> Vec<OsString> {
    let inode = ROOT_INODE.to_string();
    let mut find = command::argv(FIND);
    find.push(path.into());
    find.extend(order.iter().map(OsString::from));
    find.extend(["-type", "d", "-inum", &inode].map(OsString::from));
    find
}

fn is_on_btrfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| file_system.filesystem_type() == BTRFS_SUPER_MAGIC)
}
