//! The machine's root: its layer over the image.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use nspawn_common::paths::MachinePaths;
use nspawn_common::state::State;
use nspawn_common::tool;

use super::mounts;
use crate::machine::NESTED;

/// How long mounting may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Mounts the root of the machine, whose users begin at `base`.
pub fn mount(paths: &MachinePaths, state: &State, base: Option<u32>) -> Result<()> {
    // By this mount every path in the overlay's options is one of ours, free of commas and colons.
    let lower = paths.image_mount();
    mounts::show(&state.image_path, &lower, base)?;
    let layer = paths.layer_root(state.layer_size.is_some());
    if state.layer_size.is_some() {
        mount_disk(&paths.disk(), &layer)?;
    }
    let owner = base.unwrap_or(0);
    let upper = owned_directory(layer.join("upper"), owner, mode_of(&lower))?;
    let work = owned_directory(layer.join("work"), owner, 0o700)?;
    for name in NESTED.iter().filter(|_| state.nesting) {
        owned_directory(layer.join(name), owner, 0o711)?;
    }
    // volatile: no syncs for a layer that is thrown away (kernel 5.10).
    let options = [
        OsStr::new("volatile,lowerdir="),
        lower.as_ref(),
        OsStr::new(",upperdir="),
        upper.as_ref(),
        OsStr::new(",workdir="),
        work.as_ref(),
    ];
    let options: OsString = options.into_iter().collect();
    let flags = MsFlags::empty();
    nix::mount::mount(Some("overlay"), &paths.root_mount(), Some("overlay"), flags, Some(options.as_bytes()))
        .with_context(|| {
            format!(
                "can't mount the overlay of {}; its file system must be one that overlayfs can write to",
                upper.display()
            )
        })
}

fn mount_disk(disk: &Path, target: &Path) -> Result<()> {
    // The tables of inodes need not be written before they are used, by a machine that lives for minutes.
    let options = ["mount", "-t", "ext4", "-o", "loop,noatime,noinit_itable"].map(OsStr::new);
    let command = options.into_iter().chain([disk.as_os_str(), target.as_os_str()]);
    tool::run_ok(&command.map(OsString::from).collect::<Vec<_>>(), LIMIT)
        .map(drop)
        .with_context(|| format!("can't mount the layer {}; see --layer-size", disk.display()))
}

fn mode_of(directory: &Path) -> u32 {
    fs::metadata(directory).map_or(0o755, |directory| directory.permissions().mode() & 0o7777)
}

fn owned_directory(path: PathBuf, owner: u32, mode: u32) -> Result<PathBuf> {
    let made = DirBuilder::new().mode(0o700).create(&path);
    made.and_then(|()| chown(&path, Some(owner), Some(owner)))
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
        .with_context(|| format!("can't make the directory {}", path.display()))?;
    Ok(path)
}
