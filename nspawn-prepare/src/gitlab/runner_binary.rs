//! The host's gitlab-runner program, and the GitLab Runner that called this program.
//!
//! The scripts of jobs call gitlab-runner for artifacts and caches. A machine sees the host's
//! program, so that its image need not have one.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::getppid;
use nspawn_common::command;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::sys::process;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::systemd::nspawn::Bind;

use crate::options::Options;

const NAME: &str = "gitlab-runner";
/// Maximum number of generations between this process and GitLab Runner.
///
/// Scripts of the administrator may be between them.
const MAX_GENERATIONS: usize = 16;
/// Path of the program in a machine, in a directory that is on the PATH of its commands.
const IN_MACHINE: &str = "/usr/local/bin/gitlab-runner";

/// Adds the program to the bind mounts of the machine, and returns the program's path on the host.
///
/// Without `--gitlab-runner`, the program is added if the machine is for a job, and if the program
/// is found.
pub fn show(options: &mut Options, is_for_job: bool) -> Result<Option<PathBuf>> {
    let requested = options.policy.gitlab_runner.as_deref();
    let Some(program) = find(requested, is_for_job)? else {
        return Ok(None);
    };
    // Without a user namespace, the machine's root could make the bind mount writable, and
    // overwrite the program.
    if options.machine.private_users == PrivateUsers::No {
        if requested.is_some() {
            bail!(
                "can't use --gitlab-runner with --private-users=no: jobs could overwrite the host's program"
            );
        }
        return Ok(None);
    }
    let bind = Bind::unmapped(&program, Path::new(IN_MACHINE));
    options.machine.binds.push(bind);
    Ok(Some(program))
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
