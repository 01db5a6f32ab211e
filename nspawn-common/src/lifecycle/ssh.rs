//! `ssh machine/NAME` (systemd-ssh-proxy(1), since systemd 256).
//!
//! systemd-nspawn mounts a small file system of the host in the machine, where the machine's sshd
//! listens on a socket. On the host, this file system is mounted in the mount namespace of the unit
//! only, so ssh does not find the socket. A link through `/proc` of the supervisor leads to it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::machine::name::MachineName;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::sys::fs::{ignore_missing, remove_file_if_present};

/// The socket's name, given by systemd-ssh-generator(8).
const SOCKET: &str = "ssh";

/// Makes the socket reachable for the host's root under the machine's name.
///
/// Does nothing if this version of systemd-nspawn exports no socket.
pub fn publish(paths: &MachinePaths) -> Result<()> {
    let Some(supervisor) = processes::supervisor(paths) else {
        return Ok(());
    };
    for (exported, directory) in exports(paths.start_name())
        .into_iter()
        .zip(exports(paths.name()))
    {
        if !exported.is_dir() {
            continue;
        }
        // The directory must stay: the kernel unmounts what is mounted on a directory that is
        // removed in any namespace.
        remove_file_if_present(&directory.join(SOCKET))?;
        let created = DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory);
        let inside = exported.strip_prefix("/").unwrap_or(&exported).join(SOCKET);
        let target = Path::new("/proc")
            .join(supervisor.to_string())
            .join("root")
            .join(inside);
        created
            .and_then(|()| symlink(target, directory.join(SOCKET)))
            .with_context(|| {
                format!(
                    "can't link the machine's ssh socket in {}",
                    directory.display()
                )
            })?;
    }
    Ok(())
}

/// Removes the links and directories of a machine that has ended.
pub fn unpublish(paths: &MachinePaths) -> Result<()> {
    for directory in [paths.name(), paths.start_name()]
        .into_iter()
        .flat_map(exports)
    {
        remove_file_if_present(&directory.join(SOCKET))?;
        ignore_missing(fs::remove_dir(&directory))
            .with_context(|| format!("can't remove {}", directory.display()))?;
    }
    Ok(())
}

/// Returns the directories for the exports of a machine: that of systemd 262, and that of earlier
/// versions.
fn exports(name: &MachineName) -> [PathBuf; 2] {
    let root = Path::new("/run/systemd/nspawn");
    [
        root.join(name.as_str()).join("unix-export"),
        root.join("unix-export").join(name.as_str()),
    ]
}
