//! The command line of systemd-nspawn.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use nix::libc;

use crate::config::network::Network;
use crate::machine::name::MachineName;
use crate::sys::fs::open_place;

/// Option for the limit at which the kernel writes no core dump, and runs no program for one either
/// (core(5)).
pub const NO_CORES: &str = "--rlimit=CORE=1";

/// Option for the architecture that uname(2) reports, with the name of the architecture.
pub const PERSONALITY: &str = "--personality=";

/// Option of a bind mount that forbids symbolic links in its source.
///
/// systemd-nspawn does not know it: the launcher opens the source.
const NO_SYMLINKS: &[u8] = b"nosymlinks";

/// Option of a bind mount that shows the source's owner as the machine's root.
const OWNER: &[u8] = b"rootidmap";

/// A bind mount from the host into the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// A writable bind mount, as `SOURCE[:DESTINATION[:OPTIONS]]`.
    Writable(OsString),
    /// A read-only bind mount, in the same form.
    ReadOnly(OsString),
}

/// A machine as systemd-nspawn runs it.
#[derive(Clone, Debug)]
pub struct Nspawn<'a> {
    /// The machine's name.
    pub name: &'a MachineName,
    /// Mount point of the machine's root.
    pub root: PathBuf,
    /// The bind mounts.
    pub binds: Vec<Bind>,
    /// The machine's network.
    pub network: &'a Network,
    /// Set if the machine's root is read-only.
    pub is_read_only: bool,
    /// More options of systemd-nspawn(1).
    pub options: Vec<OsString>,
    /// The machine's processes.
    pub payload: Payload,
}

/// The first process of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The image's systemd, with words for its kernel command line (`systemd.wants=…`).
    Boot(Vec<String>),
    /// This command, below the stub init of systemd-nspawn.
    Command(Vec<String>),
}

impl Nspawn<'_> {
    /// Returns the command that runs the machine in the current unit.
    #[must_use]
    pub fn command(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = [
            "systemd-nspawn",
            "--quiet",
            "--settings=no",       // only these options define the machine
            "--keep-unit",         // the payload stays in the unit's cgroup: its limits bind
            "--link-journal=no",   // images may share a machine ID
            "--timezone=off",      // the image's own, so that no result depends on the host
            "--console=read-only", // the boot's messages go to the unit's journal
        ]
        .map(OsString::from)
        .into();
        argv.push(format!("--machine={}", self.name).into());
        argv.push(assign("--directory", self.root.as_os_str()));
        argv.extend(self.binds.iter().map(Bind::to_option));
        argv.extend(network_options(self.network).into_iter().flatten());
        argv.extend(self.is_read_only.then(|| "--read-only".into()));
        argv.extend(self.options.iter().cloned());
        let (options, words) = match &self.payload {
            // The machine's systemd reports when it is ready.
            Payload::Boot(words) => (["--notify-ready=yes", "--boot", "--"].as_slice(), words),
            Payload::Command(words) => (["--as-pid2", "--"].as_slice(), words),
        };
        argv.extend(options.iter().map(OsString::from));
        argv.extend(words.iter().map(OsString::from));
        argv
    }
}

/// Returns the options that connect a machine to its network.
///
/// If the machine uses the host's resolvers, its resolv.conf(5) is written before systemd-nspawn
/// starts.
fn network_options(network: &Network) -> [Option<OsString>; 2] {
    let option = match network {
        Network::Nat | Network::None => Some("--private-network".to_owned()),
        Network::Host => None,
        Network::Veth => Some("--network-veth".to_owned()),
        Network::Bridge(bridge) => Some(format!("--network-bridge={bridge}")),
        Network::Zone(zone) => Some(format!("--network-zone={zone}")),
        Network::Namespace(path) => Some(format!("--network-namespace-path={path}")),
    };
    let resolvers = match network {
        Network::Nat | Network::None | Network::Host | Network::Namespace(_) => "off",
        Network::Veth | Network::Bridge(_) | Network::Zone(_) => "auto",
    };
    let resolvers = format!("--resolv-conf={resolvers}");
    [option.map(OsString::from), Some(resolvers.into())]
}

impl Bind {
    /// Returns the bind mount for a machine with a user namespace. There the machine's root owns
    /// the files of the source's owner, unless the options set an ID mapping already
    /// (systemd-nspawn(1), `--bind=`).
    #[must_use]
    pub fn with_owner(self) -> Self {
        match self {
            Self::Writable(spec) => Self::Writable(with_owner(spec)),
            Self::ReadOnly(spec) => Self::ReadOnly(with_owner(spec)),
        }
    }

    /// Returns a read-only bind mount of the program `source` without an ID mapping, which not
    /// every file system supports.
    #[must_use]
    pub fn unmapped(source: &Path, destination: &Path) -> Self {
        let mut spec = pair(source, destination);
        spec.push(":noidmap");
        Self::ReadOnly(spec)
    }

    /// Returns the bind mount of an option of systemd-nspawn; `None` for any other option.
    #[must_use]
    pub fn of_option(word: &OsStr) -> Option<Self> {
        let spec_after = |prefix: &[u8]| {
            let spec = word.as_bytes().strip_prefix(prefix)?;
            Some(OsStr::from_bytes(spec).to_owned())
        };
        let writable = spec_after(b"--bind=").map(Self::Writable);
        writable.or_else(|| spec_after(b"--bind-ro=").map(Self::ReadOnly))
    }

    fn to_option(&self) -> OsString {
        match self {
            Self::Writable(spec) => assign("--bind", spec),
            Self::ReadOnly(spec) => assign("--bind-ro", spec),
        }
    }

    fn fields(&self) -> Vec<&[u8]> {
        let (Self::Writable(spec) | Self::ReadOnly(spec)) = self;
        split(spec.as_bytes())
    }

    /// Returns the source on the host. Returns `None` if the source is a new directory or a file of
    /// the machine.
    #[must_use]
    pub fn source(&self) -> Option<PathBuf> {
        let source = path(self.fields()[0]);
        source.is_absolute().then_some(source)
    }

    /// Returns the path in the machine.
    #[must_use]
    pub fn destination(&self) -> PathBuf {
        path(destination(&self.fields()))
    }

    /// Opens the source, if it is on the host, below the root directory `root`.
    ///
    /// The descriptor still refers to the same file or directory when another process replaces the
    /// path, or a part of it.
    pub fn open_source(&self, root: &Path) -> Result<Option<OwnedFd>> {
        let Some(source) = self.source() else {
            return Ok(None);
        };
        let open = || {
            let root = File::open(root)?;
            Ok(open_place(root, &source, !self.has_option(NO_SYMLINKS))?)
        };
        let opened: io::Result<OwnedFd> = open();
        let source = source.display();
        opened.map(Some).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => anyhow!(
                "can't bind mount {source}: the path leads through a symbolic link; name the link's target"
            ),
            Some(libc::ENOENT | libc::ENOTDIR) => {
                anyhow!("can't bind mount {source}: it does not exist on the host; create it")
            }
            _ => anyhow!("can't bind mount {source}: {error}"),
        })
    }

    fn has_option(&self, name: &[u8]) -> bool {
        let fields = self.fields();
        let mut options = fields
            .iter()
            .skip(2)
            .flat_map(|field| field.split(is_comma));
        options.any(|option| option == name)
    }

    /// Returns whether the mount includes the mounts inside the source.
    #[must_use]
    pub fn is_recursive(&self) -> bool {
        !self.has_option(b"norbind")
    }

    /// Returns whether the machine's root owns the files of the source's owner.
    #[must_use]
    pub fn maps_owner(&self) -> bool {
        self.has_option(OWNER)
    }

    /// Returns the option of systemd-nspawn that mounts `source` in place of the source. The owner of
    /// `source` is mapped already if it is to be mapped.
    #[must_use]
    pub fn to_option_with_source(&self, source: &Path) -> OsString {
        let fields = self.fields();
        let options: Vec<_> = fields
            .iter()
            .skip(2)
            .map(|field| replace_option(field, NO_SYMLINKS, None))
            .map(|field| replace_option(&field, OWNER, Some(b"noidmap")))
            .filter(|field| !field.is_empty())
            .collect();
        let mut spec = joined(&[source]).into_vec();
        for field in [destination(&fields).to_vec()].into_iter().chain(options) {
            spec.push(b':');
            spec.extend(field);
        }
        let spec = OsString::from_vec(spec);
        match self {
            Self::Writable(_) => Self::Writable(spec).to_option(),
            Self::ReadOnly(_) => Self::ReadOnly(spec).to_option(),
        }
    }

    /// Returns a writable bind mount of the file or directory `source`.
    #[must_use]
    pub fn writable(source: &Path, destination: &Path) -> Self {
        Self::Writable(pair(source, destination))
    }
}

/// Returns the mount points that the options of a [`Nspawn::command`] need in the machine's root,
/// each with whether it is a file.
#[must_use]
pub fn mount_points(argv: &[OsString]) -> Vec<(PathBuf, bool)> {
    let mut points = Vec::new();
    for word in argv.iter().take_while(|word| *word != "--") {
        if let Some(spec) = word.as_bytes().strip_prefix(b"--tmpfs=") {
            points.push((path(split(spec)[0]), false));
        }
        if let Some(bind) = Bind::of_option(word) {
            let is_file = bind.source().is_some_and(|source| is_file(&source));
            points.push((bind.destination(), is_file));
        }
    }
    points
}

/// Returns whether the mount point of `source` is a file, as for device nodes.
fn is_file(source: &Path) -> bool {
    fs::metadata(source).is_ok_and(|metadata| !metadata.is_dir())
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescaped(field)))
}

// Returns the field of the destination, which is that of the source if there is no other.
fn destination<'a>(fields: &[&'a [u8]]) -> &'a [u8] {
    let destination = fields.get(1).filter(|field| !field.is_empty());
    destination.unwrap_or(&fields[0])
}

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

fn replace_option(options: &[u8], option: &[u8], replacement: Option<&'static [u8]>) -> Vec<u8> {
    let words = options.split(is_comma);
    let replaced = words.filter_map(|word| match word == option {
        true => replacement,
        false => Some(word),
    });
    replaced.collect::<Vec<_>>().join(&b',')
}

fn with_owner(spec: OsString) -> OsString {
    let fields = split(spec.as_bytes());
    // The source is in the machine or a new directory, or systemd-nspawn will refuse the
    // specification.
    if matches!(spec.as_bytes().first(), Some(b'+' | b':') | None) || fields.len() > 3 {
        return spec;
    }
    // Device nodes are on a file system that can't be id-mapped.
    let source = OsString::from_vec(unescaped(fields[0]));
    if fs::metadata(source).is_ok_and(|source| !source.is_dir() && !source.is_file()) {
        return spec;
    }
    let destination = destination(&fields);
    let options = fields.get(2).copied().unwrap_or_default();
    if options
        .split(is_comma)
        .any(|option| option.ends_with(b"idmap"))
    {
        return spec;
    }
    let options = [options, OWNER]
        .into_iter()
        .filter(|option| !option.is_empty())
        .collect::<Vec<_>>();
    OsString::from_vec([fields[0], destination, &options.join(&b',')].join(&b':'))
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = field.iter();
    let next = || {
        bytes
            .next()
            .and_then(|byte| {
                if *byte == b'\\' {
                    bytes.next()
                } else {
                    Some(byte)
                }
            })
            .copied()
    };
    std::iter::from_fn(next).collect()
}

/// Splits a specification at the colons that no backslash escapes.
fn split(spec: &[u8]) -> Vec<&[u8]> {
    let mut is_escaped = false;
    let fields = spec.split(|byte| {
        let is_end = *byte == b':' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    });
    fields.collect()
}

fn pair(source: &Path, destination: &Path) -> OsString {
    joined(&[source, destination])
}

/// Joins paths for `--bind=` and `--overlay=`: with colons, and a colon in a path as `\:`
/// (systemd-nspawn(1)).
#[must_use]
pub fn joined(paths: &[&Path]) -> OsString {
    let escaped = paths.iter().map(|path| {
        let bytes = path.as_os_str().as_bytes().iter();
        bytes
            .flat_map(|byte| {
                if b":\\".contains(byte) {
                    vec![b'\\', *byte]
                } else {
                    vec![*byte]
                }
            })
            .collect()
    });
    OsString::from_vec(escaped.collect::<Vec<Vec<u8>>>().join(&b':'))
}

/// Returns the word `OPTION=VALUE`.
#[must_use]
pub fn assign(option: &str, value: &OsStr) -> OsString {
    [OsStr::new(option), OsStr::new("="), value]
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_option_is_added_to_binds_without_id_mapping() {
        for (spec, expected) in [
            ("/a", "/a:/a:rootidmap"),
            ("/a:/b", "/a:/b:rootidmap"),
            ("/a::norbind", "/a:/a:norbind,rootidmap"),
            ("/a\\:1:/b", "/a\\:1:/b:rootidmap"),
            ("/a:/b:noidmap,rbind", "/a:/b:noidmap,rbind"),
            ("/a:/b:idmap", "/a:/b:idmap"),
            ("+/a:/b", "+/a:/b"),
            (":/b", ":/b"),
            ("/a:/b:norbind:x", "/a:/b:norbind:x"),
            ("/dev/null:/b", "/dev/null:/b"),
        ] {
            assert_eq!(
                Bind::Writable(spec.into()).with_owner(),
                Bind::Writable(expected.into())
            );
        }
    }

    #[test]
    fn source_is_replaced_and_all_else_is_kept() {
        for (option, expected) in [
            ("--bind=/a", "--bind=/s\\:1:/a"),
            ("--bind-ro=/a\\:b:/b", "--bind-ro=/s\\:1:/b"),
            ("--bind=/a\\:b", "--bind=/s\\:1:/a\\:b"),
            ("--bind=/a::norbind", "--bind=/s\\:1:/a:norbind"),
            (
                "--bind=/a:/b\\:c:idmap,nosymlinks",
                "--bind=/s\\:1:/b\\:c:idmap",
            ),
            ("--bind=/a:/b:nosymlinks", "--bind=/s\\:1:/b"),
            (
                "--bind=/a:/b:rootidmap,rbind",
                "--bind=/s\\:1:/b:noidmap,rbind",
            ),
            ("--bind=/a:/b:norbind:x", "--bind=/s\\:1:/b:norbind:x"),
        ] {
            let bind = Bind::of_option(option.as_ref()).unwrap();
            assert_eq!(bind.to_option_with_source(Path::new("/s:1")), expected);
        }
        assert_eq!(Bind::of_option("--binder=/a".as_ref()), None);
    }

    #[test]
    fn mount_points_of_binds_and_tmpfs_are_found() {
        let argv = [
            "x",
            "--tmpfs=/a\\:b:size=1",
            "--bind=/etc/passwd:/p",
            "--bind-ro=/d::rbind",
            "--",
            "--bind=/no",
        ];
        let expected = [
            ("/a:b".into(), false),
            ("/p".into(), true),
            ("/d".into(), false),
        ];
        assert_eq!(mount_points(&argv.map(OsString::from)), expected);
    }

    #[test]
    fn binds_keep_their_order_and_kind() {
        let name = MachineName::new("m").unwrap();
        let nspawn = Nspawn {
            name: &name,
            root: "/run/nspawn-ci/m/root".into(),
            binds: vec![
                Bind::ReadOnly("/a b:/c".into()),
                Bind::writable(Path::new("/x:1"), Path::new("/y")),
            ],
            network: &Network::None,
            is_read_only: false,
            options: vec!["--drop-capability=CAP_MKNOD".into()],
            payload: Payload::Boot(vec!["systemd.wants=x.service".into()]),
        };
        let argv = nspawn.command();
        let tail = [
            "--directory=/run/nspawn-ci/m/root",
            "--bind-ro=/a b:/c",
            "--bind=/x\\:1:/y",
            "--private-network",
            "--resolv-conf=off",
            "--drop-capability=CAP_MKNOD",
            "--notify-ready=yes",
            "--boot",
            "--",
            "systemd.wants=x.service",
        ];
        assert_eq!(argv[argv.len() - tail.len()..], tail);
        assert!(argv.iter().any(|word| word == "--machine=m"));
    }
}
