//! Logs of services that ended before their job.

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

/// Prints the logs of the ended services of the job with the machine `job`.
pub fn print_ended(job: &MachineName) -> Result<()> {
    for state in list::services_of(job)? {
        let Some(role) = &state.service else {
            continue;
        };
        if has_ended(&state, role) {
            print_log(&state, role);
        }
    }
    Ok(())
}

fn print_log(state: &State, role: &ServiceRole) {
    let image = &role.requested_image;
    let line = format!("the service {image} ended before the job; its log is below");
    report::print_diagnostic(PROGRAM, OsStr::new(&line));
    let log = journal::service_log(&state.paths(), state.begin());
    log_section::print(
        &format!("{}-ended", state.name),
        &format!("Log of {image}"),
        &log,
    );
}

// The machine of a service may run on after the service's command has ended.
fn has_ended(state: &State, role: &ServiceRole) -> bool {
    let paths = state.paths();
    !processes::is_running(&paths) || (!role.command.is_empty() && !paths.command_cgroup().exists())
}
