//! The layer: what a machine writes to.
//!
//! | `--layer=` | what it is |
//! | --- | --- |
//! | `disk` | a file system in a file, which limits its size and is deleted at once; without a size limit, a directory |
//! | `tmpfs` | memory |
//! | `snapshot` | a copy of the image that shares its blocks |
//! | `none` | nothing: the root is read-only, and some directories are temporary |

pub mod commands;
pub mod size;

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit};
use nspawn_common::config::layer::Layer;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::image::lookup::Image;
use nspawn_common::lifecycle::calling_unit;

use size::LayerSize;

/// Directories below `/var/lib` where containers in a machine keep their images.
pub const CONTAINER_DIRECTORIES: [&str; 2] = ["containers", "docker"];
/// Directories of the root that a machine with `--layer=none` sees with the image's content and can
/// write to: without them hardly a service or a user's tool works.
pub const OVERLAID: [&str; 2] = ["root", "var"];

/// Parses `--layer=` and combines it with `--layer-size=`.
pub fn parse(
    text: &str,
    size: Option<LayerSize>,
    users: PrivateUsers,
) -> Result<(Layer, LayerSize)> {
    let (layer, size) = match text.split_once(':') {
        Some(("tmpfs", size)) => {
            let size = LayerSize::parse(size).with_context(|| format!("--layer={text}"))?;
            (Layer::Tmpfs, Some(size))
        }
        _ => {
            let layer = Layer::parse(text).with_context(|| format!("--layer={text}"))?;
            (layer, size)
        }
    };
    let is_unlimited = size.is_none_or(|size| size == LayerSize::Infinity);
    match (layer, users) {
        (Layer::Snapshot, _) if is_unlimited => Ok((layer, LayerSize::Infinity)),
        (Layer::Snapshot, _) => bail!(
            "can't limit the size of --layer=snapshot: a copy of the image shares its file system; add \
             --layer-size=infinity, \
             or choose --layer=disk"
        ),
        // Without a user namespace, only the device policy would keep a machine's root from loop
        // devices, and so from the layers of others.
        (Layer::Disk, PrivateUsers::No) if is_unlimited => Ok((layer, LayerSize::Infinity)),
        (Layer::Disk, PrivateUsers::No) => bail!(
            "--layer-size needs a user namespace; with --private-users=no add --layer-size=infinity"
        ),
        _ => Ok((layer, size.unwrap_or(size::DEFAULT))),
    }
}

/// Checks that the layer can be created from this image.
pub fn check_image(layer: Layer, image: &Image) -> Result<()> {
    if layer == Layer::Snapshot && image.tree().is_none() {
        bail!(
            "the image {} is a disk image or a stack of layers, which --layer=snapshot can't copy; choose --layer=disk",
            image.name
        );
    }
    Ok(())
}

/// Checks that the kernel has loop devices, before anything of the machine exists.
pub fn check_loop_devices() -> Result<()> {
    let Err(error) = File::open("/dev/loop-control") else {
        return Ok(());
    };
    if calling_unit::has_own_mounts() && has_loop_devices_on_host() {
        return Ok(());
    }
    Err(error).context("this host has no loop devices; see --layer-size=infinity")
}

// PrivateDevices= (systemd.exec(5)) hides loop devices from this process, but not from the
// machine's launcher, which mounts the layer.
fn has_loop_devices_on_host() -> bool {
    let drivers = fs::read_to_string("/proc/devices").unwrap_or_default();
    drivers.lines().any(|line| line.ends_with(" loop"))
        && Path::new("/proc/1/root/dev/loop-control").exists()
}

/// Checks that the caller's RLIMIT_FSIZE allows a file of this size, in bytes.
pub fn check_file_size(size: Option<u64>) -> Result<()> {
    let (limit, _) =
        getrlimit(Resource::RLIMIT_FSIZE).context("can't read the limit on the size of files")?;
    if size.is_some_and(|size| size > limit) {
        bail!(
            "files may have {limit} bytes at most here, and the layer is larger; choose a smaller --layer-size, or set \
             ulimit -f unlimited, or LimitFSIZE=infinity in the unit that this runs in"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIBIBYTE: LayerSize = LayerSize::Bytes(1 << 30);

    #[test]
    fn layer_and_size_are_combined() {
        let with_users = |text, size| parse(text, size, PrivateUsers::Pick).unwrap();
        assert_eq!(with_users("disk", None), (Layer::Disk, size::DEFAULT));
        assert_eq!(
            with_users("tmpfs", Some(GIBIBYTE)),
            (Layer::Tmpfs, GIBIBYTE)
        );
        assert_eq!(
            with_users("tmpfs:1G", Some(LayerSize::Bytes(32 << 20))),
            (Layer::Tmpfs, GIBIBYTE)
        );
        assert_eq!(
            with_users("snapshot", None),
            (Layer::Snapshot, LayerSize::Infinity)
        );
    }

    #[test]
    fn layers_without_a_user_namespace_have_no_size_on_disk() {
        let without_users = |text, size| parse(text, size, PrivateUsers::No);
        assert_eq!(
            without_users("none", Some(GIBIBYTE)).unwrap(),
            (Layer::None, GIBIBYTE)
        );
        assert_eq!(
            without_users("disk", None).unwrap(),
            (Layer::Disk, LayerSize::Infinity)
        );
        assert!(without_users("disk", Some(GIBIBYTE)).is_err());
    }

    #[test]
    fn bad_layers_are_errors() {
        for bad in ["", "disk:1G", "tmpfs:", "tmpfs:1", "none:1G", "overlay"] {
            assert!(parse(bad, None, PrivateUsers::Pick).is_err(), "{bad}");
        }
        assert!(parse("snapshot", Some(GIBIBYTE), PrivateUsers::Pick).is_err());
    }
}
