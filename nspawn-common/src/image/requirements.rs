//! Checks whether a machine can start from an image.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;

use crate::config::init::Init;
use crate::error::Failure;
use crate::image::architecture::Beginning;
use crate::image::{binfmt, systemd_version};
use crate::sys::fs::open_in_root;

/// Refuses an image, found at `path` and with its tree at `root`, from which no machine with this
/// `init` can start, and says what it lacks.
///
/// # Errors
/// Fails with [`Fault`](crate::error::Fault) and names what is missing.
pub fn check(image: &str, path: &Path, root: &Path, init: Init) -> Result<()> {
    let tree = File::open(root).with_context(|| format!("can't open the image {image}"))?;
    let tree = OwnedFd::from(tree);
    let has = |paths: &[&str]| paths.iter().any(|path| exists_in(&tree, path));
    check_architecture(image, path, root, &tree)?;
    let lack = if !has(&["usr", "bin"]) {
        "is not an OS tree: it has neither /usr nor /bin"
    } else if init != Init::Systemd {
        return Ok(());
    } else if !has(&systemd_version::PROGRAMS) {
        "has no systemd, which it needs to boot; install its package systemd-sysv or systemd, or see --init=stub"
    } else if let Some(version) = too_old(&tree) {
        bail!(Failure::job(format!(
            "can't boot the image {image} ({}): its systemd {version} needs cgroup v1, which machines don't have; \
             use --init=stub, or an image with systemd {} or newer",
            path.display(),
            systemd_version::OLDEST
        )))
    } else if !has(&["usr/bin/dbus-daemon", "usr/bin/dbus-broker-launch"]) {
        "has no D-Bus daemon, which a booted system needs; install its package dbus or dbus-broker"
    } else {
        return Ok(());
    };
    bail!(Failure::job(format!(
        "the image {image} ({}) {lack}",
        path.display()
    )))
}

/// Refuses an image whose programs the host's kernel can't run.
///
/// # Errors
/// Fails with [`Fault::Host`](crate::error::Fault) if the host lacks an interpreter.
fn check_architecture(image: &str, path: &Path, root: &Path, tree: &OwnedFd) -> Result<()> {
    let Some(beginning) = Beginning::of_image(root) else {
        return Ok(());
    };
    let Some(architecture) = beginning.foreign_architecture() else {
        return Ok(());
    };
    let cause = match binfmt::find(beginning.bytes()) {
        Some(found) if found.is_open || exists_in(tree, &found.path.to_string_lossy()) => {
            return Ok(());
        }
        Some(found) => format!(
            "the host's interpreter {} is not in the image",
            found.path.display()
        ),
        None => "the host has no interpreter for such programs".to_owned(),
    };
    bail!(Failure::host(format!(
        "can't run the image {image} ({}): it is for {architecture}, and {cause}; install the package \
         qemu-user-static, or qemu-user-binfmt since Debian 13",
        path.display()
    )))
}

/// Returns the version of the image's systemd if it is too old for a machine.
fn too_old(tree: &OwnedFd) -> Option<u32> {
    systemd_version::read(tree).filter(|version| *version < systemd_version::OLDEST)
}

fn exists_in(root: &OwnedFd, path: &str) -> bool {
    open_in_root(root, path, OFlag::O_PATH).is_ok()
}
