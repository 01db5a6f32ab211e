//! Mount points that systemd-nspawn needs and can't make itself.

use std::fs::{self, File};
use std::os::unix::fs::{chown, chroot};
use std::path::{Path, PathBuf};
use std::process::exit;

use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, fork};

/// Makes what is missing of `points` in the tree at `root`, directories and, where it says so, files, for the host's
/// user `owner`. In a process of its own that can't leave the tree, whatever links are in it.
pub fn make(root: &Path, points: &[(PathBuf, bool)], owner: u32) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    // SAFETY: this process has a single thread, so the child may do all that a program may.
    match unsafe { fork() }.context("can't start a process")? {
        ForkResult::Child => {
            let made = chroot(root).and_then(|()| Ok(chdir("/")?));
            let made =
                made.and_then(|()| points.iter().try_for_each(|(point, is_file)| make_one(point, *is_file, owner)));
            exit(made.map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0))
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => {
                let error = std::io::Error::from_raw_os_error(code);
                bail!("can't make a mount point in {}: {error}", root.display())
            }
            _ => bail!("can't make mount points in {}", root.display()),
        },
    }
}

fn make_one(point: &Path, is_file: bool, owner: u32) -> std::io::Result<()> {
    if point.exists() {
        return Ok(());
    }
    point.parent().map_or(Ok(()), |parent| make_one(parent, false, owner))?;
    if is_file { File::create_new(point).map(drop) } else { fs::create_dir(point) }?;
    chown(point, Some(owner), Some(owner))
}
