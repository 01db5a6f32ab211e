//! The machine's root: its layer over the image, or its snapshot of the image.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;
use nspawn_common::command;
use nspawn_common::command::ext4::Content;
use nspawn_common::command::{argv, ext4};
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::image::requirements;
use nspawn_common::lifecycle::lost_writes;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::idmapped_mount;
use nspawn_common::sys::idmapped_mount::{Access, IdRange};

use crate::launcher::host_devices;
use crate::launcher::overlay::{UpperLayer, mode_of};
use crate::layer::commands::memory_options;
use crate::layer::{CONTAINER_DIRECTORIES, OVERLAID};

/// Time limit for mounting an image.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for `systemd-dissect --version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Policy that leaves out the partitions for firmware (systemd.image-policy(7)).
///
/// No machine needs them.
const IMAGE_POLICY: &str = "--image-policy=esp=ignore:xbootldr=ignore:swap=ignore:\
    =verity+signed+encrypted+unprotected+absent";
/// First version of systemd that has `--image-policy=`.
const IMAGE_POLICY_VERSION: u32 = 254;

/// Mounts the machine's root. Its users are those of the range `ids`.
pub fn mount(paths: &MachinePaths, state: &State, ids: Option<IdRange>) -> Result<()> {
    if state.layer == Layer::Snapshot {
        return idmapped_mount::bind(
            &paths.snapshot(),
            &paths.root_mount(),
            ids,
            Access::Writable,
        );
    }
    let image = paths.image_mount();
    mount_image(&state.image_path, &image, ids)?;
    requirements::check(&state.image, &state.image_path, &image, state.init)?;
    mount_layer(paths, state)?;
    let layer = upper_layer(state, ids);
    mount_overlays(&layer, &image, &paths.root_mount())
        .map_err(|error| lost_writes::explain_mount_error(paths, error))?;
    create_container_directories(&layer, state)
}

/// Mounts the overlays of the directories that a machine with a read-only root can write to.
///
/// systemd-nspawn binds them over those of the root. Its own option `--overlay` would mount
/// overlays in which device nodes can be opened.
pub fn mount_overlaid(paths: &MachinePaths, state: &State, ids: Option<IdRange>) -> Result<()> {
    if state.layer != Layer::None {
        return Ok(());
    }
    let layer = upper_layer(state, ids);
    for name in OVERLAID {
        let lower = paths.root_mount().join(name);
        let target = layer.create_directory(name, mode_of(&lower))?;
        layer.mount_overlay(&lower, &format!("-{name}"), &target)?;
    }
    Ok(())
}

/// Returns the user of the host that is the machine's root.
pub fn owner(ids: Option<IdRange>) -> u32 {
    ids.map_or(0, |ids| ids.base)
}

fn upper_layer(state: &State, ids: Option<IdRange>) -> UpperLayer {
    UpperLayer {
        directory: state.layer_root(),
        owner: owner(ids),
        is_reused: state.init == Init::None,
    }
}

/// Mounts the image on `target`.
///
/// The path of `target` has no commas and colons, which the options of an overlay can't have. The
/// path of the image may have some.
fn mount_image(source: &Path, target: &Path, ids: Option<IdRange>) -> Result<()> {
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

fn mount_layer(paths: &MachinePaths, state: &State) -> Result<()> {
    match (state.layer, state.layer_size) {
        (Layer::Disk, Some(_)) | (Layer::Tmpfs, _) if state.init == Init::None => {
            check_mounted(paths)
        }
        (Layer::Disk, Some(_)) => {
            let disk = paths.disk();
            host_devices::with_access(|| {
                ext4::mount(&disk, &paths.disk_mount(), Content::Temporary)
            })
            .with_context(|| format!("can't mount the layer {}; see --layer-size", disk.display()))
        }
        (Layer::Tmpfs | Layer::None, size) => mount_memory(size, &paths.disk_mount()),
        _ => Ok(()),
    }
}

fn mount_memory(size: Option<u64>, target: &Path) -> Result<()> {
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

/// Checks that the layer of a machine without an init is still mounted.
///
/// The layer is mounted when the machine is created. Without the mount, the machine would write to
/// the host's /run, where nothing limits it.
fn check_mounted(paths: &MachinePaths) -> Result<()> {
    let layer = paths.disk_mount();
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let (layer_device, state_device) = (device(&layer), device(&paths.state_dir()));
    let is_mount_point =
        layer_device.is_some() && state_device.is_some() && layer_device != state_device;
    if !is_mount_point {
        bail!(
            "the layer is no longer mounted on {}; create the machine again",
            layer.display()
        );
    }
    Ok(())
}

/// Mounts an overlay of the image, and one of each mount inside the image.
///
/// An overlay does not show what is mounted inside its lower directory.
fn mount_overlays(layer: &UpperLayer, image: &Path, root: &Path) -> Result<()> {
    layer.mount_overlay(image, "", root)?;
    for (number, lower) in idmapped_mount::nested_mounts(image)?.iter().enumerate() {
        let place = lower.strip_prefix(image).unwrap_or(lower);
        layer.mount_overlay(lower, &number.to_string(), &root.join(place))?;
    }
    Ok(())
}

/// Creates the directories of the layer that systemd-nspawn mounts for images of containers.
fn create_container_directories(layer: &UpperLayer, state: &State) -> Result<()> {
    if state.nesting {
        for name in CONTAINER_DIRECTORIES {
            layer.create_directory(name, 0o711)?;
        }
    }
    Ok(())
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
