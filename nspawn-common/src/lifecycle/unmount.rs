//! Unmounting on the host and in the mount namespace of this process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::command;
use crate::lifecycle::calling_unit;
use crate::sys::mountinfo;

/// Time limit for an unmount by the host's systemd.
const LIMIT: Duration = Duration::from_secs(60);

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
