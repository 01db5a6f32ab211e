//! Starts the commands of a job's services, and waits until the services are ready.

use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nspawn_common::command;
use nspawn_common::config::init::Init;
use nspawn_common::gitlab::log_section;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::{SERVICE_OPTION, ServiceRole, State};
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::signals;
use nspawn_common::systemd::journal;
use nspawn_common::systemd::machined;
use nspawn_common::systemd::transient_unit::TransientUnit;

use crate::diagnostics::print_diagnostic;
use crate::internal_form::Internal;
use crate::preflight;
use crate::preflight::QUERY_LIMIT;
use crate::services::{network, sockets};

/// Pause between two looks at the sockets.
///
/// The kernel does not announce that a socket begins to listen.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts the commands of a job's services, and waits until the services are ready.
///
/// `job` is the machine of the job. The job's log gets a line for each service. A service that does
/// not become ready is not an error.
pub fn start(job: &MachineName) -> Result<()> {
    let begin = Begin {
        instant: Instant::now(),
        moment: Moment::now(),
    };
    let states = list::services_of(job)?;
    let mut services: Vec<_> = states
        .iter()
        .filter_map(|state| Some((state, state.service.as_ref()?)))
        .collect();
    services.sort_by_key(|(_, role)| role.number);
    for (state, role) in &services {
        if !role.command.is_empty() {
            start_command(state, role)?;
        }
    }
    for (state, role) in services {
        wait_and_report(state, role, &begin)?;
    }
    Ok(())
}

/// The time at which the commands of all services were started.
struct Begin {
    instant: Instant,
    /// The same time for the journal.
    moment: Moment,
}

/// Starts the command of a service. An error is written to the job's log.
fn start_command(state: &State, role: &ServiceRole) -> Result<()> {
    let started = unit_command(&state.paths())
        .and_then(|command| command::run_checked(&command, QUERY_LIMIT));
    if let Err(error) = started {
        signals::check()?;
        print_diagnostic(format!(
            "can't start the command of the service {}: {error:#}",
            role.requested_image
        ));
    }
    Ok(())
}

/// Returns the command that starts a unit, which runs the service's command.
///
/// The command's output is recorded in a file of limited size. nspawn-run reads the command from the machine's
/// state, since every user of the host can read units and command lines.
fn unit_command(paths: &MachinePaths) -> Result<Vec<OsString>> {
    let unit = TransientUnit::new("exec")
        .named(&paths.command_unit())
        .in_slice_of_machines()
        .described(&format!("Service command of CI machine {}", paths.name()))
        .properties([format!("BindsTo={}", paths.unit())])
        // nspawn-cleanup kills the command, which is no failure.
        .properties(["SuccessExitStatus=SIGKILL".to_owned()]);
    let record = Internal::Record {
        machine: paths.name().clone(),
        command: vec![
            preflight::agent_program()?.into(),
            SERVICE_OPTION.into(),
            paths.name().as_str().into(),
        ],
    };
    Ok(unit.command(record.argv()?))
}

/// Waits until the service is ready, and reports it in the job's log.
///
/// The log also says why a service is not ready.
fn wait_and_report(state: &State, role: &ServiceRole, begin: &Begin) -> Result<()> {
    let image = &role.requested_image;
    let Some(cause) = wait(state, role, begin.instant + role.ready_timeout)? else {
        let names = if role.aliases.is_empty() {
            String::new()
        } else {
            format!(" as {}", role.aliases.join(", "))
        };
        let address = network::address(role.number);
        let seconds = begin.instant.elapsed().as_secs_f32();
        print_diagnostic(format!(
            "service {image} of image {} is ready at {address}{names} after {seconds:.1} s",
            state.image
        ));
        return Ok(());
    };
    print_diagnostic(format!("the service {image} {cause}; its log is below"));
    let log = journal::service_log(&state.paths(), begin.moment);
    log_section::print(state.name.as_str(), &format!("Log of {image}"), &log);
    Ok(())
}

/// Waits until the service listens where others reach it. Returns why it does not, for a message.
fn wait(state: &State, role: &ServiceRole, deadline: Instant) -> Result<Option<String>> {
    let paths = state.paths();
    let machine_ended = || Ok(Some("no longer has a machine".to_owned()));
    let Ok(leader) = machined::wait_for_leader(&paths, Duration::ZERO) else {
        return machine_ended();
    };
    loop {
        signals::check()?;
        if is_ready(role, leader) {
            return Ok(None);
        }
        if !processes::is_member(&paths, leader) {
            return machine_ended();
        }
        if has_ended(state, role, &paths) {
            return Ok(Some("has ended".to_owned()));
        }
        if Instant::now() >= deadline {
            return Ok(Some(timeout_message(role)));
        }
        thread::sleep(PAUSE);
    }
}

/// Returns whether the service listens. Without a command and a port, it has nothing to wait for.
fn is_ready(role: &ServiceRole, leader: u32) -> bool {
    sockets::listens(leader, role.port) || (role.command.is_empty() && role.port.is_none())
}

/// Returns whether the service's command has ended, and nothing else can open its port.
///
/// In a machine with systemd, the command may have started a unit that opens the port.
fn has_ended(state: &State, role: &ServiceRole, paths: &MachinePaths) -> bool {
    let is_final = role.port.is_none() || state.init != Init::Systemd;
    !role.command.is_empty() && is_final && !paths.command_cgroup().exists()
}

fn timeout_message(role: &ServiceRole) -> String {
    let port = match role.port {
        Some(port) => format!("on port {port}"),
        None => "on any port".to_owned(),
    };
    format!(
        "does not listen {port} after {} s; see --service-timeout",
        role.ready_timeout.as_secs()
    )
}
