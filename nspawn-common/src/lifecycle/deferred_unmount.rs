//! Throwing away a large layer out of its owner's way. When the file system in a file is unmounted the kernel writes
//! all to the file that it has not yet written, for a file that is about to be deleted: two seconds for a gigabyte.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use nix::libc;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{ForkResult, fork, pipe, read, setsid};

use crate::machine::paths::MachinePaths;
use crate::machine::processes;

/// What may be written to the file in a moment, in bytes.
const SMALL: u64 = 256 << 20;

/// Keeps the layer of a machine mounted while it is there.
#[derive(Debug)]
pub struct Held {
    _pipe: OwnedFd,
}

/// Leaves unmounting the machine's layer, if it is large, to a process that does so once what this returns is dropped,
/// and in its own time. If that is killed it is done then and there. The file may be deleted before: the kernel keeps
/// a deleted file as long as it is used, and no longer.
#[must_use]
pub fn hold(paths: &MachinePaths) -> Option<Held> {
    let mounted = mounted(paths)?;
    hand_over(&mounted).ok()
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

fn hand_over(mounted: &File) -> Result<Held> {
    let (end, held) = pipe()?;
    // SAFETY: these programs have a single thread each, so the child may do all that a program may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = setsid();
            // Neither locks nor the pipes of whoever waits for this program's output.
            close_all_but([mounted.as_raw_fd(), end.as_raw_fd()]);
            while read(&end, &mut [0]).is_err_and(|error| error == nix::errno::Errno::EINTR) {}
            // SAFETY: the process ends here, and with it what it holds.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { .. } => Ok(Held { _pipe: held }),
    }
}

fn close_all_but(mut kept: [RawFd; 2]) {
    kept.sort_unstable();
    let close = |first: RawFd, last: RawFd| {
        if first <= last {
            // SAFETY: close_range(2) takes three integers (kernel 5.9).
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    };
    close(0, kept[0] - 1);
    close(kept[0] + 1, kept[1] - 1);
    close(kept[1] + 1, RawFd::MAX);
}
