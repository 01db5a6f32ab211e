//! Mounts that exist only in the mount namespace of a machine's unit.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::machine::paths::MachinePaths;
use crate::machine::processes;

/// The state directory of a running machine, in the mount namespace of its unit.
#[derive(Debug)]
pub struct UnitMounts(File);

impl UnitMounts {
    /// Opens the state directory.
    pub fn of(paths: &MachinePaths) -> Result<Self> {
        let supervisor = processes::supervisor(paths).context("it is not running")?;
        let directory = format!("/proc/{supervisor}/root{}", paths.state_dir().display());
        let directory = File::open(directory).context("it has ended")?;
        // The supervisor may have ended before the open, and another process may have its number.
        if !processes::is_member(paths, supervisor) {
            bail!("it has ended");
        }
        Ok(Self(directory))
    }

    /// Opens the root of what is mounted on `point`, a mount point in the state directory.
    pub fn open(&self, point: &Path) -> Result<File> {
        let name = point.file_name().unwrap_or_default();
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.0, name, flags, Mode::empty())
            .map(File::from)
            .with_context(|| format!("can't open {}", point.display()))
    }
}
