//! The services of a job that have ended before it.

use std::ffi::OsStr;

use anyhow::Result;
use nspawn_common::gitlab::log_section;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::{ServiceRole, State};
use nspawn_common::report;
use nspawn_common::systemd::journal;

use crate::PROGRAM;

/// Tells the log of the job that has the machine `job`.
pub fn tell_ended(job: &MachineName) -> Result<()> {
    for service in list::services_of(job)? {
        let Some(role) = service
            .service
            .as_ref()
            .filter(|role| has_ended(&service, role))
        else {
            continue;
        };
        let paths = service.paths();
        let line = format!(
            "the service {} has ended before the job; its log is below",
            role.requested_image
        );
        report::print_diagnostic(PROGRAM, OsStr::new(&line));
        // A log that can't be read is left empty.
        let log = journal::last_words(&paths, service.begin()).unwrap_or_default();
        log_section::print(
            &format!("{}-ended", service.name),
            &format!("Log of {}", role.requested_image),
            &log,
        );
    }
    Ok(())
}

fn has_ended(service: &State, role: &ServiceRole) -> bool {
    let paths = service.paths();
    !processes::is_running(&paths) || (!role.command.is_empty() && !paths.command_cgroup().exists())
}
