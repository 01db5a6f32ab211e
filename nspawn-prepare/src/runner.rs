//! The host's gitlab-runner, which the scripts of jobs call for artifacts and caches: shown in their machines, so that
//! any image will do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::getppid;
use nspawn_common::nspawn::Bind;
use nspawn_common::tool;
use nspawn_common::users::PrivateUsers;

use crate::options::Options;

const NAME: &str = "gitlab-runner";
/// Where it is in a machine: on the PATH of its commands.
const IN_MACHINE: &str = "/usr/local/bin/gitlab-runner";

/// Adds it to what the machine is shown, if it was asked for, or if this is for a job and it is found. Returns where.
pub fn show(options: &mut Options, is_for_job: bool) -> Result<Option<PathBuf>> {
    let Some(program) = find(options.gitlab_runner.as_deref(), is_for_job)? else { return Ok(None) };
    // A machine's root that is the host's could make it writable, and overwrite it.
    if options.private_users == PrivateUsers::No {
        if options.gitlab_runner.is_some() {
            bail!("--gitlab-runner can't be had with --private-users=no: jobs could overwrite the host's program");
        }
        return Ok(None);
    }
    options.binds.push(Bind::unmapped(&program, Path::new(IN_MACHINE)));
    Ok(Some(program))
}

fn find(asked: Option<&OsStr>, is_for_job: bool) -> Result<Option<PathBuf>> {
    match asked {
        Some(asked) if asked == "no" => Ok(None),
        Some(asked) if Path::new(asked).is_absolute() && is_program(Path::new(asked)) => Ok(Some(asked.into())),
        Some(asked) => bail!("--gitlab-runner={asked:?}: there is no such program; name its whole path"),
        None if is_for_job => Ok(of_caller().or_else(|| tool::find(NAME))),
        None => Ok(None),
    }
}

// GitLab Runner calls this program itself.
fn of_caller() -> Option<PathBuf> {
    let caller = fs::read_link(format!("/proc/{}/exe", getppid())).ok()?;
    let is_it = caller.file_name().is_some_and(|name| name.as_bytes().starts_with(NAME.as_bytes()));
    (is_it && is_program(&caller)).then_some(caller)
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o111 != 0)
}
