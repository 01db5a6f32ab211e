//! Command lines that create a layer, and options of systemd-nspawn for one.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use nspawn_common::command::btrfs;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::systemd::nspawn;

use crate::layer::OVERLAID;

/// Explains why the command of [`copy_command`] failed.
pub const COPY_HINT: &str = "can't let a copy share the image's blocks (--layer=snapshot needs the image and \
    /var/lib/nspawn-ci on one btrfs or xfs file system; --layer=disk needs neither)";

/// Directories where a machine with a read-only root can write, besides /run, with their modes:
/// temporary ones, and those that jobs work in.
const TEMPORARY: [(&str, &str); 3] = [("/tmp", "1777"), ("/builds", "0755"), ("/cache", "0755")];

/// Returns the command that copies the image so that the copy shares its blocks.
pub fn copy_command(image: &Path, target: &Path) -> Vec<OsString> {
    let words: &[&str] = if btrfs::is_subvolume(image) && btrfs::can_be_below(target) {
        &["btrfs", "--quiet", "subvolume", "snapshot"]
    } else {
        &["cp", "--archive", "--reflink=always", "--"]
    };
    command(words, &[image, target])
}

/// Returns the command that mounts a layer in memory.
pub fn mount_command(size: Option<u64>, target: &Path) -> Vec<OsString> {
    let options = format!("nodev,{}", memory_options(size));
    let words = ["mount", "-t", "tmpfs", "-o", &options, "nspawn-ci"];
    command(&words, &[target])
}

fn command(words: &[&str], paths: &[&Path]) -> Vec<OsString> {
    let words = words.iter().map(OsStr::new);
    let paths = paths.iter().map(|path| path.as_os_str());
    words.chain(paths).map(OsString::from).collect()
}

/// Returns the options of tmpfs(5) for a layer in memory. A size of 0 is unlimited.
pub fn memory_options(size: Option<u64>) -> String {
    format!("mode=0755,size={}", size.unwrap_or(0))
}

/// Returns the options of systemd-nspawn for the directories that a machine with `--layer=none` can
/// write to.
///
/// Each temporary directory may use `size` bytes of memory, and all directories of [`OVERLAID`]
/// together as much.
pub fn temporary_options(paths: &MachinePaths, size: Option<u64>) -> Vec<OsString> {
    let limit = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let mut options = Vec::new();
    for (directory, mode) in TEMPORARY {
        options.push(format!("--tmpfs={directory}:mode={mode}{limit}").into());
    }
    for name in OVERLAID {
        let bind = nspawn::joined(&[&paths.disk_mount().join(name), &Path::new("/").join(name)]);
        options.push(nspawn::assign("--bind", &bind));
    }
    options
}
