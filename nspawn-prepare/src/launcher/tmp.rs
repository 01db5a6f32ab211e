//! A /tmp in which systemd-nspawn can create a directory, as version 262 does.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Mounts a new /tmp in this unit if no directory can be created in the host's.
pub fn provide() -> Result<()> {
    let Err(error) = create_probe() else {
        return Ok(());
    };
    if error.kind() == ErrorKind::AlreadyExists {
        return Ok(());
    }
    mount(
        Some("nspawn-ci"),
        "/tmp",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("size=1M,mode=1777"),
    )
    .with_context(|| format!("can't mount on /tmp, where no directory can be created ({error})"))
}

fn create_probe() -> io::Result<()> {
    let probe = Path::new("/tmp").join(format!("nspawn-probe-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&probe)?;
    fs::remove_dir(&probe)
}
