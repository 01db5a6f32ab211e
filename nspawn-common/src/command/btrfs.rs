//! Subvolumes of btrfs: trees that are made and deleted as a whole.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use crate::command;

/// The inode number of every subvolume's root, and of nothing else on a btrfs (btrfs-subvolume(8)).
const ROOT_INODE: u64 = 256;
/// How long deleting all of a layer's may take.
const DELETE_LIMIT: Duration = Duration::from_secs(600);

/// Whether `path` is one.
#[must_use]
pub fn is_subvolume(path: &Path) -> bool {
    is_on_btrfs(path)
        && fs::symlink_metadata(path).is_ok_and(|root| root.is_dir() && root.ino() == ROOT_INODE)
}

/// Whether one could be made as `path`, whose parents need not be there yet.
#[must_use]
pub fn can_be_below(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .is_some_and(is_on_btrfs)
}

/// Deletes `path` if it is one, and those below it that a machine has made. Nothing else may be mounted there. What
/// remains, and why, whoever deletes the rest will say.
pub fn delete(path: &Path) {
    if !is_on_btrfs(path) {
        return;
    }
    let command = ["btrfs", "--quiet", "subvolume", "delete"].map(OsStr::new);
    let one: Vec<_> = command
        .into_iter()
        .chain([path.as_os_str()])
        .map(OsString::from)
        .collect();
    if is_subvolume(path)
        && command::run(&one, DELETE_LIMIT).is_ok_and(|outcome| outcome.status.success())
    {
        return;
    }
    // One with others in it can't go before them.
    let _ = command::run(
        &on_each(
            path,
            &["-depth"],
            &["btrfs", "--quiet", "subvolume", "delete", "{}"],
        ),
        DELETE_LIMIT,
    );
}

/// Lets what is in subvolumes at and below `path` be changed that a machine has made read-only.
pub fn make_writable(path: &Path) {
    if is_on_btrfs(path) {
        let command = [
            "btrfs", "property", "set", "-f", "-t", "subvol", "{}", "ro", "false",
        ];
        let _ = command::run(&on_each(path, &[], &command), DELETE_LIMIT);
    }
}

// Calls `command` with each of them for {}, outer ones first unless `order` says otherwise.
fn on_each(path: &Path, order: &[&str], command: &[&str]) -> Vec<OsString> {
    let inode = ROOT_INODE.to_string();
    let which = ["-type", "d", "-inum", &inode, "-exec"];
    let words = order
        .iter()
        .chain(&which)
        .chain(command)
        .chain(&[";"])
        .map(|word| OsStr::new(*word));
    [OsStr::new("find"), path.as_os_str()]
        .into_iter()
        .chain(words)
        .map(OsString::from)
        .collect()
}

fn is_on_btrfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|there| there.filesystem_type() == BTRFS_SUPER_MAGIC)
}
