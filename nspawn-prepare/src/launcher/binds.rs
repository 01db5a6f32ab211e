//! Sources of bind mounts, which are opened once.
//!
//! systemd-nspawn takes a path, and follows the links in it late. Until then, a process that can
//! write to a directory of the path could replace it by a link to anything on the host. So the
//! launcher opens each source, and mounts it in the machine's state directory. Only the host's root
//! can change that directory, and only the unit sees the mounts.
//!
//! The launcher also maps the owner of a source to the machine's root. systemd-nspawn fails at that
//! if the source has mounts inside it (EBUSY, systemd 262).

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::stat::{SFlag, fstat};
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::fs::ignore_missing;
use nspawn_common::sys::idmapped_mount::{self, Owner};
use nspawn_common::systemd::nspawn::Bind;

/// Returns whether the options show the machine a writable file or directory of the host.
pub fn is_host_writable(paths: &MachinePaths, options: &[OsString]) -> bool {
    let mut words = options.iter().take_while(|word| *word != "--");
    words.any(|word| matches!(foreign_bind(paths, word), Some(Bind::Writable(_))))
}

/// Mounts the sources of all bind mounts in the state directory. Returns the options with these
/// sources. `options` are the options of systemd-nspawn.
/// `root` is the user of the host that is the machine's root.
pub fn hold_sources(
    paths: &MachinePaths,
    options: &[OsString],
    root: u32,
) -> Result<Vec<OsString>> {
    let mut held = options.to_vec();
    let places = paths.bind_sources();
    let words = held.iter_mut().take_while(|word| *word != "--");
    for (number, word) in words.enumerate() {
        if let Some(bind) = foreign_bind(paths, word) {
            let place = places.join(number.to_string());
            if let Some(source) = bind.open_source(Path::new("/"))? {
                hold(&bind, &source, root, &place)
                    .with_context(|| format!("can't mount the source of {word:?}"))?;
                *word = bind.to_option_with_source(&place);
            }
        }
    }
    Ok(held)
}

/// Returns the bind mount of an option, unless the machine's own directories are its source.
fn foreign_bind(paths: &MachinePaths, word: &OsStr) -> Option<Bind> {
    let own = [paths.state_dir(), paths.layer()];
    let is_foreign = |source: PathBuf| !own.iter().any(|directory| source.starts_with(directory));
    Bind::of_option(word).filter(|bind| bind.source().is_some_and(is_foreign))
}

fn hold(bind: &Bind, source: &OwnedFd, root: u32, place: &Path) -> Result<()> {
    let status = fstat(source)?;
    let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
    create_mount_point(place, kind == SFlag::S_IFDIR)?;
    let tree = idmapped_mount::clone_opened(source.as_fd(), bind.is_recursive())?;
    if bind.maps_owner() {
        let owner = Owner {
            user: status.st_uid,
            group: status.st_gid,
        };
        idmapped_mount::map_owner(&tree, owner, root).context(
            "a file system in it may not support id-mapped mounts; use the option noidmap, or norbind \
             for a mount inside it",
        )?;
    }
    Ok(idmapped_mount::attach(&tree, place)?)
}

/// Creates a mount point. A machine without an init may have one of an earlier start.
fn create_mount_point(place: &Path, is_directory: bool) -> Result<()> {
    let mut directory = DirBuilder::new();
    directory.mode(0o700);
    if let Some(parent) = place.parent() {
        directory.recursive(true).create(parent)?;
    }
    ignore_missing(fs::remove_dir(place).or_else(|_| fs::remove_file(place)))?;
    if is_directory {
        directory.create(place)?;
    } else {
        File::create_new(place)?;
    }
    Ok(())
}
