//! The services of a job that have ended before it.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use nspawn_common::name::MachineName;
use nspawn_common::paths::MachinePaths;
use nspawn_common::state::State;
use nspawn_common::{exit, gitlab, journal, lifecycle};

use crate::PROGRAM;

/// Tells the log of the job that has the machine `job`.
pub fn tell_ended(job: &MachineName) -> Result<()> {
    for service in lifecycle::services(job)?.iter().filter(|service| has_ended(service)) {
        let paths = MachinePaths::new(&service.name);
        let since = fs::metadata(paths.state_file()).and_then(|file| file.modified()).unwrap_or(UNIX_EPOCH);
        let line = format!("the service {} has ended before the job; its log is below", service.image);
        exit::say(PROGRAM, OsStr::new(&line));
        let said = journal::last_words(&paths, since).unwrap_or_default();
        let name = format!("{}-ended", service.name);
        let section = gitlab::section(&name, &format!("Log of {}", service.image), &said);
        let _ = std::io::stderr().write_all(section.as_bytes());
    }
    Ok(())
}

fn has_ended(service: &State) -> bool {
    let paths = MachinePaths::new(&service.name);
    let has_command = service.service.as_ref().is_some_and(|role| role.has_command);
    !lifecycle::is_running(&paths) || (has_command && !paths.command_cgroup().exists())
}
