//! Unmounting on the host and in the mount namespace of this process.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::command;
use crate::lifecycle::calling_unit;
use crate::sys::clock;
use crate::sys::mountinfo;

/// Time limit for an unmount by the host's systemd.
const LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the release of a file.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at the loop devices.
const PAUSE: Duration = Duration::from_millis(2);
/// Directory of the host's block devices.
const DEVICES: &str = "/sys/block";

/// Detaches all mounts on the directory `point`, if there are any.
///
/// A process that still uses such a mount keeps it until the process ends.
pub fn detach(point: &Path) -> Result<()> {
    let is_mount_point = |mounts: Vec<PathBuf>| mounts.iter().any(|mount| mount == point);
    let paths = [point.to_owned()];
    // An unmount on the host propagates to most other mount namespaces, so it comes first.
    if is_mount_point(mountinfo::host_mounts_below(&paths)?) && calling_unit::is_confined() {
        let mut command = command::argv(["umount", "--lazy"]);
        command.push(point.into());
        let result = command::run_checked(&calling_unit::on_host(command), LIMIT);
        // The unit of an earlier attempt, which was killed, may have been faster.
        if is_mount_point(mountinfo::host_mounts_below(&paths)?) {
            result?;
        }
    }
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    while is_mount_point(mountinfo::mounts_below(&paths)?) {
        umount2(point, flags).with_context(|| format!("can't unmount {}", point.display()))?;
    }
    Ok(())
}

/// Waits for some seconds until no loop device has `file`.
///
/// The kernel releases the file when the last process closes the device. After an unmount that may
/// be a process of someone else, since mount(8) opens all loop devices. There is no event to wait
/// for.
pub fn wait_until_released(file: &Path) {
    let deadline = Instant::now() + RELEASE_LIMIT;
    // The machine is removed in any case, and the kernel releases the file later.
    let _ = clock::poll_until(deadline, PAUSE, || !has_loop_device(file));
}

fn has_loop_device(file: &Path) -> bool {
    let mut devices = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    devices.any(|device| {
        // Only a loop device that is in use has this attribute.
        fs::read(device.path().join("loop/backing_file"))
            .is_ok_and(|name| name.trim_ascii_end() == file.as_os_str().as_bytes())
    })
}
