//! The file system that carries the agent into the machine.
//!
//! The agent is a copy on a small tmpfs, because the machine may be able to write to its own root,
//! and to fill it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use nspawn_common::machine::paths::{AGENT_READY_FIFO, MachinePaths};

use crate::preflight;

/// Mounts the file system. Its owner is the machine's root, which is the host's user `owner`.
pub fn mount(paths: &MachinePaths, owner: u32) -> Result<()> {
    let target = paths.agent_mount();
    let options = format!("size=8M,nr_inodes=256,mode=0755,uid={owner},gid={owner}");
    nix::mount::mount(
        Some("nspawn-ci"),
        &target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(&*options),
    )
    .with_context(|| format!("can't mount on {}", target.display()))?;
    fill(paths, owner).with_context(|| format!("can't write to {}", target.display()))
}

fn fill(paths: &MachinePaths, owner: u32) -> Result<()> {
    let fifo = paths.agent_mount().join(AGENT_READY_FIFO);
    fs::copy(preflight::agent_program()?, paths.agent_program())?;
    fs::create_dir(paths.agent_dir())?;
    mkfifo(&fifo, Mode::empty())?;
    for (path, mode) in [
        (paths.agent_program(), 0o755),
        (fifo, 0o600),
        (paths.agent_dir(), 0o700),
    ] {
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        chown(&path, Some(owner), Some(owner))?;
    }
    Ok(())
}
