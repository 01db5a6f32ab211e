//! The command line of systemd-nspawn.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::config::network::Network;
use crate::machine::name::MachineName;

/// Option for the limit at which the kernel writes no core dump, and runs no program for one either
/// (core(5)).
pub const NO_CORES: &str = "--rlimit=CORE=1";

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
            "--console=read-only", // the boot's messages go to the unit's journal
        ]
        .map(OsString::from)
        .into();
        argv.push(format!("--machine={}", self.name).into());
        argv.push(assign("--directory", self.root.as_os_str()));
        argv.extend(self.binds.iter().map(|bind| match bind {
            Bind::Writable(spec) => assign("--bind", spec),
            Bind::ReadOnly(spec) => assign("--bind-ro", spec),
        }));
        argv.extend(
            network_options(self.network, self.is_read_only)
                .into_iter()
                .flatten(),
        );
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

/// Returns the options that connect a machine to its network, and provide its resolv.conf(5).
///
/// systemd-nspawn copies the host's resolv.conf, or shows the host's own in a read-only root. For
/// [`Network::Nat`] the file is written before systemd-nspawn starts.
fn network_options(network: &Network, is_read_only: bool) -> [Option<OsString>; 2] {
    let option = match network {
        Network::Nat | Network::None => Some("--private-network".to_owned()),
        Network::Host => None,
        Network::Veth => Some("--network-veth".to_owned()),
        Network::Bridge(bridge) => Some(format!("--network-bridge={bridge}")),
        Network::Zone(zone) => Some(format!("--network-zone={zone}")),
        Network::Namespace(path) => Some(format!("--network-namespace-path={path}")),
    };
    let resolvers = match network {
        Network::Nat | Network::None => "off",
        Network::Host | Network::Namespace(_) if is_read_only => "bind-host",
        Network::Host | Network::Namespace(_) => "copy-host",
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

    /// Returns the source on the host. Returns `None` if the source is a new directory or a file of
    /// the machine.
    #[must_use]
    pub fn source(&self) -> Option<PathBuf> {
        let (Self::Writable(spec) | Self::ReadOnly(spec)) = self;
        let source = OsString::from_vec(unescaped(split(spec.as_bytes())[0]));
        Some(PathBuf::from(source)).filter(|source| source.is_absolute())
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
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescaped(field)));
    let mut points = Vec::new();
    for word in argv
        .iter()
        .map(|word| word.as_bytes())
        .take_while(|word| *word != b"--")
    {
        if let Some(spec) = word.strip_prefix(b"--tmpfs=") {
            points.push((path(split(spec)[0]), false));
        }
        let bind = word
            .strip_prefix(b"--bind=")
            .or_else(|| word.strip_prefix(b"--bind-ro="));
        if let Some([source, rest @ ..]) = bind.map(split).as_deref() {
            let destination = rest
                .first()
                .filter(|field| !field.is_empty())
                .unwrap_or(source);
            points.push((path(destination), path(source).is_file()));
        }
    }
    points
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
    let destination = fields
        .get(1)
        .filter(|field| !field.is_empty())
        .unwrap_or(&fields[0]);
    let options = fields.get(2).copied().unwrap_or_default();
    if options
        .split(|byte| *byte == b',')
        .any(|option| option.ends_with(b"idmap"))
    {
        return spec;
    }
    let options = [options, b"rootidmap"]
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
