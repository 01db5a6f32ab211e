//! Files in the machine's tree that must be there before systemd-nspawn starts.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, chroot};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::{chdir, setegid, seteuid};
use nspawn_common::sys::fork;

/// Makes the mount points that are missing of `points` in the tree at `root`, directories and, where it says so, files,
/// for the host's user `owner`.
pub fn make(root: &Path, points: &[(PathBuf, bool)], owner: u32) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    let make = || {
        points
            .iter()
            .try_for_each(|(point, is_file)| make_one(point, *is_file, owner))
    };
    in_tree(root, make).with_context(|| format!("can't make a mount point in {}", root.display()))
}

/// Writes the file `path` in the tree at `root` in the place of what is there, as the host's user `owner`, who is the
/// machine's root. A link there is replaced, since what it leads to may be missing, or written by another program.
pub fn replace_file(root: &Path, path: &Path, content: &str, owner: u32) -> Result<()> {
    let write = || {
        setegid(owner.into())?;
        seteuid(owner.into())?;
        path.parent().map_or(Ok(()), |parent| {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)
        })?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => fs::remove_dir(path)?,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(path)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(content.as_bytes())
    };
    in_tree(root, write).with_context(|| format!("can't write {} in the machine", path.display()))
}

// Runs `work` in a child process with the tree as its root directory. So no link in the tree leads
// out of it.
fn in_tree(root: &Path, work: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
    fork::run(|| {
        chroot(root)?;
        chdir("/")?;
        Ok(work()?)
    })
}

fn make_one(point: &Path, is_file: bool, owner: u32) -> std::io::Result<()> {
    if point.exists() {
        return Ok(());
    }
    point
        .parent()
        .map_or(Ok(()), |parent| make_one(parent, false, owner))?;
    if is_file {
        File::create_new(point).map(drop)
    } else {
        fs::create_dir(point)
    }?;
    chown(point, Some(owner), Some(owner))
}
