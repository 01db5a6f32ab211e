//! The host's gitlab-runner, which the scripts of jobs call for artifacts and caches: shown in their machines, so that
//! any image will do.

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
/// So many processes may be between it and this one.
const MAX_STEPS: usize = 16;
/// Where it is in a machine: on the PATH of its commands.
const IN_MACHINE: &str = "/usr/local/bin/gitlab-runner";

/// Adds it to what the machine is shown, if it was asked for, or if this is for a job and it is found. Returns where.
pub fn show(options: &mut Options, is_for_job: bool) -> Result<Option<PathBuf>> {
    let Some(program) = find(options.policy.gitlab_runner.as_deref(), is_for_job)? else {
        return Ok(None);
    };
    // A machine's root that is the host's could make it writable, and overwrite it.
    if options.machine.private_users == PrivateUsers::No {
        if options.policy.gitlab_runner.is_some() {
            bail!(
                "--gitlab-runner can't be had with --private-users=no: jobs could overwrite the host's program"
            );
        }
        return Ok(None);
    }
    options
        .machine
        .binds
        .push(Bind::unmapped(&program, Path::new(IN_MACHINE)));
    Ok(Some(program))
}

fn find(asked: Option<&OsStr>, is_for_job: bool) -> Result<Option<PathBuf>> {
    match asked {
        Some(asked) if asked == "no" => Ok(None),
        Some(asked) if Path::new(asked).is_absolute() && is_program(Path::new(asked)) => {
            Ok(Some(asked.into()))
        }
        Some(asked) => {
            bail!("--gitlab-runner={asked:?}: there is no such program; name its whole path")
        }
        None if is_for_job => Ok(of_caller().or_else(|| command::find_program(NAME))),
        None => Ok(None),
    }
}

/// The GitLab Runner that this program was called by, itself or by a script of the administrator's.
pub fn caller() -> Option<ProcessId> {
    caller_and_program().and_then(|(process, _)| ProcessId::from_pid(process).ok())
}

fn of_caller() -> Option<PathBuf> {
    caller_and_program()
        .map(|(_, program)| program)
        .filter(|program| is_program(program))
}

fn caller_and_program() -> Option<(u32, PathBuf)> {
    let mut process = u32::try_from(getppid().as_raw()).ok()?;
    for _ in 0..MAX_STEPS {
        let program = fs::read_link(format!("/proc/{process}/exe")).ok()?;
        if program
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(NAME.as_bytes()))
        {
            return Some((process, program));
        }
        process = process::parent(process)?;
    }
    None
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o111 != 0)
}
