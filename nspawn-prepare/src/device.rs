//! `--device=`: devices of the host that a machine gets.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nspawn_common::sys::glob;

/// The host's root. The calling unit may have a /dev of its own.
const HOST: &str = "/proc/1/root";
/// Option of a node in the command of the launcher, which systemd-nspawn does not know.
const OPTION: &str = "--device=";

/// A device that has a name.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    /// Patterns for the paths of the nodes, with the groups that udev gives these nodes to. A host
    /// without a node for the first pattern lacks the device.
    nodes: &'static [(&'static str, &'static str)],
    /// Remedy for a host that lacks the device.
    remedy: &'static str,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "fuse",
        nodes: &[("/dev/fuse", "root")],
        remedy: "run modprobe fuse",
    },
    Kind {
        name: "kvm",
        nodes: &[("/dev/kvm", "kvm")],
        remedy: "run modprobe kvm_intel or kvm_amd; a virtual machine as host needs nested virtualization",
    },
    Kind {
        name: "tun",
        nodes: &[("/dev/net/tun", "root")],
        remedy: "run modprobe tun",
    },
    Kind {
        name: "dri",
        nodes: &[("/dev/dri/renderD*", "render"), ("/dev/dri/card*", "video")],
        remedy: "it needs a GPU and its driver",
    },
    Kind {
        name: "kfd",
        nodes: &[("/dev/kfd", "render")],
        remedy: "it needs a GPU of AMD and the driver amdgpu",
    },
    Kind {
        name: "nvidia",
        nodes: &[
            ("/dev/nvidiactl", "video"),
            ("/dev/nvidia[0-9]*", "video"),
            ("/dev/nvidia-*", "video"),
        ],
        remedy: "it needs a GPU of NVIDIA and its driver; run nvidia-modprobe -u -c 0",
    },
];

/// Names of devices that containers in a machine use: file systems and networks of users without
/// privileges.
const NESTING: [&str; 2] = ["fuse", "tun"];

/// Reason for which no machine gets loop devices.
///
/// A file system of a loop device can't be mounted in a user namespace either.
const NO_LOOP_DEVICES: &str = "can't give a machine loop devices: the host uses the same ones for the layers of other \
     machines; mount disk images by FUSE (--device=fuse, with fuse2fs or squashfuse), or fill them without a mount \
     (mkfs.ext4 -d, mksquashfs, mtools)";

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name of the device, or the path of its node.
    word: String,
}

/// A device node of the host, which the machine gets at the same path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    /// Group in the machine that owns the node, if the machine has that group.
    pub group: String,
}

impl Device {
    /// Parses a value of `--device=`.
    pub fn parse(word: &str) -> Result<Self> {
        let path = word.strip_prefix("/dev/");
        if path.unwrap_or(word).starts_with("loop") {
            bail!(NO_LOOP_DEVICES);
        }
        if path.is_none() && kind(word).is_none() {
            bail!(
                "can't use --device={word:?}: it needs one of {}, or the path of a character device in /dev",
                KINDS.map(|kind| kind.name).join(", ")
            );
        }
        Ok(Self {
            word: word.to_owned(),
        })
    }

    /// Returns the devices for containers in a machine, as far as this host has them.
    pub fn for_nesting() -> impl Iterator<Item = Self> {
        let devices = NESTING.map(|name| Self {
            word: name.to_owned(),
        });
        devices.into_iter().filter(|device| device.check().is_ok())
    }

    /// Refuses a device that this host lacks, and one that is no character device.
    pub fn check(&self) -> Result<()> {
        let Some(kind) = kind(&self.word) else {
            return check_path(&self.word);
        };
        let (pattern, _) = kind.nodes[0];
        if paths(pattern).is_empty() {
            bail!(
                "can't give the machine the device {}: this host has no {pattern}; {}",
                kind.name,
                kind.remedy
            );
        }
        Ok(())
    }

    /// Returns the nodes of the device, as far as this host has them.
    pub fn nodes(&self) -> Vec<Node> {
        let Some(kind) = kind(&self.word) else {
            return vec![Node {
                path: self.word.clone().into(),
                group: group_on_host(&self.word).unwrap_or_default(),
            }];
        };
        let nodes = kind.nodes.iter().flat_map(|(pattern, group)| {
            let group = (*group).to_owned();
            paths(pattern).into_iter().map(move |path| Node {
                path,
                group: group.clone(),
            })
        });
        nodes.collect()
    }
}

impl Node {
    /// Returns the property of the machine's unit that allows the device.
    pub fn to_property(&self) -> OsString {
        format!("DeviceAllow={} rwm", self.path.display()).into()
    }

    /// Returns the option of the launcher's command line.
    pub fn to_option(&self) -> OsString {
        format!("{OPTION}{}:{}", self.group, self.path.display()).into()
    }

    /// Returns the node of an option of the launcher's command line; `None` for any other option.
    pub fn of_option(word: &OsStr) -> Option<Self> {
        let (group, path) = word.to_str()?.strip_prefix(OPTION)?.split_once(':')?;
        Some(Self {
            path: path.into(),
            group: group.to_owned(),
        })
    }
}

fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

fn on_host(path: &Path) -> PathBuf {
    below(Path::new(HOST), path)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn check_path(path: &str) -> Result<()> {
    fs::metadata(on_host(path.as_ref()))
        .with_context(|| format!("can't give the machine the device {path}"))?;
    if !is_character_device(&on_host(path.as_ref())) {
        bail!("can't give the machine {path}: it is no character device; see --bind");
    }
    Ok(())
}

/// Returns the character devices of the host whose names match the last part of the pattern.
fn paths(pattern: &str) -> Vec<PathBuf> {
    paths_in(Path::new(HOST), pattern)
}

/// Returns the same for the host whose root directory is `root`.
fn paths_in(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) =
        (Path::new(pattern).parent(), Path::new(pattern).file_name())
    else {
        return Vec::new();
    };
    let entries = fs::read_dir(below(root, directory));
    let entries = entries.into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut paths: Vec<_> = names
        .filter(|found| glob::matches(name, found))
        .map(|found| directory.join(found))
        .filter(|path| is_character_device(&below(root, path)))
        .collect();
    paths.sort();
    paths
}

/// Returns whether the path leads to a character device, which may be mounted on a file of another
/// kind.
fn is_character_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device())
}

/// Returns the name of the group that owns the node on the host.
fn group_on_host(path: &str) -> Option<String> {
    let metadata = fs::metadata(on_host(path.as_ref())).ok()?;
    let groups = fs::read_to_string(on_host("/etc/group".as_ref())).ok()?;
    let is_owner = |line: &&str| id_of(line) == Some(metadata.gid());
    let line = groups.lines().find(is_owner)?;
    line.split(':').next().map(str::to_owned)
}

/// Returns the ID in a line of group(5).
fn id_of(line: &str) -> Option<u32> {
    line.split(':').nth(2)?.parse().ok()
}

/// Returns the ID of a group in the text of group(5).
pub fn group_id(groups: &str, name: &str) -> Option<u32> {
    let is_group = |line: &&str| line.split(':').next() == Some(name);
    groups.lines().find(is_group).and_then(id_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_unsafe_devices_are_refused() {
        for word in ["fuse", "kvm", "tun", "dri", "nvidia", "/dev/ttyUSB0"] {
            assert!(Device::parse(word).is_ok(), "{word}");
        }
        for (word, reason) in [
            ("", "it needs one of fuse, kvm, tun, dri, kfd, nvidia"),
            ("disk", "it needs one of"),
            ("/etc/passwd", "it needs one of"),
            ("loop", "layers of other machines"),
            ("loop-control", "layers of other machines"),
            ("/dev/loop7", "layers of other machines"),
        ] {
            let error = Device::parse(word).unwrap_err().to_string();
            assert!(error.contains(reason), "{word}: {error}");
        }
    }

    #[test]
    fn node_is_the_same_after_the_command_line() {
        let node = Node {
            path: "/dev/serial/by-id/usb-a:1".into(),
            group: "dialout".to_owned(),
        };
        assert_eq!(Node::of_option(&node.to_option()), Some(node));
        assert_eq!(Node::of_option("--bind=/dev/fuse".as_ref()), None);
    }

    #[test]
    fn nodes_are_found_by_pattern() {
        let root = Path::new("/");
        assert_eq!(paths_in(root, "/dev/nul?"), [PathBuf::from("/dev/null")]);
        for pattern in ["/dev/missing*", "/dev/missing/*", "/dev/sh?"] {
            assert!(paths_in(root, pattern).is_empty(), "{pattern}");
        }
    }

    #[test]
    fn group_is_found_by_its_name() {
        let text = "root:x:0:\nkvm2:x:9:\nkvm:x:104:ci\nbad\n";
        assert_eq!(group_id(text, "kvm"), Some(104));
        assert_eq!(group_id(text, "bad"), None);
        assert_eq!(group_id(text, "render"), None);
    }
}
