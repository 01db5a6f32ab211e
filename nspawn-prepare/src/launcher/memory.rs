//! File systems in memory.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::MsFlags;

use crate::layer::commands::memory_options;

/// Mounts a file system in memory, of `size` bytes at most.
pub fn mount(size: Option<u64>, target: &Path) -> Result<()> {
    let options = memory_options(size);
    nix::mount::mount(
        Some("nspawn-ci"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NODEV,
        Some(&*options),
    )
    .with_context(|| format!("can't mount on {}", target.display()))
}
