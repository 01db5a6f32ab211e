//! The machine's root: its layer over the image, or its snapshot of the image.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nspawn_common::command::ext4;
use nspawn_common::command::ext4::Content;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::image::requirements;
use nspawn_common::lifecycle::lost_writes;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::idmapped_mount;
use nspawn_common::sys::idmapped_mount::{Access, IdRange};

use crate::launcher::host_devices;
use crate::launcher::image;
use crate::launcher::memory;
use crate::launcher::overlay::{UpperLayer, mode_of};
use crate::layer::{CONTAINER_DIRECTORIES, OVERLAID};

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
    let (image, root) = (paths.image_mount(), paths.root_mount());
    let layers = state.image_layers.len();
    let check = |tree| requirements::check(&state.image, &state.image_path, tree, state.init);
    image::mount(&state.image_layers, &image, ids)?;
    if layers == 1 {
        check(&image)?;
    }
    mount_layer(paths, state)?;
    let layer = upper_layer(state, ids);
    let is_new = layer.is_new();
    mount_overlays(&layer, &image, layers, &root)
        .map_err(|error| lost_writes::explain_mount_error(paths, error))?;
    // Later the tree is the job's own.
    if layers > 1 && is_new {
        check(&root)?;
    }
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
        layer.mount_overlay(&[&lower], &format!("-{name}"), &target)?;
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
    }
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
        (Layer::Tmpfs | Layer::None, size) => memory::mount(size, &paths.disk_mount()),
        _ => Ok(()),
    }
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

/// Mounts an overlay of the image's layers, which are mounted on `image` or in directories of it,
/// and one of each mount inside the image if that has a single layer.
///
/// An overlay does not show what is mounted inside its lower directory.
fn mount_overlays(layer: &UpperLayer, image: &Path, layers: usize, root: &Path) -> Result<()> {
    if layers > 1 {
        return mount_overlay_of_stack(layer, image, layers, root);
    }
    layer.mount_overlay(&[image], "", root)?;
    for (number, lower) in idmapped_mount::nested_mounts(image)?.iter().enumerate() {
        let place = lower.strip_prefix(image).unwrap_or(lower);
        layer.mount_overlay(&[lower], &number.to_string(), &root.join(place))?;
    }
    Ok(())
}

/// Mounts an overlay of the directories of `image` with these numbers, the highest one on top.
///
/// The names are relative, since mount(2) takes at most a page of options.
fn mount_overlay_of_stack(
    layer: &UpperLayer,
    image: &Path,
    layers: usize,
    root: &Path,
) -> Result<()> {
    let names: Vec<_> = (0..layers).rev().map(|number| number.to_string()).collect();
    let lower: Vec<&Path> = names.iter().map(Path::new).collect();
    env::set_current_dir(image).with_context(|| format!("can't enter {}", image.display()))?;
    let mounted = layer.mount_overlay(&lower, "", root);
    env::set_current_dir("/").context("can't enter /")?;
    mounted
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
