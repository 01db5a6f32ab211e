//! The steps that make a machine: printed by `--dry-run`, or taken.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nspawn_common::sys::fs::write_atomic;
use nspawn_common::{command, report, shell};

use crate::PROGRAM;

/// One step; each has a shell command that does the same.
#[derive(Debug)]
pub enum Step {
    /// Makes a directory with these permissions, and its parents for root alone.
    Directory(PathBuf, u32),
    /// Writes a file, whole or not at all. Who may read it, the directory says.
    File(PathBuf, Vec<u8>),
    /// Makes a file of this size, in bytes, that takes no room yet.
    Sparse(PathBuf, u64),
    /// Runs a program, for so long at most.
    Run(Vec<OsString>, Duration),
}

impl Step {
    /// The shell command.
    pub fn shell(&self) -> OsString {
        match self {
            Self::Directory(path, mode) => shell::join([
                OsStr::new("install"),
                "-d".as_ref(),
                format!("-m{mode:04o}").as_ref(),
                path.as_ref(),
            ]),
            Self::Sparse(path, size) => shell::join([
                OsStr::new("truncate"),
                format!("--size={size}").as_ref(),
                path.as_ref(),
            ]),
            Self::File(path, content) => {
                let mut line = shell::join([
                    OsStr::new("printf"),
                    "%s".as_ref(),
                    OsStr::from_bytes(content),
                ]);
                line.push(" > ");
                line.push(shell::join([path]));
                line
            }
            Self::Run(argv, _) => shell::join(argv),
        }
    }

    /// Returns whether the step starts a unit.
    pub fn starts_unit(&self) -> bool {
        matches!(self, Self::Run(command, _) if command.first().is_some_and(|program| program == "systemd-run"))
    }

    /// Takes the step.
    pub fn take(&self) -> Result<()> {
        match self {
            Self::Directory(path, mode) => make_directory(path, *mode),
            Self::File(path, content) => write_atomic(path, content),
            Self::Sparse(path, size) => make_sparse(path, *size),
            Self::Run(argv, limit) => run(argv, *limit),
        }
    }
}

/// Runs a program of a step, and passes on what it says on stdout.
pub fn run(argv: &[OsString], limit: Duration) -> Result<()> {
    let said = command::run_checked(argv, limit)?;
    if !said.is_empty() {
        report::print_diagnostic(PROGRAM, OsStr::new(&said));
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("can't make the directory {}", path.display()))
}

fn make_sparse(path: &Path, size: u64) -> Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    file.and_then(|file| file.set_len(size))
        .with_context(|| format!("can't make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_the_same_steps() {
        let dir = std::env::temp_dir().join(format!("nspawn plan {}", std::process::id()));
        let steps = [
            Step::Directory(dir.join("a'b"), 0o755),
            Step::File(dir.join("a'b/file"), b"[Unit]\nX=%s \"$HOME\"\n".to_vec()),
            Step::Sparse(dir.join("b"), 5000),
            Step::Run(
                vec![
                    "cp".into(),
                    "-p".into(),
                    dir.join("b").into(),
                    dir.join("copy").into(),
                ],
                Duration::from_secs(9),
            ),
        ];
        let made = || {
            let read = |name: &str| fs::read(dir.join(name)).unwrap();
            (
                read("a'b/file"),
                read("copy"),
                fs::metadata(dir.join("a'b")).unwrap().permissions().mode(),
            )
        };
        steps.iter().for_each(|step| step.take().unwrap());
        let ours = made();
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        for step in &steps {
            assert!(
                std::process::Command::new("sh")
                    .arg("-c")
                    .arg(step.shell())
                    .status()
                    .unwrap()
                    .success()
            );
        }
        assert_eq!(made(), ours);
        fs::remove_dir_all(&dir).unwrap();
    }
}
