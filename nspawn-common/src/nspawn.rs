//! The command line of systemd-nspawn.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::name::MachineName;

/// One thing of the host shown in the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// `SOURCE[:DESTINATION[:OPTIONS]]`, writable.
    Writable(OsString),
    /// The same, read-only.
    ReadOnly(OsString),
}

/// A machine as systemd-nspawn runs it.
#[derive(Clone, Debug)]
pub struct Nspawn<'a> {
    /// The machine.
    pub name: &'a MachineName,
    /// Its root, mounted.
    pub root: PathBuf,
    /// What it is shown.
    pub binds: Vec<Bind>,
    /// Words that its PID 1 takes as a kernel's command line (`systemd.wants=…`).
    pub boot_words: Vec<String>,
}

impl Nspawn<'_> {
    /// The command that boots the machine as part of the unit it is started in.
    #[must_use]
    pub fn command(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = [
            "systemd-nspawn",
            "--quiet",
            "--settings=no",      // what a machine is follows from our options alone
            "--keep-unit",        // the payload stays in the unit's cgroup: its limits bind
            "--notify-ready=yes", // ready is when the machine says so
            "--link-journal=no",  // images share a machine ID at times
            "--resolv-conf=copy-host",
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
        argv.push("--boot".into());
        argv.push("--".into());
        argv.extend(self.boot_words.iter().map(OsString::from));
        argv
    }
}

impl Bind {
    /// Shows the file or directory `source` as `destination`, read-only.
    #[must_use]
    pub fn read_only(source: &Path, destination: &Path) -> Self {
        Self::ReadOnly(pair(source, destination))
    }

    /// Shows the file or directory `source` as `destination`, writable.
    #[must_use]
    pub fn writable(source: &Path, destination: &Path) -> Self {
        Self::Writable(pair(source, destination))
    }
}

fn pair(source: &Path, destination: &Path) -> OsString {
    joined(&[source, destination])
}

/// Paths as the options `--bind=` and `--overlay=` take them: between colons, and a colon in a path
/// is written `\:` (systemd-nspawn(1)).
#[must_use]
pub fn joined(paths: &[&Path]) -> OsString {
    let escaped = paths.iter().map(|path| {
        let bytes = path.as_os_str().as_bytes().iter();
        bytes.flat_map(|byte| if b":\\".contains(byte) { vec![b'\\', *byte] } else { vec![*byte] }).collect()
    });
    OsString::from_vec(escaped.collect::<Vec<Vec<u8>>>().join(&b':'))
}

/// `OPTION=VALUE`.
#[must_use]
pub fn assign(option: &str, value: &OsStr) -> OsString {
    [OsStr::new(option), OsStr::new("="), value].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_keep_their_order_and_kind() {
        let name = MachineName::new("m").unwrap();
        let nspawn = Nspawn {
            name: &name,
            root: "/run/nspawn-ci/m/root".into(),
            binds: vec![Bind::Writable("/a b:/c".into()), Bind::read_only(Path::new("/x:1"), Path::new("/y"))],
            boot_words: vec!["systemd.wants=x.service".into()],
        };
        let argv = nspawn.command();
        let tail = [
            "--directory=/run/nspawn-ci/m/root",
            "--bind=/a b:/c",
            "--bind-ro=/x\\:1:/y",
            "--boot",
            "--",
            "systemd.wants=x.service",
        ];
        assert_eq!(argv[argv.len() - tail.len()..], tail);
        assert!(argv.iter().any(|word| word == "--machine=m"));
    }
}
