//! What a job's services run, and when they are ready.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nspawn_common::config::init::Init;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::{MachinePaths, SLICE};
use nspawn_common::machine::processes;
use nspawn_common::machine::state::{ServiceRole, State};
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::signals;
use nspawn_common::systemd::nspawn::assign;
use nspawn_common::systemd::{machined, transient_unit};
use nspawn_common::{command, gitlab, report};

use crate::PROGRAM;
use crate::preflight;
use crate::preflight::LOOK_LIMIT;
use crate::services::network;

/// The kernel tells nobody of a socket that begins to listen.
const PAUSE: Duration = Duration::from_millis(20);
/// A machine's table of sockets is read up to this size, in bytes.
const MAX_SOCKETS: u64 = 4 << 20;
/// The state of a socket that listens (proc_pid_net(5)).
const LISTENS: &str = "0A";
/// The end of a loopback address of IPv4, the beginning of one as IPv6 has it, and IPv6's own.
const LOOPBACK_END: &str = "7F";
const MAPPED: &str = "0000000000000000FFFF0000";
const LOOPBACK_6: &str = "00000000000000000000000001000000";

/// Starts what the services of the job that has the machine `job` run, and waits until they are ready; the job's log
/// says which are not, and why.
pub fn start(job: &MachineName) -> Result<()> {
    let begun = (Instant::now(), Moment::now());
    let states = list::services_of(job)?;
    let mut services: Vec<_> = states
        .iter()
        .filter_map(|state| Some((state, state.service.as_ref()?)))
        .collect();
    services.sort_by_key(|(_, role)| role.number);
    for (state, role) in services.iter().filter(|(_, role)| !role.command.is_empty()) {
        let started = unit_command(&MachinePaths::new(&state.name), role);
        if let Err(error) = started.and_then(|command| command::run_checked(&command, LOOK_LIMIT)) {
            signals::check()?;
            report::print_diagnostic(
                PROGRAM,
                OsStr::new(&format!(
                    "the service {} can't be started: {error:#}",
                    role.requested_image
                )),
            );
        }
    }
    services
        .iter()
        .try_for_each(|(state, role)| attend(state, role, begun))
}

// Its output is the unit's, and so in the host's journal.
fn unit_command(paths: &MachinePaths, role: &ServiceRole) -> Result<Vec<OsString>> {
    let mut argv: Vec<OsString> = ["systemd-run", "--collect", "--service-type=exec"]
        .map(OsString::from)
        .into();
    argv.push(format!("--unit={}", paths.command_unit()).into());
    argv.push(format!("--slice={SLICE}").into());
    argv.push(format!("--description=What CI machine {} is for", paths.name()).into());
    argv.push(format!("--property=BindsTo={}", paths.unit()).into());
    argv.push("--".into());
    let mut command: Vec<OsString> = vec![preflight::agent_program()?.into()];
    command.extend(role.user.iter().map(|user| format!("--uid={user}").into()));
    command.extend(
        role.directory
            .iter()
            .map(|directory| assign("--working-directory", directory)),
    );
    command.extend(["--".into(), paths.name().as_str().into()]);
    command.extend(role.command.iter().cloned());
    argv.extend(command.iter().map(|word| transient_unit::unexpanded(word)));
    Ok(argv)
}

fn attend(state: &State, role: &ServiceRole, (begun, time): (Instant, Moment)) -> Result<()> {
    let paths = MachinePaths::new(&state.name);
    let Some(why) = wait(state, role, begun + role.ready_timeout)? else {
        let names = if role.aliases.is_empty() {
            String::new()
        } else {
            format!(" as {}", role.aliases.join(", "))
        };
        let (address, spent) = (network::address(role.number), begun.elapsed().as_secs_f32());
        let line = format!(
            "service {} of image {} is at {address}{names} after {spent:.1} s",
            role.requested_image, state.image
        );
        report::print_diagnostic(PROGRAM, OsStr::new(&line));
        return Ok(());
    };
    report::print_diagnostic(
        PROGRAM,
        OsStr::new(&format!(
            "the service {} {why}; its log is below",
            role.requested_image
        )),
    );
    gitlab::show_log(state.name.as_str(), &role.requested_image, &paths, time);
    Ok(())
}

// Until it listens where others reach it; what keeps it from that, if something does.
fn wait(state: &State, role: &ServiceRole, deadline: Instant) -> Result<Option<String>> {
    let paths = MachinePaths::new(&state.name);
    let is_gone = || Ok(Some("has lost its machine".to_owned()));
    let Ok(leader) = machined::wait_for_leader(&paths, Duration::ZERO) else {
        return is_gone();
    };
    loop {
        signals::check()?;
        if listens(leader, role.port) || (role.command.is_empty() && role.port.is_none()) {
            return Ok(None);
        }
        if !processes::is_member(&paths, leader) {
            return is_gone();
        }
        // One that has an init may have been told to start something else.
        let is_final = role.port.is_none() || state.init != Init::Systemd;
        if !role.command.is_empty() && is_final && !paths.command_cgroup().exists() {
            return Ok(Some("has ended".to_owned()));
        }
        if Instant::now() >= deadline {
            let what = role.port.map_or_else(
                || "on any port".to_owned(),
                |port| format!("on port {port}"),
            );
            let limit = role.ready_timeout.as_secs();
            return Ok(Some(format!(
                "does not listen {what} after {limit} s, see --service-timeout"
            )));
        }
        thread::sleep(PAUSE);
    }
}

fn listens(leader: u32, port: Option<u16>) -> bool {
    ["tcp", "tcp6"].iter().any(|kind| {
        let mut table = String::new();
        let file = File::open(format!("/proc/{leader}/net/{kind}"));
        let read = file.and_then(|file| file.take(MAX_SOCKETS).read_to_string(&mut table));
        read.is_ok() && table.lines().skip(1).any(|socket| is_open(socket, port))
    })
}

// Whether the line of a table is of a socket that listens on this port, or on any.
fn is_open(socket: &str, port: Option<u16>) -> bool {
    let fields: Vec<_> = socket.split_whitespace().take(4).collect();
    let [_, local, _, state] = fields[..] else {
        return false;
    };
    let Some((address, number)) = local.split_once(':') else {
        return false;
    };
    let is_loopback_4 = |address: &str| address.len() == 8 && address.ends_with(LOOPBACK_END);
    let is_loopback =
        address == LOOPBACK_6 || is_loopback_4(address.strip_prefix(MAPPED).unwrap_or(address));
    let is_it = port.is_none_or(|port| u16::from_str_radix(number, 16) == Ok(port));
    state == LISTENS && !is_loopback && is_it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_others_reach_are_told_from_the_rest() {
        let socket = |local: &str, state: &str| {
            format!("   0: {local} 00000000:0000 {state} 00000000:00000000 00:0 0 0 1")
        };
        for (local, state, port, expected) in [
            ("00000000:1538", "0A", Some(5432), true),
            ("00000000:1538", "0A", None, true),
            ("00000000:1538", "0A", Some(80), false),
            ("00000000:1538", "01", Some(5432), false),
            ("0100007F:1538", "0A", None, false),
            (
                "00000000000000000000000000000000:1538",
                "0A",
                Some(5432),
                true,
            ),
            (
                "00000000000000000000000001000000:1538",
                "0A",
                Some(5432),
                false,
            ),
            (
                "0000000000000000FFFF00000100007F:1538",
                "0A",
                Some(5432),
                false,
            ),
            (
                "0000000000000000FFFF0000011200C6:1538",
                "0A",
                Some(5432),
                true,
            ),
        ] {
            assert_eq!(
                is_open(&socket(local, state), port),
                expected,
                "{local} {state} {port:?}"
            );
        }
        assert!(!is_open("", None) && !is_open("1 2 3 0A", None));
    }
}
