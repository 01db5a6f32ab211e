//! Throwing away a large layer out of its owner's way. When the file system in a file is unmounted the kernel writes
//! all to the file that it has not yet written, for a file that is about to be deleted: two seconds for a gigabyte.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::sys::statvfs::fstatvfs;

use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::sys::fork;
use crate::sys::fork::HeldOpen;

/// What may be written to the file in a moment, in bytes.
const SMALL: u64 = 256 << 20;

/// Leaves unmounting the machine's layer, if it is large, to a process that does so once what this returns is dropped,
/// and in its own time. If that is killed it is done then and there. The file may be deleted before: the kernel keeps
/// a deleted file as long as it is used, and no longer.
#[must_use]
pub fn hold(paths: &MachinePaths) -> Option<HeldOpen> {
    let mounted = mounted(paths)?;
    fork::hold_open(&mounted).ok()
}

// In the mount namespace of the machine's unit, where it is the only one.
fn mounted(paths: &MachinePaths) -> Option<File> {
    let supervisor = processes::supervisor(paths)?;
    let mounted = File::open(format!(
        "/proc/{supervisor}/root{}",
        paths.disk_mount().display()
    ))
    .ok()?;
    let is_own = mounted.metadata().ok()?.dev() != fs::metadata(paths.state_dir()).ok()?.dev();
    let there = fstatvfs(&mounted).ok()?;
    let used = (there.blocks() - there.blocks_free()) * there.fragment_size();
    let is_on_disk = paths.disk().exists();
    (is_own && is_on_disk && used > SMALL && processes::is_member(paths, supervisor))
        .then_some(mounted)
}
