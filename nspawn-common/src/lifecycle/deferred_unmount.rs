//! Unmounts large layers in the background, so that a cleanup does not wait for the write-back of data that is about
//! to be deleted.
//!
//! When the file system in a file is unmounted, the kernel first writes all dirty data to the file: two seconds for a
//! gigabyte. The file may be deleted before that, since the kernel keeps a deleted file for as long as it is in use.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process;
use std::time::Duration;

use anyhow::Result;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::pipe2;

use crate::command;
use crate::machine::name;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::systemd::transient_unit::TransientUnit;

/// Layers smaller than this are unmounted synchronously, in bytes.
const DEFER_THRESHOLD: u64 = 256 << 20;
/// Time limit for systemd to queue the start of the unit.
const QUEUE_LIMIT: Duration = Duration::from_secs(10);
/// Time that the unit may take to open the mount, in milliseconds.
const OPEN_LIMIT: u16 = 5000;

/// Script of the unit. It opens the mount, confirms that, and keeps the mount open until the cleanup has ended. Its
/// arguments are the mount, the pipe that the cleanup closes at its end, and the pipe for the confirmation.
const SCRIPT: &str = "exec 3<\"$1\" 4<\"$2\" && echo >\"$3\" && exec cat <&4";

/// Keeps the layer of a machine mounted until this is dropped. Then a unit of its own unmounts the layer.
#[derive(Debug)]
pub struct DeferredUnmount {
    /// End of a pipe from which the unit's confirmation can be read.
    confirmed: OwnedFd,
    /// Ends of pipes and the mount, which the unit opens by /proc/PID/fd. Closing them releases the unit.
    _opened_by_unit: (File, OwnedFd, OwnedFd, OwnedFd),
}

impl DeferredUnmount {
    /// Begins to defer the unmount of the machine's layer. Returns `None` if the layer is small, or if that fails.
    ///
    /// If the unit is killed, it unmounts the layer at that time.
    #[must_use]
    pub fn begin(paths: &MachinePaths) -> Option<Self> {
        let mount = large_mount(paths)?;
        Self::start_unit(paths, mount).ok()
    }

    fn start_unit(paths: &MachinePaths, mount: File) -> Result<Self> {
        let (released, release) = pipe2(OFlag::O_CLOEXEC)?;
        let (confirmed, confirm) = pipe2(OFlag::O_CLOEXEC)?;
        let process = process::id();
        let path = |fd: i32| format!("/proc/{process}/fd/{fd}");
        let suffix = &name::random_uuid()?[..8];
        let unit = TransientUnit::new("exec")
            .options(["--quiet", "--no-block"])
            .named(&format!("unmount-{}-{suffix}.service", paths.name()))
            .described(&format!(
                "Unmount of the layer of CI machine {}",
                paths.name()
            ));
        let command = unit.command([
            "sh",
            "-c",
            SCRIPT,
            "sh",
            &path(mount.as_raw_fd()),
            &path(released.as_raw_fd()),
            &path(confirm.as_raw_fd()),
        ]);
        command::run_checked(&command, QUEUE_LIMIT)?;
        Ok(Self {
            confirmed,
            _opened_by_unit: (mount, released, release, confirm),
        })
    }
}

impl Drop for DeferredUnmount {
    /// Waits until the unit has the mount open. Without that, closing the mount here would unmount the layer.
    fn drop(&mut self) {
        let mut events = [PollFd::new(self.confirmed.as_fd(), PollFlags::POLLIN)];
        // After the time limit, or a signal, the layer is unmounted synchronously.
        let _ = poll(&mut events, PollTimeout::from(OPEN_LIMIT));
    }
}

/// Opens the machine's layer if it is a large file system in a file.
fn large_mount(paths: &MachinePaths) -> Option<File> {
    if !paths.disk().exists() {
        return None;
    }
    // The layer is mounted only in the mount namespace of the machine's unit.
    let supervisor = processes::supervisor(paths)?;
    let mount_point = paths.disk_mount();
    let path = format!("/proc/{supervisor}/root{}", mount_point.display());
    let mount = File::open(path).ok()?;
    let is_mounted = mount.metadata().ok()?.dev() != fs::metadata(paths.state_dir()).ok()?.dev();
    let usage = fstatvfs(&mount).ok()?;
    let used = (usage.blocks() - usage.blocks_free()) * usage.fragment_size();
    let is_large = is_mounted && used > DEFER_THRESHOLD;
    // The process ID may have been reused since.
    (is_large && processes::is_member(paths, supervisor)).then_some(mount)
}
