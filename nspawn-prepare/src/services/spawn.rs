//! The services of a job, each a machine of its own: made at the same time as the job's machine, each by a process of
//! its own.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Result;
use nspawn_common::command::Running;
use nspawn_common::error;
use nspawn_common::error::Failure;
use nspawn_common::gitlab::ExitCodes;
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::remove;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::report;

use crate::PROGRAM;
use crate::create::spec::ServiceCommand;

/// Those that are being made.
pub struct Services {
    makers: Vec<(String, Running)>,
    deadline: Instant,
}

impl Services {
    /// Has them made, within `limit`.
    pub fn begin(commands: &[ServiceCommand], limit: Duration) -> Result<Self> {
        let make = |command: &ServiceCommand| {
            Ok((
                command.image.clone(),
                Running::start(Stdio::null(), &command.argv)?,
            ))
        };
        Ok(Self {
            makers: commands.iter().map(make).collect::<Result<_>>()?,
            deadline: Instant::now() + limit,
        })
    }

    /// Waits until all are there, and passes on what their makers say.
    ///
    /// # Errors
    /// One can't be made; whose fault that is, its maker knows.
    pub fn finish(self) -> Result<()> {
        for (image, maker) in self.makers {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let done = maker
                .finish(left)
                .map_err(|error| match error::is_interrupted(&error) {
                    true => error,
                    false => Failure::host(format!("the service {image} can't be made: {error:#}"))
                        .into(),
                })?;
            let said = done
                .stderr
                .strip_prefix(&format!("{PROGRAM}: "))
                .unwrap_or(&done.stderr);
            if done.status.success() {
                if !said.is_empty() {
                    report::print_diagnostic(PROGRAM, OsStr::new(said));
                }
                continue;
            }
            let text = format!("the service {image} can't be had: {said}");
            let fault = ExitCodes::from_env().fault(done.status.code());
            return Err(Failure::new(fault, text).into());
        }
        Ok(())
    }
}

/// Removes the services of the job that has the machine `job`, whoever has made them.
pub fn remove(job: &MachineName) -> Result<()> {
    for service in list::services_of(job)? {
        remove::remove_machine(
            &service.name,
            Lock::acquire(&MachinePaths::new(&service.name))?,
        )?;
    }
    Ok(())
}
