//! What a machine writes to: on disk a file system in a file, which bounds it and is deleted at once, or, without
//! a bound, directories of the host's; memory; or a copy of the image that shares its blocks.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nspawn_common::cli::sources;
use nspawn_common::command::btrfs;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::image::lookup::Image;
use nspawn_common::lifecycle::caller;
use nspawn_common::machine::paths::{LAYER_ROOT, MachinePaths};
use nspawn_common::machine::state::State;
use nspawn_common::systemd::nspawn;

use crate::create::step::Step;
use crate::limits;

/// The smallest file system that a system boots on, in bytes.
const LEAST: u64 = 32 << 20;
/// The largest that ext4 makes without more ado, in bytes.
const MOST: u64 = 8 << 40;

/// How long copying an image may take: its blocks are shared, but its files are made one by one.
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// How long all else may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What each machine may use, where nobody says otherwise, of the free disk or of the memory.
const DEFAULT: LayerSize = LayerSize::Percent(50);

/// Reads `--layer=`, in the light of `--layer-size=`.
pub fn choose(
    text: &str,
    size: Option<LayerSize>,
    users: PrivateUsers,
) -> Result<(Layer, LayerSize)> {
    let (layer, size) = match text.split_once(':') {
        Some(("tmpfs", size)) => (
            Layer::Tmpfs,
            Some(LayerSize::parse(size).with_context(|| format!("--layer={text}"))?),
        ),
        _ => (
            Layer::parse(text).with_context(|| format!("--layer={text}"))?,
            size,
        ),
    };
    let is_unbounded = size.is_none_or(|size| size == LayerSize::Infinity);
    match (layer, users) {
        (Layer::Snapshot, _) if is_unbounded => Ok((layer, LayerSize::Infinity)),
        (Layer::Snapshot, _) => bail!(
            "a copy of the image shares its file system, so --layer=snapshot has no size; add --layer-size=infinity, \
             or choose --layer=disk"
        ),
        // Where nothing keeps a machine's root from loop devices, it could read other machines' layers.
        (Layer::Disk, PrivateUsers::No) if is_unbounded => Ok((layer, LayerSize::Infinity)),
        (Layer::Disk, PrivateUsers::No) => {
            bail!(
                "--layer-size needs a user namespace; with --private-users=no add --layer-size=infinity"
            )
        }
        _ => Ok((layer, size.unwrap_or(DEFAULT))),
    }
}

/// `--layer-size=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerSize {
    Bytes(u64),
    /// A part of what is free where layers are, or of the memory.
    Percent(u64),
    Infinity,
}

impl LayerSize {
    /// Reads the option's value.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "infinity" {
            return Ok(Self::Infinity);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => bail!("{text} is no part of 100%"),
            };
        }
        parse_bytes(text).map(Self::Bytes)
    }

    /// The size of such a layer in bytes; `None` for no bound.
    pub fn bytes(self, layer: Layer) -> Result<Option<u64>> {
        let whole = if layer.is_in_memory() {
            limits::memory().context("can't tell how much memory this host has")?
        } else {
            free_for_layers()?
        };
        Ok(match self {
            Self::Infinity => None,
            Self::Bytes(size) => Some(size),
            // A file system is a whole number of blocks.
            Self::Percent(percent) => Some((whole / 100 * percent).clamp(LEAST, MOST) & !0xf_ffff),
        })
    }
}

/// Reads the size of a file system in a file, in bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    match sources::parse_size(text)? {
        size @ LEAST..=MOST => Ok(size),
        _ => bail!("{text} is not between {}M and {}T", LEAST >> 20, MOST >> 40),
    }
}

fn free_for_layers() -> Result<u64> {
    let free = free_bytes().with_context(|| format!("can't tell what is free in {LAYER_ROOT}"))?;
    if free < LEAST {
        bail!(
            "No space left for a layer: {} KiB are free in {LAYER_ROOT}, make it {} MiB",
            free >> 10,
            LEAST >> 20
        );
    }
    Ok(free)
}

// Of the file system that layers are on, or will be.
fn free_bytes() -> nix::Result<u64> {
    let mut place = Path::new(LAYER_ROOT);
    loop {
        match (statvfs(place), place.parent()) {
            (Err(Errno::ENOENT), Some(parent)) => place = parent,
            (there, _) => {
                return there.map(|there| there.blocks_available() * there.fragment_size());
            }
        }
    }
}

/// Makes sure that the kernel has loop devices: only then does systemd know what to allow a unit of them.
pub fn check_loop_devices() -> Result<()> {
    let Err(error) = File::open("/dev/loop-control") else {
        return Ok(());
    };
    if caller::has_own_mounts() && has_loop_devices_on_host() {
        return Ok(());
    }
    Err(error).context("this host has no loop devices; see --layer-size=infinity")
}

// PrivateDevices= (systemd.exec(5)) hides them from this process, and not from the machine's unit, which mounts.
fn has_loop_devices_on_host() -> bool {
    let drivers = fs::read_to_string("/proc/devices").unwrap_or_default();
    drivers.lines().any(|line| line.ends_with(" loop"))
        && Path::new("/proc/1/root/dev/loop-control").exists()
}

/// Refuses a caller whose files may not be as large as the layer.
pub fn check_file_size(size: Option<u64>) -> Result<()> {
    let (most, _) =
        getrlimit(Resource::RLIMIT_FSIZE).context("can't tell how large a file may be")?;
    if size.is_some_and(|size| size > most) {
        bail!(
            "files may have {most} bytes at most here, and the layer is larger; choose a smaller --layer-size, or set \
             ulimit -f unlimited, or LimitFSIZE=infinity in the unit that this runs in"
        );
    }
    Ok(())
}

/// The steps that make what a machine of this state writes to.
pub fn steps(state: &State) -> Vec<Step> {
    let paths = MachinePaths::new(&state.name);
    let layer = || Step::Directory(paths.layer(), 0o700);
    match (state.layer, state.layer_size) {
        (Layer::Disk, None) => vec![layer()],
        (Layer::Disk, Some(size)) => {
            let disk = paths.disk();
            let format = Step::Run(format_command(&disk), LIMIT);
            vec![layer(), Step::Sparse(disk, size), format]
        }
        (Layer::Snapshot, _) => {
            vec![
                layer(),
                Step::Run(
                    copy_command(&state.image_path, &paths.snapshot()),
                    COPY_LIMIT,
                ),
            ]
        }
        // What outlives the machine's runs can't be mounted for one of them.
        (Layer::Tmpfs, size) if state.init == Init::None => {
            vec![Step::Run(
                caller::on_host(mount_command(size, &paths.disk_mount())),
                LIMIT,
            )]
        }
        (Layer::Tmpfs | Layer::None, _) => Vec::new(),
    }
}

/// What the failure of a step that copies the image means.
pub const COPY_FAILURE: &str = "the image can't be copied so that it shares its blocks: --layer=snapshot needs it and \
    /var/lib/nspawn-ci on one file system that can (btrfs, xfs); --layer=disk needs none";

/// Whether the step copies the image.
pub fn is_copy(step: &Step, paths: &MachinePaths) -> bool {
    matches!(step, Step::Run(command, _) if command.last().is_some_and(|target| *target == *paths.snapshot()))
}

/// Refuses images that can't be copied so.
pub fn check_image(layer: Layer, image: &Image) -> Result<()> {
    if layer == Layer::Snapshot && image.is_disk() {
        bail!(
            "the image {} is a disk image, which --layer=snapshot can't copy; choose --layer=disk",
            image.name
        );
    }
    Ok(())
}

fn copy_command(image: &Path, target: &Path) -> Vec<OsString> {
    let command: &[&str] = if btrfs::is_subvolume(image) && btrfs::can_be_below(target) {
        &["btrfs", "--quiet", "subvolume", "snapshot"]
    } else {
        &["cp", "--archive", "--reflink=always", "--"]
    };
    command
        .iter()
        .map(OsStr::new)
        .chain([image.as_os_str(), target.as_os_str()])
        .map(OsString::from)
        .collect()
}

/// The options of tmpfs(5) for a layer in memory. A size of 0 is no bound.
pub fn memory_options(size: Option<u64>) -> String {
    format!("mode=0755,size={}", size.unwrap_or(0))
}

fn mount_command(size: Option<u64>, target: &Path) -> Vec<OsString> {
    let options = memory_options(size);
    let command = ["mount", "-t", "tmpfs", "-o", &options, "nspawn-ci"].map(OsStr::new);
    command
        .into_iter()
        .chain([target.as_os_str()])
        .map(OsString::from)
        .collect()
}

/// Where a machine whose root is read-only may write, beside /run: what is temporary, and where jobs work.
const TEMPORARY: [(&str, &str); 3] = [("/tmp", "1777"), ("/builds", "0755"), ("/cache", "0755")];
/// Directories below /var/lib in which a machine stores containers of its own.
pub const CONTAINER_DIRECTORIES: [&str; 2] = ["containers", "docker"];

/// Directories that it sees as the image has them, and may write to as well: without them neither a service nor a
/// tool of a user's gets far.
pub const OVERLAID: [&str; 2] = ["root", "var"];

/// The options of systemd-nspawn for that: memory, of `size` bytes at most for each of the former and for all of the
/// latter together.
pub fn temporary_options(paths: &MachinePaths, size: Option<u64>) -> Vec<OsString> {
    let bound = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let option = |(point, mode)| format!("--tmpfs={point}:mode={mode}{bound}").into();
    let (lower, upper) = (paths.root_mount(), paths.disk_mount());
    let overlay = |name| {
        let three = nspawn::joined(&[
            &lower.join(name),
            &upper.join(name),
            &Path::new("/").join(name),
        ]);
        nspawn::assign("--overlay", &three)
    };
    TEMPORARY
        .into_iter()
        .map(option)
        .chain(OVERLAID.map(overlay))
        .collect()
}

/// Makes the file system. A journal is for what must outlive a crash.
fn format_command(disk: &Path) -> Vec<OsString> {
    let options = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        "-i",
        "8192",
        "-O",
        "^has_journal,^resize_inode",
        "-E",
    ];
    let options = options
        .into_iter()
        .chain(["lazy_itable_init=1,nodiscard"])
        .map(OsStr::new);
    options
        .chain([disk.as_os_str()])
        .map(OsString::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use nspawn_common::machine::name::MachineName;

    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        assert_eq!(LayerSize::parse("10G").unwrap(), LayerSize::Bytes(10 << 30));
        assert_eq!(LayerSize::parse("5%").unwrap(), LayerSize::Percent(5));
        assert_eq!(
            LayerSize::parse("infinity")
                .unwrap()
                .bytes(Layer::Disk)
                .unwrap(),
            None
        );
        for bad in ["", "0", "1M", "0%", "101%", "-1%", "9T", "no"] {
            assert!(LayerSize::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_what_is_free_is_a_whole_number_of_blocks() {
        for layer in [Layer::Disk, Layer::Tmpfs] {
            let size = LayerSize::Percent(50).bytes(layer).unwrap().unwrap();
            assert!(size >= LEAST && size % (1 << 20) == 0, "{size}");
        }
    }

    #[test]
    fn a_copy_is_told_from_what_may_take_as_long() {
        let paths = MachinePaths::new(&MachineName::new("m").unwrap());
        let copy = copy_command(Path::new("/image"), &paths.snapshot());
        assert!(is_copy(&Step::Run(copy, COPY_LIMIT), &paths));
        assert!(!is_copy(
            &Step::Run(vec!["systemd-run".into()], COPY_LIMIT),
            &paths
        ));
    }

    #[test]
    fn layers_and_sizes_go_together_or_not() {
        let some = Some(LayerSize::Bytes(LEAST));
        let pick = |text, size| choose(text, size, PrivateUsers::Pick);
        assert_eq!(pick("disk", None).unwrap(), (Layer::Disk, DEFAULT));
        assert_eq!(
            pick("tmpfs:1G", some).unwrap(),
            (Layer::Tmpfs, LayerSize::Bytes(1 << 30))
        );
        assert_eq!(
            pick("tmpfs", some).unwrap(),
            (Layer::Tmpfs, LayerSize::Bytes(LEAST))
        );
        assert_eq!(
            pick("snapshot", None).unwrap(),
            (Layer::Snapshot, LayerSize::Infinity)
        );
        assert_eq!(
            choose("none", some, PrivateUsers::No).unwrap(),
            (Layer::None, LayerSize::Bytes(LEAST))
        );
        assert_eq!(
            choose("disk", None, PrivateUsers::No).unwrap(),
            (Layer::Disk, LayerSize::Infinity)
        );
        assert!(choose("disk", some, PrivateUsers::No).is_err());
        for bad in ["", "disk:1G", "tmpfs:", "tmpfs:1", "none:1G", "overlay"] {
            assert!(pick(bad, None).is_err(), "{bad}");
        }
        assert!(pick("snapshot", some).is_err());
    }
}
