//! Mount points and files that the machine's tree must have before systemd-nspawn starts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{chown, chroot};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::chdir;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::machine::state::State;
use nspawn_common::sys::fork;
use nspawn_common::systemd::nspawn;

use crate::layer::OVERLAID;

/// Returns the mount points that systemd-nspawn does not create, and whether each is a file.
///
/// systemd-nspawn requires /usr, and can't create mount points in a read-only root. `options` are
/// the options of systemd-nspawn.
pub fn required(state: &State, options: &[OsString]) -> Vec<(PathBuf, bool)> {
    let mut points = Vec::new();
    if state.init != Init::Systemd {
        points.push(("/usr".into(), false));
    }
    if state.layer == Layer::None {
        points.extend(OVERLAID.map(|name| (Path::new("/").join(name), false)));
        points.extend(nspawn::mount_points(options));
    }
    points
}

/// Creates the missing mount points in the tree at `root`, owned by the host's user `owner`.
pub fn create(root: &Path, points: &[(PathBuf, bool)], owner: u32) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    let create = || {
        points
            .iter()
            .try_for_each(|(point, is_file)| create_one(point, *is_file, owner))
    };
    in_tree(root, create)
        .with_context(|| format!("can't create a mount point in {}", root.display()))
}

/// Checks that the directories to be overlaid are directories of the image.
///
/// systemd-nspawn resolves their paths on the host, and would follow a link out of the tree.
pub fn check_overlaid(root: &Path, state: &State) -> Result<()> {
    if state.layer != Layer::None {
        return Ok(());
    }
    for name in OVERLAID {
        let metadata = fs::symlink_metadata(root.join(name));
        if !metadata.is_ok_and(|metadata| metadata.is_dir()) {
            bail!(
                "can't use the image {} with --layer=none: its /{name} is not a directory; choose another --layer",
                state.image
            );
        }
    }
    Ok(())
}

/// Runs `work` in a child process with the tree as its root directory, so that no link leads out of
/// the tree.
pub fn in_tree(root: &Path, work: impl FnOnce() -> io::Result<()>) -> Result<()> {
    fork::run(|| {
        chroot(root)?;
        chdir("/")?;
        Ok(work()?)
    })
}

fn create_one(point: &Path, is_file: bool, owner: u32) -> io::Result<()> {
    if point.exists() {
        return Ok(());
    }
    if let Some(parent) = point.parent() {
        create_one(parent, false, owner)?;
    }
    if is_file {
        File::create_new(point)?;
    } else {
        fs::create_dir(point)?;
    }
    chown(point, Some(owner), Some(owner))
}
