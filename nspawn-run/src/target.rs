//! The machine of a command: one that is there, started if it runs for its commands only; or one for this command
//! alone.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use anyhow::{Error, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::error;
use nspawn_common::lifecycle::caller;
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

use crate::PROGRAM;

/// How long making a machine may take that has no layer and is not started.
const MAKE_LIMIT: Duration = Duration::from_secs(600);

/// The program that makes machines.
const PREPARE: &str = "nspawn-prepare";
/// What a machine for one command is, whatever argument files say.
const EPHEMERAL: [&str; 5] = [
    "--init=none",
    "--layer=none",
    "--keep=never",
    "--dry-run=no",
    "--json=no",
];

/// A machine that a command can be run in.
pub struct Machine {
    pub state: State,
    /// This program's part in the use of one without an init.
    part: Option<RunGuard>,
    is_own: bool,
}

impl Machine {
    /// Calls `body` with the machine `name`, which is started for that if it has no init.
    pub fn with<T>(name: &MachineName, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let state = State::read(name)?;
        if Status::of(&MachinePaths::named(name)) == Status::Standby {
            bail!("machine {name} stands by, for an nspawn-prepare to take it");
        }
        if state.init != Init::None {
            return body(&Self {
                state,
                part: None,
                is_own: false,
            });
        }
        caller::check_writable()?;
        let part = RunGuard::acquire(&MachinePaths::named(name))?;
        Self {
            state,
            part: Some(part),
            is_own: false,
        }
        .start_for(body)
    }

    /// Calls `body` with a machine of `image` that keeps nothing, and is removed after that.
    pub fn with_own<T>(image: &str, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let name = MachineName::of_image(image)?;
        let own = [
            format!("--name={name}"),
            format!("--image={image}"),
            format!("--owner={}", std::process::id()),
        ];
        let arguments: Vec<&OsStr> = EPHEMERAL
            .into_iter()
            .chain(own.iter().map(|it| &**it))
            .map(OsStr::new)
            .collect();
        signals::catch()?;
        prepare(&arguments, MAKE_LIMIT).or_else(|error| unmake(&name).and(Err(error)))?;
        let part = RunGuard::acquire(&MachinePaths::named(&name))?;
        Self {
            state: State::read(&name)?,
            part: Some(part),
            is_own: true,
        }
        .start_for(body)
    }

    /// The machine's name.
    pub fn name(&self) -> &MachineName {
        &self.state.name
    }

    fn start_for<T>(self, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        signals::catch()?;
        let done = self.start().and_then(|()| body(&self));
        if let Err(error) = self.leave() {
            let error = error.context(format!("machine {} can't be ended", self.name()));
            report::print_diagnostic(PROGRAM, OsStr::new(&format!("{error:#}")));
        }
        done
    }

    fn start(&self) -> Result<()> {
        let print = |line: &str| report::print_diagnostic(PROGRAM, OsStr::new(line));
        start::start(self.name(), print).map_err(as_host_error)
    }

    // Whoever is the last to leave ends it.
    fn leave(&self) -> Result<()> {
        // A signal must not keep from that.
        signals::catch()?;
        signals::ignore();
        let paths = MachinePaths::named(self.name());
        let is_last = || self.part.as_ref().is_some_and(RunGuard::is_last);
        if !is_last() {
            return Ok(());
        }
        match Lock::try_acquire_of_existing(&paths)? {
            // It may have been made anew by then.
            Some(lock) if is_last() && self.is_own => remove::remove_machine(self.name(), lock),
            Some(_lock) if is_last() => stop::stop_machine(self.name()),
            // Somebody else is removing it, or has removed it, or makes it anew.
            _ => Ok(()),
        }
    }
}

// A machine that was created and can't be started is never the error of the job's author.
fn as_host_error(error: Error) -> Error {
    if error::is_interrupted(&error) {
        return error;
    }
    Error::msg(format!("{error:#}"))
}

// One whose nspawn-prepare was killed in its midst.
fn unmake(name: &MachineName) -> Result<()> {
    signals::ignore();
    remove::remove_machine(name, Lock::acquire(&MachinePaths::named(name))?)
}

// What it says on stderr is for whoever called this program, a failure in its words.
fn prepare(arguments: &[&OsStr], limit: Duration) -> Result<()> {
    let mut command: Vec<OsString> = vec![command::find_sibling(PREPARE)?.into()];
    command.extend(arguments.iter().map(OsString::from));
    let outcome = command::run(&command, limit)?;
    let said = outcome
        .stderr
        .strip_prefix(&format!("{PREPARE}: "))
        .unwrap_or(&outcome.stderr);
    if !outcome.status.success() {
        return Err(Error::msg(if said.is_empty() {
            format!("{PREPARE} failed ({})", outcome.status)
        } else {
            said.to_owned()
        }));
    }
    if !said.is_empty() {
        report::print_diagnostic(PROGRAM, OsStr::new(said));
    }
    Ok(())
}
