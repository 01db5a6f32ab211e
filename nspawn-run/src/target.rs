//! The machine for a command: an existing machine, or a new one that exists for this command only.
//!
//! A machine without an init runs only while it has commands. The first command starts it, and the
//! last command stops it.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use anyhow::{Error, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::error;
use nspawn_common::lifecycle::calling_unit;
use nspawn_common::lifecycle::lock::{Lock, RunGuard};
use nspawn_common::lifecycle::remove;
use nspawn_common::lifecycle::start;
use nspawn_common::lifecycle::status::Status;
use nspawn_common::lifecycle::stop;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::signals;
use nspawn_common::{command, report};

use crate::cli::PROGRAM;

/// Time limit for the creation of a machine that has no layer and is not started.
const CREATE_LIMIT: Duration = Duration::from_secs(600);

/// Program that creates machines.
const PREPARE: &str = "nspawn-prepare";
/// Options for a machine that exists for one command. They override those of argument files.
const TEMPORARY_OPTIONS: [&str; 5] = [
    "--init=none",
    "--layer=none",
    "--keep=never",
    "--dry-run=no",
    "--json=no",
];

/// Machine that can run a command.
pub struct Machine {
    pub state: State,
    /// Shared lock that each command in a machine without an init holds.
    guard: Option<RunGuard>,
    /// True if the machine exists for this command only.
    is_temporary: bool,
}

impl Machine {
    /// Calls `body` with the machine `name`. A machine without an init is started for that.
    pub fn with_existing<T>(
        name: &MachineName,
        body: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let state = State::read(name)?;
        let paths = MachinePaths::named(name);
        if Status::of(&paths) == Status::Standby {
            bail!(
                "can't run a command in machine {name}: it is on standby until nspawn-prepare takes it over"
            );
        }
        if state.init != Init::None {
            return body(&Self {
                state,
                guard: None,
                is_temporary: false,
            });
        }
        calling_unit::check_writable()?;
        let guard = RunGuard::acquire(&paths)?;
        let machine = Self {
            state,
            guard: Some(guard),
            is_temporary: false,
        };
        machine.start_for(body)
    }

    /// Calls `body` with a new read-only machine of `image`, and removes the machine afterwards.
    pub fn with_new<T>(image: &str, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let name = MachineName::of_image(image)?;
        signals::catch()?;
        if let Err(error) = create(&name, image) {
            remove_partial(&name)?;
            return Err(error);
        }
        let guard = RunGuard::acquire(&MachinePaths::named(&name))?;
        let machine = Self {
            state: State::read(&name)?,
            guard: Some(guard),
            is_temporary: true,
        };
        machine.start_for(body)
    }

    fn name(&self) -> &MachineName {
        &self.state.name
    }

    fn start_for<T>(self, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        signals::catch()?;
        let result = self.start().and_then(|()| body(&self));
        if let Err(error) = self.stop_if_last() {
            let error = error.context(format!("can't stop machine {}", self.name()));
            report::print_diagnostic(PROGRAM, OsStr::new(&format!("{error:#}")));
        }
        result
    }

    fn start(&self) -> Result<()> {
        let print = |line: &str| report::print_diagnostic(PROGRAM, OsStr::new(line));
        start::start(self.name(), print).map_err(as_host_error)
    }

    // Stops the machine, or removes a temporary one, if no other command runs in it.
    fn stop_if_last(&self) -> Result<()> {
        // A signal must not interrupt the cleanup.
        signals::catch()?;
        signals::ignore();
        let paths = MachinePaths::named(self.name());
        let is_last = || self.guard.as_ref().is_some_and(RunGuard::is_last);
        if !is_last() {
            return Ok(());
        }
        // If the lock is not available, another process removes the machine, has removed it, or
        // creates it again.
        let Some(lock) = Lock::try_acquire_of_existing(&paths)? else {
            return Ok(());
        };
        // Another process may have created the machine again before the lock was acquired.
        if !is_last() {
            return Ok(());
        }
        if self.is_temporary {
            remove::remove_machine(self.name(), lock)
        } else {
            stop::stop_machine(self.name())
        }
    }
}

// A machine that was created but can't be started is never an error of the job's author.
fn as_host_error(error: Error) -> Error {
    if error::is_interrupted(&error) {
        return error;
    }
    Error::msg(format!("{error:#}"))
}

fn create(name: &MachineName, image: &str) -> Result<()> {
    let own_options = [
        format!("--name={name}"),
        format!("--image={image}"),
        format!("--owner={}", std::process::id()),
    ];
    let arguments: Vec<&OsStr> = TEMPORARY_OPTIONS
        .into_iter()
        .chain(own_options.iter().map(String::as_str))
        .map(OsStr::new)
        .collect();
    prepare(&arguments, CREATE_LIMIT)
}

// Removes what a killed nspawn-prepare left behind.
fn remove_partial(name: &MachineName) -> Result<()> {
    signals::ignore();
    remove::remove_machine(name, Lock::acquire(&MachinePaths::named(name))?)
}

// Runs nspawn-prepare. Its stderr is printed, or is the error, under this program's name.
fn prepare(arguments: &[&OsStr], limit: Duration) -> Result<()> {
    let mut command: Vec<OsString> = vec![command::find_sibling(PREPARE)?.into()];
    command.extend(arguments.iter().map(OsString::from));
    let outcome = command::run(&command, limit)?;
    let prefix = format!("{PREPARE}: ");
    let message = outcome
        .stderr
        .strip_prefix(&prefix)
        .unwrap_or(&outcome.stderr);
    if !outcome.status.success() {
        if message.is_empty() {
            bail!("{PREPARE} failed ({})", outcome.status);
        }
        return Err(Error::msg(message.to_owned()));
    }
    if !message.is_empty() {
        report::print_diagnostic(PROGRAM, OsStr::new(message));
    }
    Ok(())
}
