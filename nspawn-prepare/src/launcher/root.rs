//! The machine's root: its layer over the image, or its copy of the image.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nspawn_common::command;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::image::lookup;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;

use crate::create::spec::NESTED;
use crate::layer::{OVERLAID, memory_options};
use nspawn_common::command::ext4;
use nspawn_common::sys::idmapped_mount;
use nspawn_common::sys::idmapped_mount::Access;

/// How long mounting may take.
const LIMIT: Duration = Duration::from_secs(60);

/// No machine starts from what firmware reads (systemd.image-policy(7)).
const USED_PARTITIONS: &str = "--image-policy=esp=ignore:xbootldr=ignore:swap=ignore:\
    =verity+signed+encrypted+unprotected+absent";

/// Mounts the root of the machine, whose users begin at `base`.
pub fn mount(paths: &MachinePaths, state: &State, base: Option<u32>) -> Result<()> {
    if state.layer == Layer::Snapshot {
        return idmapped_mount::bind(
            &paths.snapshot(),
            &paths.root_mount(),
            base,
            Access::Writable,
        );
    }
    let image = paths.image_mount();
    show_image(&state.image_path, &image, base)?;
    lookup::check(&state.image, &state.image_path, &image, state.init)?;
    mount_layer(paths, state)?;
    let layer = Stack {
        layer: state.layer_root(),
        owner: base.unwrap_or(0),
        is_kept: state.init == Init::None,
    };
    layer.overlay(&image, "", &paths.root_mount())?;
    // What is mounted in an image, an overlay of it does not show.
    for (number, below) in idmapped_mount::nested_mounts(&image)?.iter().enumerate() {
        let place = below.strip_prefix(&image).unwrap_or(below);
        layer.overlay(below, &number.to_string(), &paths.root_mount().join(place))?;
    }
    for name in NESTED.iter().filter(|_| state.nesting) {
        layer.directory(name, 0o711)?;
    }
    for name in OVERLAID.iter().filter(|_| state.layer == Layer::None) {
        layer.directory(name, mode_of(&image.join(name)))?;
    }
    Ok(())
}

// By this mount every path in an overlay's options is one of ours, free of commas and colons.
fn show_image(source: &Path, target: &Path, base: Option<u32>) -> Result<()> {
    if !source.is_file() {
        return idmapped_mount::bind(source, target, base, Access::ReadOnly);
    }
    let mount = |options: &[&str]| {
        let command = ["systemd-dissect", "--mount", "--read-only"]
            .iter()
            .chain(options)
            .map(OsStr::new);
        let command = command.chain([source.as_os_str(), target.as_os_str()]);
        command::run_checked(&command.map(OsString::from).collect::<Vec<_>>(), LIMIT)
    };
    let mounted = mount(&[USED_PARTITIONS]).or_else(|error| {
        // systemd before 254 knows no such option, and needs all of an image's file systems in the kernel.
        if error.to_string().contains("unrecognized option") {
            mount(&[])
        } else {
            Err(error)
        }
    });
    mounted.with_context(|| format!("can't mount the disk image {}", source.display()))?;
    base.map_or(Ok(()), |base| {
        idmapped_mount::remap_recursively(target, source, base)
    })
}

fn mount_layer(paths: &MachinePaths, state: &State) -> Result<()> {
    match (state.layer, state.layer_size) {
        (Layer::Disk, Some(_)) => {
            ext4::mount(&paths.disk(), &paths.disk_mount()).with_context(|| {
                format!(
                    "can't mount the layer {}; see --layer-size",
                    paths.disk().display()
                )
            })
        }
        (Layer::Tmpfs, _) if state.init == Init::None => check_memory(paths),
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
        MsFlags::empty(),
        Some(&*options),
    )
    .with_context(|| format!("can't mount on {}", target.display()))
}

// The layer of a machine without an init is mounted when the machine is made. Without the mount, the host's /run would
// be written to, and nothing would bound that.
fn check_memory(paths: &MachinePaths) -> Result<()> {
    let (layer, state) = (paths.disk_mount(), paths.state_dir());
    let device = |path: &Path| fs::metadata(path).map(|there| there.dev());
    let is_mounted =
        matches!((device(&layer), device(&state)), (Ok(layer), Ok(state)) if layer != state);
    if !is_mounted || statfs(&layer)?.filesystem_type() != TMPFS_MAGIC {
        bail!(
            "the layer in memory is not mounted on {} any more; make the machine anew",
            layer.display()
        );
    }
    Ok(())
}

/// A layer that overlays are made of.
struct Stack {
    layer: PathBuf,
    /// The host's user that is the machine's root.
    owner: u32,
    /// Whether it may have been mounted before.
    is_kept: bool,
}

impl Stack {
    // With directories of the layer that end in `suffix`.
    fn overlay(&self, lower: &Path, suffix: &str, target: &Path) -> Result<()> {
        let upper = self.directory(&format!("upper{suffix}"), mode_of(lower))?;
        let work = self.layer.join(format!("work{suffix}"));
        // A volatile overlay leaves a mark there, with which the kernel would not mount it again.
        if self.is_kept && work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("can't empty {}", work.display()))?;
        }
        let work = self.directory(&format!("work{suffix}"), 0o700)?;
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
        nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_bytes())).with_context(|| {
            format!(
                "can't mount the overlay of {} and {}; the latter's file system must be one that overlayfs can write to",
                lower.display(),
                upper.display()
            )
        })
    }

    fn directory(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.layer.join(name);
        if self.is_kept && path.is_dir() {
            return Ok(path);
        }
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.and_then(|()| chown(&path, Some(self.owner), Some(self.owner)))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
            .with_context(|| format!("can't make the directory {}", path.display()))?;
        Ok(path)
    }
}

fn mode_of(directory: &Path) -> u32 {
    fs::metadata(directory).map_or(0o755, |directory| directory.permissions().mode() & 0o7777)
}
