//! Logs of the services of a job.

use std::ffi::OsStr;

use anyhow::Result;
use nspawn_common::gitlab::log_section;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::{ServiceRole, State};
use nspawn_common::report;
use nspawn_common::systemd::journal;

use crate::cli::PROGRAM;

/// Prints the logs of the services that ended before their job, or of `all` services. `job` is the
/// machine of the job.
pub fn print(job: &MachineName, all: bool) -> Result<()> {
    for state in list::services_of(job)? {
        let Some(role) = &state.service else {
            continue;
        };
        if has_ended(&state, role) {
            let image = &role.requested_image;
            let line = format!("the service {image} ended before the job; its log is below");
            report::print_diagnostic(PROGRAM, OsStr::new(&line));
        } else if !all {
            continue;
        }
        print_log(&state, role);
    }
    Ok(())
}

fn print_log(state: &State, role: &ServiceRole) {
    let image = &role.requested_image;
    let log = journal::service_log(&state.paths(), state.begin());
    log_section::print(
        &format!("{}-end", state.name),
        &format!("Log of {image}"),
        &log,
    );
}

// The machine of a service may run on after the service's command has ended.
fn has_ended(state: &State, role: &ServiceRole) -> bool {
    let paths = state.paths();
    !processes::is_running(&paths) || (!role.command.is_empty() && !paths.command_cgroup().exists())
}
