//! Overlays whose upper directories are in the machine's layer.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// A layer that is the upper part of overlays.
pub struct UpperLayer {
    /// Directory of the layer.
    pub directory: PathBuf,
    /// User of the host that is the machine's root.
    pub owner: u32,
}

impl UpperLayer {
    /// Mounts an overlay of the directories `lower`, the highest one first, and the layer on
    /// `target`. Device nodes in it can't be opened.
    ///
    /// `suffix` distinguishes the layer's directories for this overlay from others.
    ///
    /// # Panics
    /// Panics if `lower` is empty.
    pub fn mount_overlay(&self, lower: &[&Path], suffix: &str, target: &Path) -> Result<()> {
        let upper = self.create_directory(&format!("upper{suffix}"), mode_of(lower[0]))?;
        let work = self.create_work_directory(&format!("work{suffix}"))?;
        let options = overlay_options(lower, &upper, &work);
        mount(
            Some("overlay"),
            target,
            Some("overlay"),
            MsFlags::MS_NODEV,
            Some(options.as_bytes()),
        )
        .with_context(|| {
            format!(
                "can't mount an overlay with the upper directory {} on {}; the file system of that directory must be one that \
                 overlayfs can write to",
                upper.display(),
                target.display()
            )
        })
    }

    /// Returns whether no overlay of the machine's root has been mounted yet.
    pub fn is_new(&self) -> bool {
        !self.directory.join("upper").exists()
    }

    fn create_work_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        // An earlier start may have mounted the same overlay. A volatile overlay leaves a mark in its
        // work directory, with which the kernel refuses to mount it again.
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("can't empty {}", path.display()))?;
        }
        self.create_directory(name, 0o700)
    }

    /// Creates a directory of the layer, unless an earlier start has created it, and returns its path.
    pub fn create_directory(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if !path.is_dir() {
            self.create_new_directory(&path, mode)
                .with_context(|| format!("can't create the directory {}", path.display()))?;
        }
        Ok(path)
    }

    fn create_new_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)?;
        chown(path, Some(self.owner), Some(self.owner))?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

/// Returns the mount options of an overlay.
///
/// `volatile` omits all syncs, because the layer is deleted with the machine (kernel 5.10).
///
/// `redirect_dir=on` makes rename(2) of a directory of the image work. The kernel notes the old path
/// in an extended attribute that only it can set through the overlay, and only the machine's overlay
/// writes to the layer. `metacopy` stays off: it makes chown(1) of large files cheap, but a mount
/// without it refuses the files.
fn overlay_options(lower: &[&Path], upper: &Path, work: &Path) -> OsString {
    let lower: Vec<&OsStr> = lower.iter().map(|path| path.as_os_str()).collect();
    let parts = [
        OsStr::new("volatile,redirect_dir=on,lowerdir="),
        &lower.join(OsStr::new(":")),
        OsStr::new(",upperdir="),
        upper.as_ref(),
        OsStr::new(",workdir="),
        work.as_ref(),
    ];
    parts.into_iter().collect()
}

/// Returns the permissions of a directory, or the usual ones if it does not exist.
pub fn mode_of(directory: &Path) -> u32 {
    fs::metadata(directory).map_or(0o755, |metadata| metadata.permissions().mode() & 0o7777)
}
