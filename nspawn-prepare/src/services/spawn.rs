//! Creates the machines of a job's services.
//!
//! They are created at the same time as the job's machine, each in a process of its own.

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

use crate::create::spec::ServiceCommand;
use crate::diagnostics::{PROGRAM, print_diagnostic};

/// Processes that create the machines of services.
pub struct Services {
    /// Each process with the image that the job requests.
    processes: Vec<(String, Running)>,
    deadline: Instant,
}

impl Services {
    /// Starts the processes, which must end within `limit`.
    pub fn begin(commands: &[ServiceCommand], limit: Duration) -> Result<Self> {
        let mut processes = Vec::with_capacity(commands.len());
        for command in commands {
            let process = Running::start(Stdio::null(), &command.argv)?;
            processes.push((command.image.clone(), process));
        }
        Ok(Self {
            processes,
            deadline: Instant::now() + limit,
        })
    }

    /// Waits until all machines are created, and forwards the messages of the processes.
    ///
    /// # Errors
    /// Fails if a machine can't be created. The exit status of the process tells the fault.
    pub fn finish(self) -> Result<()> {
        for (image, process) in self.processes {
            let left = self.deadline.saturating_duration_since(Instant::now());
            finish_one(&image, process, left)?;
        }
        Ok(())
    }
}

fn finish_one(image: &str, process: Running, limit: Duration) -> Result<()> {
    let outcome = process.finish(limit).map_err(|error| {
        if error::is_interrupted(&error) {
            return error;
        }
        Failure::host(format!("can't create the service {image}: {error:#}")).into()
    })?;
    let messages = outcome
        .stderr
        .strip_prefix(&format!("{PROGRAM}: "))
        .unwrap_or(&outcome.stderr);
    if !outcome.status.success() {
        let fault = ExitCodes::from_env().fault(outcome.status.code());
        let text = format!("can't create the service {image}: {messages}");
        return Err(Failure::new(fault, text).into());
    }
    if !messages.is_empty() {
        print_diagnostic(messages);
    }
    Ok(())
}

/// Removes the machines of all services of the job whose machine is `job`.
pub fn remove(job: &MachineName) -> Result<()> {
    for service in list::services_of(job)? {
        let lock = Lock::acquire(&MachinePaths::named(&service.name))?;
        remove::remove_machine(&service.name, lock)?;
    }
    Ok(())
}
