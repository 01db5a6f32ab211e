//! Nodes of the devices that `--device=` names.
//!
//! The nodes on the host belong to users and groups that the machine does not have. So the machine
//! gets nodes of its own, on a file system that only its unit sees.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, mknod};
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::fs::read_in_root;
use nspawn_common::systemd::nspawn::Bind;

use crate::device::{Node, group_id};

/// Mode of a node. Everybody in a machine may use its devices, as nothing else does.
const MODE: u32 = 0o666;
/// Maximum size of a machine's group(5) that is read.
const GROUPS_SIZE: u64 = 1 << 20;
/// Number of group IDs that every machine has.
const GROUPS: u32 = 1 << 16;

/// The nodes of a machine, with the paths of their sources.
pub struct Devices(Vec<(Node, PathBuf)>);

/// Creates the nodes that `options` name. Returns them, and the options of systemd-nspawn with bind
/// mounts of the nodes.
pub fn create(paths: &MachinePaths, options: &[OsString]) -> Result<(Devices, Vec<OsString>)> {
    let mut devices = Devices(Vec::new());
    let mut words = options.to_vec();
    for word in words.iter_mut().take_while(|word| *word != "--") {
        let Some(node) = Node::of_option(word) else {
            continue;
        };
        if devices.0.is_empty() {
            mount_directory(&paths.devices())?;
        }
        let source = paths.devices().join(devices.0.len().to_string());
        create_node(&node.path, &source).with_context(|| {
            format!("can't give the machine the device {}", node.path.display())
        })?;
        *word = Bind::writable(&source, &node.path).to_option_with_source(&source);
        devices.0.push((node, source));
    }
    Ok((devices, words))
}

fn mount_directory(place: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(place)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("nspawn-ci"),
        place,
        Some("tmpfs"),
        flags,
        Some("mode=700,size=64k"),
    )
    .with_context(|| format!("can't mount on {}", place.display()))
}

fn create_node(path: &Path, source: &Path) -> Result<()> {
    let device = fs::metadata(path)?.rdev();
    mknod(
        source,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(MODE),
        device,
    )?;
    Ok(fs::set_permissions(source, Permissions::from_mode(MODE))?)
}

impl Devices {
    /// Gives the nodes to the machine's root and to the groups of the machine, which has its root
    /// directory at `root`. `owner` is the host's user that is the machine's root.
    pub fn set_owners(&self, root: &Path, owner: u32) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let groups = read_groups(root).unwrap_or_default();
        for (node, source) in &self.0 {
            let group = group_id(&groups, &node.group).filter(|group| *group < GROUPS);
            chown(source, Some(owner), Some(owner + group.unwrap_or(0)))?;
        }
        Ok(())
    }
}

/// Reads the machine's groups. A machine without an init may have changed them, and the file may be
/// anything.
fn read_groups(root: &Path) -> io::Result<String> {
    let text = read_in_root(File::open(root)?, "etc/group", GROUPS_SIZE)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
