//! Processes of external programs: start, capture of the output, and time limit.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::command::program_path;
use crate::error::TimedOut;
use crate::sys::{fork, pidfd};
use crate::text;

/// Maximum length of the output that is read, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;
/// Locale of the programs, since the text of some of their messages is compared.
const LOCALE: &str = "C.UTF-8";

/// Result of a program.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status.
    pub status: ExitStatus,
    /// Text on stdout, without trailing white space.
    pub stdout: String,
    /// Text on stderr, without trailing white space.
    pub stderr: String,
}

/// Running program. It is killed when this is dropped before [`Running::finish`].
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts the program `argv`.
    ///
    /// The error names the package to install, if the program is missing and its package is known.
    pub fn start(stdin: impl Into<Stdio>, argv: &[OsString]) -> Result<Self> {
        let (program, arguments) = argv.split_first().context("can't run an empty command")?;
        let name = program.to_string_lossy().into_owned();
        let (stdout, stderr) = (create_capture()?, create_capture()?);
        let mut command = Command::new(program);
        // Programs of this workspace are started by their path, and see the caller's environment.
        if !name.contains('/') {
            command
                .env("PATH", program_path::search_path())
                .env("LC_ALL", LOCALE);
        }
        // If this program is killed, the programs that it has started must not continue.
        fork::kill_with_parent(&mut command);
        let child = command
            .args(arguments)
            .stdin(stdin)
            // A terminal sends its signals to the process group of this program, which handles
            // them and ends its children itself.
            .process_group(0)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .map_err(|error| {
                let hint = program_path::package_hint(&name);
                anyhow!("can't start {name}: {error}{hint}")
            })?;
        Ok(Self {
            name,
            child,
            stdout,
            stderr,
        })
    }

    /// Waits until the program ends, and kills it after `limit`.
    ///
    /// Fails with [`TimedOut`] after `limit`, and if a signal asks this program to end.
    pub fn finish(mut self, limit: Duration) -> Result<Outcome> {
        let name = self.name.clone();
        let waited = pidfd::wait_for_exit(i32::try_from(self.child.id())?, limit);
        let has_ended = matches!(waited, Ok(true));
        if !has_ended {
            self.child
                .kill()
                .with_context(|| format!("can't kill {name}"))?;
        }
        let status = self
            .child
            .wait()
            .with_context(|| format!("can't wait for {name}"))?;
        waited?;
        let outcome = Outcome {
            status,
            stdout: read_capture(&self.stdout)?,
            stderr: read_capture(&self.stderr)?,
        };
        if !has_ended {
            bail!(TimedOut(format!(
                "{name} did not end within {} seconds{}",
                limit.as_secs(),
                text::indent(&outcome.stderr)
            )));
        }
        Ok(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both calls do nothing after `finish` has waited for the process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates a file in memory with this content, to be used as a program's stdin.
pub fn memory_file(content: &str) -> Result<File> {
    let mut file = create_capture()?;
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

// Creates a file in memory for a program's output. In contrast to a pipe, it needs no reader while
// the program runs, and a process that the program leaves behind does not keep a reader waiting.
fn create_capture() -> Result<File> {
    let file =
        memfd_create("output", MFdFlags::MFD_CLOEXEC).context("can't create a file in memory")?;
    Ok(File::from(file))
}

fn read_capture(mut file: &File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
