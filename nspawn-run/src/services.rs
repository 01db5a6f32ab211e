//! The services of a job that have ended before it.

use std::ffi::OsStr;

use anyhow::Result;
use nspawn_common::name::MachineName;
use nspawn_common::paths::MachinePaths;
use nspawn_common::state::{Role, State};
use nspawn_common::{exit, gitlab, lifecycle};

use crate::PROGRAM;

/// Tells the log of the job that has the machine `job`.
pub fn tell_ended(job: &MachineName) -> Result<()> {
    for service in lifecycle::services(job)? {
        let Some(role) = service
            .service
            .as_ref()
            .filter(|role| has_ended(&service, role))
        else {
            continue;
        };
        let paths = MachinePaths::new(&service.name);
        let line = format!(
            "the service {} has ended before the job; its log is below",
            role.asked
        );
        exit::say(PROGRAM, OsStr::new(&line));
        gitlab::show_log(
            &format!("{}-ended", service.name),
            &role.asked,
            &paths,
            service.begin(),
        );
    }
    Ok(())
}

fn has_ended(service: &State, role: &Role) -> bool {
    let paths = MachinePaths::new(&service.name);
    !lifecycle::is_running(&paths) || (!role.command.is_empty() && !paths.command_cgroup().exists())
}
