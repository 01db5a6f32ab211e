//! The image: its layers, mounted read-only.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nspawn_common::command;
use nspawn_common::command::argv;
use nspawn_common::sys::idmapped_mount;
use nspawn_common::sys::idmapped_mount::{Access, IdRange};

use crate::launcher::host_devices;
use crate::launcher::memory;

/// Time limit for mounting an image.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for `systemd-dissect --version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Size of the file system with the mount points of an image's layers, in bytes.
const STACK_SIZE: u64 = 1 << 20;

/// Policy that leaves out the partitions for firmware (systemd.image-policy(7)).
///
/// No machine needs them.
const IMAGE_POLICY: &str = "--image-policy=esp=ignore:xbootldr=ignore:swap=ignore:\
    =verity+signed+encrypted+unprotected+absent";
/// First version of systemd that has `--image-policy=`.
const IMAGE_POLICY_VERSION: u32 = 254;

/// Mounts the image on `target`. If it has several layers, mounts each on a directory of `target`,
/// whose name is the number of the layer.
pub fn mount(layers: &[PathBuf], target: &Path, ids: Option<IdRange>) -> Result<()> {
    if let [only] = layers {
        return mount_layer(only, target, ids);
    }
    memory::mount(Some(STACK_SIZE), target)?;
    for (number, source) in layers.iter().enumerate() {
        let place = target.join(number.to_string());
        fs::create_dir(&place).with_context(|| format!("can't create {}", place.display()))?;
        mount_layer(source, &place, ids)?;
    }
    Ok(())
}

/// Mounts a layer of the image on `target`.
///
/// The path of `target` has no commas and colons, which the options of an overlay can't have. The
/// path of the layer may have some.
fn mount_layer(source: &Path, target: &Path, ids: Option<IdRange>) -> Result<()> {
    if !source.is_file() {
        return idmapped_mount::bind(source, target, ids, Access::ReadOnly);
    }
    host_devices::with_access(|| mount_disk_image(source, target))
        .with_context(|| format!("can't mount the disk image {}", source.display()))?;
    match ids {
        Some(ids) => idmapped_mount::remap_recursively(target, source, ids),
        None => Ok(()),
    }
}

fn mount_disk_image(source: &Path, target: &Path) -> Result<()> {
    let Err(error) = dissect(&[IMAGE_POLICY], source, target) else {
        return Ok(());
    };
    if has_image_policy() {
        return Err(error);
    }
    // Without the option, the kernel must know all file systems of the image.
    dissect(&[], source, target)
}

fn dissect(options: &[&str], source: &Path, target: &Path) -> Result<()> {
    let mut command = argv(["systemd-dissect", "--mount", "--read-only"]);
    command.extend(options.iter().map(OsString::from));
    command.extend([source.into(), target.into()]);
    command::run_checked(&command, MOUNT_LIMIT)?;
    Ok(())
}

/// Returns whether systemd-dissect has `--image-policy=`.
///
/// The version decides, and not the error message about an unknown option, which may be translated.
/// If the version can't be read, the error of the call with the option is final.
fn has_image_policy() -> bool {
    let output = command::run_checked(&argv(["systemd-dissect", "--version"]), VERSION_LIMIT);
    let version = output.ok().and_then(|output| parse_version(&output));
    version.is_none_or(|version| version >= IMAGE_POLICY_VERSION)
}

/// Parses the first line of `--version`, such as `systemd 252 (252.39-1~deb12u1)`.
fn parse_version(output: &str) -> Option<u32> {
    let word = output.strip_prefix("systemd ")?.split_whitespace().next()?;
    let digits = word.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_number_after_the_name() {
        for (output, expected) in [
            ("systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT\n", Some(252)),
            ("systemd 257.8 (257.8-1)\n", Some(257)),
            ("systemd 262~rc1 (262~rc1-2)\n", Some(262)),
            ("systemd\n", None),
            ("dissect 1\n", None),
        ] {
            assert_eq!(parse_version(output), expected, "{output}");
        }
    }
}
