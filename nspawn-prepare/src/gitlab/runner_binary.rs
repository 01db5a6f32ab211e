//! The host's gitlab-runner program, and the GitLab Runner that called this program.
//!
//! The scripts of jobs call gitlab-runner for artifacts and caches, and step-runner for `run:`. A
//! machine sees the host's programs, so that its image need not have them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::getppid;
use nspawn_common::command;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::gitlab;
use nspawn_common::gitlab::Job;
use nspawn_common::sys::process;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::systemd::nspawn::Bind;

use crate::options::Options;

const NAME: &str = "gitlab-runner";
/// Program that the script of a job with `run:` calls.
const STEP_RUNNER: &str = "step-runner";
/// Maximum number of generations between this process and GitLab Runner.
///
/// Scripts of the administrator may be between them.
const MAX_GENERATIONS: usize = 16;
/// Directories in a machine that may hold the programs, best first. The PATH of commands has all.
const DIRECTORIES: [&str; 6] = [
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
];

/// Adds the programs to the bind mounts of the machine, and returns lines about missing ones for the
/// job's log.
///
/// Without `--gitlab-runner`, gitlab-runner is added if the machine is for a job, and if the program
/// is found. So is step-runner for a job that needs it.
pub fn show(options: &mut Options, job: Option<&Job>) -> Result<Vec<String>> {
    let requested = options.policy.gitlab_runner.as_deref();
    // An administrator who sets --gitlab-runner=no needs no hint that the program is missing.
    let is_missed = job.is_some() && requested.is_none();
    let runner = find(requested, job.is_some())?;
    // Without a user namespace, the machine's root could make a bind mount writable, and overwrite
    // the program.
    let is_safe = options.machine.private_users != PrivateUsers::No;
    if requested.is_some() && runner.is_some() && !is_safe {
        bail!(
            "can't use --gitlab-runner with --private-users=no: jobs could overwrite the host's program"
        );
    }
    let mut lines = Vec::new();
    if !add(options, NAME, runner.filter(|_| is_safe)) && is_missed {
        lines.push(
            "no gitlab-runner of the host is mounted in the machine, so artifacts and caches need \
             one in the image; see --gitlab-runner"
                .to_owned(),
        );
    }
    if job.is_some_and(|job| job.wishes.functions) {
        let program = command::find_program(STEP_RUNNER).filter(|_| is_safe);
        if !add(options, STEP_RUNNER, program) {
            lines.push(
                "no step-runner of the host is mounted in the machine, so run: needs one in the image"
                    .to_owned(),
            );
        }
    }
    Ok(lines)
}

/// Adds the program to the bind mounts, and returns whether there is one.
fn add(options: &mut Options, name: &str, program: Option<PathBuf>) -> bool {
    let Some(program) = program else {
        return false;
    };
    let place = directory(gitlab::variable("PATH").as_deref()).join(name);
    options.machine.binds.push(Bind::unmapped(&program, &place));
    true
}

/// Returns the directory for the programs, which is on the PATH of the job's scripts if the job or
/// the runner's configuration sets that.
fn directory(path: Option<&str>) -> &'static Path {
    let is_on_path = |directory: &&&str| {
        path.is_none_or(|path| path.split(':').any(|entry| entry == **directory))
    };
    let found = DIRECTORIES.iter().find(is_on_path);
    Path::new(found.unwrap_or(&DIRECTORIES[0]))
}

fn find(requested: Option<&OsStr>, is_for_job: bool) -> Result<Option<PathBuf>> {
    let Some(requested) = requested else {
        return Ok(if is_for_job { find_default() } else { None });
    };
    if requested == "no" {
        return Ok(None);
    }
    let path = Path::new(requested);
    if !path.is_absolute() || !is_program(path) {
        bail!(
            "can't use --gitlab-runner={requested:?}: there is no such program; give its absolute path"
        );
    }
    Ok(Some(path.to_owned()))
}

fn find_default() -> Option<PathBuf> {
    let caller = caller_and_program().map(|(_, program)| program);
    caller
        .filter(|program| is_program(program))
        .or_else(|| command::find_program(NAME))
}

/// Returns the process of the GitLab Runner that called this program, perhaps by a script.
pub fn caller() -> Option<ProcessId> {
    let (pid, _) = caller_and_program()?;
    ProcessId::from_pid(pid).ok()
}

fn caller_and_program() -> Option<(u32, PathBuf)> {
    let mut pid = u32::try_from(getppid().as_raw()).ok()?;
    for _ in 0..MAX_GENERATIONS {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        if is_gitlab_runner(&program) {
            return Some((pid, program));
        }
        pid = process::parent(pid)?;
    }
    None
}

fn is_gitlab_runner(program: &Path) -> bool {
    program
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(NAME.as_bytes()))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_the_programs_is_on_the_path() {
        for (path, expected) in [
            (None, "/usr/local/bin"),
            (Some("/usr/bin:/usr/local/bin"), "/usr/local/bin"),
            (Some("/opt/bin:/usr/bin:/bin"), "/usr/bin"),
            (Some("/usr/sbin"), "/usr/sbin"),
            (Some("/opt/bin:$PATH"), "/usr/local/bin"),
        ] {
            assert_eq!(directory(path), Path::new(expected), "{path:?}");
        }
    }
}
