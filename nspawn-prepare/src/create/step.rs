//! Steps of a plan: printed as shell commands by `--dry-run`, or executed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nspawn_common::sys::fs::write_atomic;
use nspawn_common::{command, shell};

use crate::diagnostics::print_diagnostic;

/// A step: an action, and a hint for the message if the action fails.
#[derive(Debug)]
pub struct Step {
    action: Action,
    pub hint: Option<Hint>,
}

/// Action of a step. Each has a shell command that does the same.
#[derive(Debug)]
enum Action {
    /// Creates a directory with this mode, and its parents with mode 0700.
    Directory(PathBuf, u32),
    /// Writes a file atomically. The directory's mode restricts access.
    File(PathBuf, Vec<u8>),
    /// Creates a sparse file of this size, in bytes.
    SparseFile(PathBuf, u64),
    /// Runs a program with this time limit.
    Command(Vec<OsString>, Duration),
}

/// Explanation of a failure.
#[derive(Clone, Copy, Debug)]
pub struct Hint {
    pub text: &'static str,
    /// Condition of the explanation: if the machine has ended, its end is the cause.
    pub needs_running_machine: bool,
}

impl Step {
    /// Returns a step that creates a directory with this mode, and its parents with mode 0700.
    pub const fn directory(path: PathBuf, mode: u32) -> Self {
        Self::new(Action::Directory(path, mode))
    }

    /// Returns a step that writes a file atomically. The directory's mode restricts access.
    pub const fn file(path: PathBuf, content: Vec<u8>) -> Self {
        Self::new(Action::File(path, content))
    }

    /// Returns a step that creates a sparse file of this size, in bytes.
    pub const fn sparse_file(path: PathBuf, size: u64) -> Self {
        Self::new(Action::SparseFile(path, size))
    }

    /// Returns a step that runs a program with this time limit.
    pub const fn command(argv: Vec<OsString>, limit: Duration) -> Self {
        Self::new(Action::Command(argv, limit))
    }

    const fn new(action: Action) -> Self {
        Self { action, hint: None }
    }

    /// Returns the step with a hint.
    pub fn with_hint(self, hint: Hint) -> Self {
        Self {
            hint: Some(hint),
            ..self
        }
    }

    /// Returns the shell command that does the same.
    pub fn shell_command(&self) -> OsString {
        match &self.action {
            Action::Directory(path, mode) => {
                let mode = OsString::from(format!("-m{mode:04o}"));
                shell::join(["install".as_ref(), "-d".as_ref(), &*mode, path.as_os_str()])
            }
            Action::File(path, content) => {
                let content = OsStr::from_bytes(content);
                let mut line = shell::join(["printf".as_ref(), "%s".as_ref(), content]);
                line.push(" > ");
                line.push(shell::join([path]));
                line
            }
            Action::SparseFile(path, size) => {
                let size = OsString::from(format!("--size={size}"));
                shell::join(["truncate".as_ref(), &*size, path.as_os_str()])
            }
            Action::Command(argv, _) => shell::join(argv),
        }
    }

    /// Executes the action.
    pub fn run(&self) -> Result<()> {
        self.run_within(Duration::MAX)
    }

    /// Executes the action. A program is killed after `time`, or after its own time limit if that is
    /// shorter.
    pub fn run_within(&self, time: Duration) -> Result<()> {
        match &self.action {
            Action::Directory(path, mode) => create_directory(path, *mode)
                .with_context(|| format!("can't make the directory {}", path.display())),
            Action::File(path, content) => write_atomic(path, content),
            Action::SparseFile(path, size) => create_sparse_file(path, *size)
                .with_context(|| format!("can't make {}", path.display())),
            Action::Command(argv, limit) => run_command(argv, time.min(*limit)),
        }
    }
}

fn run_command(argv: &[OsString], limit: Duration) -> Result<()> {
    let output = command::run_checked(argv, limit)?;
    if !output.is_empty() {
        print_diagnostic(output);
    }
    Ok(())
}

fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn create_sparse_file(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(size)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn steps(dir: &Path) -> [Step; 4] {
        let copy = ["cp".into(), "-p".into()]
            .into_iter()
            .chain([dir.join("b").into(), dir.join("copy").into()]);
        [
            Step::directory(dir.join("a'b"), 0o755),
            Step::file(dir.join("a'b/file"), b"[Unit]\nX=%s \"$HOME\"\n".to_vec()),
            Step::sparse_file(dir.join("b"), 5000),
            Step::command(copy.collect(), Duration::from_secs(9)),
        ]
    }

    fn result(dir: &Path) -> (Vec<u8>, Vec<u8>, u32) {
        let read = |name: &str| fs::read(dir.join(name)).unwrap();
        let mode = fs::metadata(dir.join("a'b")).unwrap().permissions().mode();
        (read("a'b/file"), read("copy"), mode)
    }

    #[test]
    fn shell_commands_do_the_same_as_the_steps() {
        let dir = std::env::temp_dir().join(format!("nspawn plan {}", std::process::id()));
        for step in steps(&dir) {
            step.run().unwrap();
        }
        let expected = result(&dir);
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        for step in steps(&dir) {
            let mut shell = Command::new("sh");
            let status = shell.arg("-c").arg(step.shell_command()).status();
            assert!(status.unwrap().success());
        }
        assert_eq!(result(&dir), expected);
        fs::remove_dir_all(&dir).unwrap();
    }
}
