//! Running other programs: bounded in time, their output captured and bounded.

pub mod btrfs;
pub mod ext4;
pub mod flock;
pub mod manager;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::error::TimedOut;
use crate::shell;
use crate::sys::pidfd;
use crate::text;

/// So many of a failing tool's lines are shown: those that tell why are among the first.
const SHOWN_LINES: usize = 12;
/// No more than this is read of what a tool prints, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;

/// Directories that are searched after those on PATH: cron(8) and su(1) leave out where mkfs.ext4(8) is.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// The directories of a caller without a PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The language of tools, since some of their words are compared.
const LANGUAGE: &str = "C.UTF-8";

/// What a tool did.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr, without trailing white space.
    pub stderr: String,
}

/// Runs `argv` with stdin from /dev/null and waits for its end, `limit` at most.
///
/// # Errors
/// It can't be started (with the package to install, where known), or it takes too long and is
/// killed.
pub fn run(argv: &[OsString], limit: Duration) -> Result<Outcome> {
    let attempt = |argv: &[OsString]| run_with_stdin(Stdio::null(), argv, limit);
    let outcome = attempt(argv)?;
    if argv[0].to_str().is_some_and(manager::is_caller) {
        manager::settle(argv, outcome, attempt)
    } else {
        Ok(outcome)
    }
}

/// As [`run`], with `stdin`.
///
/// # Errors
/// As [`run`].
pub fn run_with_stdin(
    stdin: impl Into<Stdio>,
    argv: &[OsString],
    limit: Duration,
) -> Result<Outcome> {
    Running::start(stdin, argv)?.finish(limit)
}

/// A tool that was started, and is killed if nobody waits for its end.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts `argv`.
    ///
    /// # Errors
    /// It can't be started, with the package to install, where known.
    pub fn start(stdin: impl Into<Stdio>, argv: &[OsString]) -> Result<Self> {
        let (program, arguments) = argv.split_first().context("no command")?;
        let name = program.to_string_lossy().into_owned();
        let (stdout, stderr) = (capture()?, capture()?);
        let mut command = Command::new(program);
        // Programs of this workspace have a path, and see the caller's environment.
        if !name.contains('/') {
            command.env("PATH", search_path()).env("LC_ALL", LANGUAGE);
        }
        // What is begun in the name of a program that is killed ends with it.
        // SAFETY: prctl(2) is all that the child does there, and it is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        if manager::is_caller(&name) {
            command.env("LC_ALL", "C.UTF-8");
        }
        let child = command
            .args(arguments)
            .stdin(stdin)
            // A signal to our process group is ours to handle.
            .process_group(0)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .map_err(|error| anyhow!("can't start {name}: {error}{}", package_hint(&name)))?;
        Ok(Self {
            name,
            child,
            stdout,
            stderr,
        })
    }

    /// Waits for its end, `limit` at most.
    ///
    /// # Errors
    /// It takes too long and is killed; [`Fault::Interrupted`](crate::error::Fault::Interrupted).
    pub fn finish(mut self, limit: Duration) -> Result<Outcome> {
        let name = self.name.clone();
        let waited = pidfd::wait_for_exit(i32::try_from(self.child.id())?, limit);
        let ended = matches!(waited, Ok(true));
        if !ended {
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
            stdout: text_of(&self.stdout)?,
            stderr: text_of(&self.stderr)?,
        };
        if !ended {
            let said = text::indent(&outcome.stderr);
            bail!(TimedOut(format!(
                "{name} did not end within {} seconds{said}",
                limit.as_secs()
            )));
        }
        Ok(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Neither does anything to one that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `argv` and takes any status but 0 as a failure.
///
/// # Errors
/// As [`run`]; and a status other than 0, with the tool's own words below.
pub fn run_checked(argv: &[OsString], limit: Duration) -> Result<String> {
    checked(argv, run(argv, limit)?)
}

/// As [`run_checked`], with `stdin`.
///
/// # Errors
/// As [`run_checked`].
pub fn run_checked_with_stdin(
    stdin: impl Into<Stdio>,
    argv: &[OsString],
    limit: Duration,
) -> Result<String> {
    checked(argv, run_with_stdin(stdin, argv, limit)?)
}

fn checked(argv: &[OsString], outcome: Outcome) -> Result<String> {
    if outcome.status.success() {
        return Ok(outcome.stdout);
    }
    let more = outcome.stderr.lines().count().saturating_sub(SHOWN_LINES);
    let mut said: Vec<_> = outcome.stderr.lines().take(SHOWN_LINES).collect();
    let rest = format!("and {more} lines more");
    said.extend((more > 0).then_some(&*rest));
    bail!(
        "{} failed ({}){}",
        shell::join(&argv[..1]).to_string_lossy(),
        outcome.status,
        text::indent(&said.join("\n"))
    )
}

/// A file in memory that holds `text`, for a tool's stdin.
///
/// # Errors
/// The kernel's.
pub fn memory_file(text: &str) -> Result<File> {
    let mut file = capture()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Arguments from text.
#[must_use]
pub fn argv<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).into()
}

// A file in memory and not a pipe: nobody has to read while the tool runs, and a process that the
// tool leaves behind can't keep us waiting for its end.
fn capture() -> Result<File> {
    Ok(File::from(
        memfd_create("output", MFdFlags::MFD_CLOEXEC).context("memfd_create")?,
    ))
}

fn text_of(mut file: &File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn package_hint(program: &str) -> &'static str {
    match program {
        "systemd-nspawn" | "systemd-dissect" | "machinectl" => {
            "; install the package systemd-container"
        }
        "systemd-run" | "systemctl" | "journalctl" => "; this host must run systemd",
        "mkfs.ext4" | "e2fsck" => "; install the package e2fsprogs",
        "ip" => "; install the package iproute2",
        "btrfs" => "; install the package btrfs-progs",
        "flock" | "mount" | "nsenter" => "; install the package util-linux",
        _ => "",
    }
}

/// Returns the path of this program, for processes that are started as a part of it. After an upgrade that is the newer
/// program.
///
/// # Errors
/// The program has been removed.
pub fn current_program() -> Result<PathBuf> {
    let shown = std::env::current_exe().context("can't tell this program's own path")?;
    installed(&shown, |path| path.is_file()).with_context(|| {
        format!(
            "this program has been removed: {}; install it again",
            shown.display()
        )
    })
}

// The kernel appends a mark to the path of a program whose file was replaced or removed (proc_pid_exe(5)).
fn installed(shown: &Path, is_there: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let path = shown.as_os_str().as_bytes();
    let replaced = path.strip_suffix(b" (deleted)").unwrap_or(path);
    [shown, Path::new(OsStr::from_bytes(replaced))]
        .into_iter()
        .find(|path| is_there(path))
        .map(Path::to_owned)
}

/// Where `program`, another of ours, is: beside this one, or on PATH.
///
/// # Errors
/// Nowhere there.
pub fn find_sibling(program: &str) -> Result<PathBuf> {
    let beside = current_program()?.with_file_name(program);
    if beside.is_file() {
        return Ok(beside);
    }
    find_program(program).with_context(|| {
        format!("{program} is neither beside this program nor on PATH; install it there")
    })
}

/// Where `program` is on this process's PATH, or where the host's administrator has it.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Returns the directories in which tools are looked up.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    path.push(":");
    path.push(SYSTEM_DIRECTORIES);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn output_and_status_are_kept_apart() {
        let outcome = run(&argv(["sh", "-c", "echo out; echo err >&2; exit 3"]), LIMIT).unwrap();
        assert_eq!(
            (outcome.status.code(), &*outcome.stdout, &*outcome.stderr),
            (Some(3), "out", "err")
        );
    }

    #[test]
    fn a_failure_has_the_tools_words_below() {
        let error =
            run_checked(&argv(["sh", "-c", "echo no such thing >&2; exit 1"]), LIMIT).unwrap_err();
        assert_eq!(
            error.to_string(),
            "sh failed (exit status: 1)\n  no such thing"
        );
        assert!(run_checked(&argv(["/nonexistent/tool"]), LIMIT).is_err());
    }

    #[test]
    fn tools_are_found_in_sbin_and_speak_english() {
        let environment = run_checked(&argv(["sh", "-c", "echo $LC_ALL $PATH"]), LIMIT).unwrap();
        assert!(
            environment.starts_with("C.UTF-8 ") && environment.ends_with("/usr/sbin:/sbin"),
            "{environment}"
        );
        let own = run_checked(&argv(["/bin/sh", "-c", "echo $PATH"]), LIMIT).unwrap();
        assert_eq!(own, std::env::var("PATH").unwrap_or_default());
    }

    #[test]
    fn a_tool_that_hangs_is_ended() {
        let error = run(&argv(["sleep", "60"]), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    #[test]
    fn a_program_that_was_replaced_is_found_at_its_path() {
        let found = |shown: &str, there: &[&str]| {
            let is_there = |path: &Path| there.iter().any(|one| Path::new(one) == path);
            installed(Path::new(shown), is_there).map(|path| path.to_str().unwrap().to_owned())
        };
        assert_eq!(found("/bin/a", &["/bin/a"]).unwrap(), "/bin/a");
        assert_eq!(found("/bin/a (deleted)", &["/bin/a"]).unwrap(), "/bin/a");
        assert_eq!(
            found("/bin/a (deleted)", &["/bin/a", "/bin/a (deleted)"]).unwrap(),
            "/bin/a (deleted)"
        );
        assert_eq!(found("/bin/a (deleted)", &["/bin/b"]), None);
    }

    #[test]
    fn a_process_left_behind_keeps_nobody_waiting() {
        assert_eq!(
            run_checked(&argv(["sh", "-c", "sleep 60 & echo done"]), LIMIT).unwrap(),
            "done"
        );
    }
}
