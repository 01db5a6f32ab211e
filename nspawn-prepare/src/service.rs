//! One service of a job: its machine, what runs in it, and when it is ready.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use nspawn_common::exit::{self, JobError};
use nspawn_common::gitlab::{self, Job, Service};
use nspawn_common::image;
use nspawn_common::interrupt;
use nspawn_common::keep::When;
use nspawn_common::modes::Init;
use nspawn_common::paths::{MachinePaths, SLICE};
use nspawn_common::state::Role;
use nspawn_common::{journal, registration, tool, unit};

use crate::PROGRAM;
use crate::host::{self, LOOK_LIMIT};
use crate::machine::Machine;
use crate::options::{self, Options};
use crate::prepare;
use crate::wishes;

/// The argument that asks for one: `--service NUMBER OPTIONS…`.
pub const OPTION: &str = "--service";

/// The kernel tells nobody of a socket that begins to listen.
const PAUSE: Duration = Duration::from_millis(20);
/// A machine's table of sockets is read up to this size, in bytes.
const MAX_SOCKETS: u64 = 4 << 20;
/// The state of a socket that listens, and the end of a loopback address of IPv4 (proc_pid_net(5)).
const LISTENS: &str = "0A";
const LOOPBACK_END: &str = "7F";
const LOOPBACK_6: &str = "00000000000000000000000001000000";

/// Makes the service of the job that this is called for.
pub fn main(arguments: &[OsString]) -> Result<()> {
    let [number, argv @ ..] = arguments else { bail!("{OPTION} is for nspawn-prepare alone") };
    let number: u8 = number.to_str().and_then(|number| number.parse().ok()).context("no number")?;
    let job = Job::from_env()?;
    let service = usize::from(number).checked_sub(1).and_then(|place| job.services.get(place));
    let service = service.context("the job has no such service")?;
    let image_of = |options: &Options| Ok(image::find(&wishes::mapped(&options.image_map, &service.image))?.name);
    let Some((options, image)) = options::parse(argv, image_of)? else { return Ok(()) };
    let (image, _lock) = image::find_and_lock(&image)?;
    wishes::check_image(&options.allowed_services, &image)?;
    let command = command_of(&options, service)?;
    let has_command = !command.is_empty();
    let role = Role { of: job.machine_name()?, number, aliases: service.aliases.clone(), has_command };
    let name = role.of.of_service(number)?;
    let mut machine = prepare::machine(name, image, adapted(options, service), prepare::lifetime(&job))?;
    machine.role = Some(role);
    interrupt::catch()?;
    let begun = Instant::now();
    machine.make(&machine.plan()?, None, || {
        if run(&machine, service, &command)? {
            tell(&machine, service, begun);
        }
        Ok(())
    })
}

// It is there for its job alone, and nobody waits for it to end by itself.
fn adapted(options: Options, service: &Service) -> Options {
    let environment = options.environment.into_iter().chain(service.environment.iter().map(OsString::from)).collect();
    Options {
        environment,
        init: if options.init == Init::None { Init::Stub } else { options.init },
        keep: When::Never,
        max_machines: None,
        ..options
    }
}

// As docker has it: who names another entrypoint has the image's command no more.
fn command_of(options: &Options, service: &Service) -> Result<Vec<OsString>> {
    let own = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let (mut entrypoint, mut command) = (own(&service.entrypoint), own(&service.command));
    if command.is_empty() && entrypoint.is_empty() {
        command.clone_from(&options.service_command);
    }
    if entrypoint.is_empty() {
        entrypoint.clone_from(&options.service_entrypoint);
    }
    let whole = [entrypoint, command].concat();
    if whole.is_empty() && options.init != Init::Systemd {
        bail!(JobError(format!(
            "the service {} has nothing to run: add a command: to it in the job, or on this host --service-command in \
             the image's argument file",
            service.image
        )));
    }
    Ok(whole)
}

// Whether it is ready. The job's log says why it is not.
fn run(machine: &Machine, service: &Service, command: &[OsString]) -> Result<bool> {
    let begun = SystemTime::now();
    if !command.is_empty() {
        tool::run_ok(&unit_command(&machine.paths, service, command)?, LOOK_LIMIT)?;
    }
    let port = service.port.or(machine.options.service_port);
    if command.is_empty() && port.is_none() {
        return Ok(true);
    }
    let Some(why) = wait(machine, !command.is_empty(), port)? else { return Ok(true) };
    let said = journal::last_words(&machine.paths, begun).unwrap_or_default();
    exit::say(PROGRAM, OsStr::new(&format!("the service {} {why}; its log is below", service.image)));
    let section = gitlab::section(machine.name.as_str(), &format!("Log of {}", service.image), &said);
    let _ = std::io::stderr().write_all(section.as_bytes());
    Ok(false)
}

// Its output is the unit's, and so in the host's journal.
fn unit_command(paths: &MachinePaths, service: &Service, command: &[OsString]) -> Result<Vec<OsString>> {
    let mut argv: Vec<OsString> = ["systemd-run", "--collect", "--service-type=exec"].map(OsString::from).into();
    argv.push(format!("--unit={}", paths.command_unit()).into());
    argv.push(format!("--slice={SLICE}").into());
    argv.push(format!("--description=What CI machine {} is for", paths.name()).into());
    argv.push(format!("--property=BindsTo={}", paths.unit()).into());
    argv.extend(["--".into(), host::agent_program()?.into()]);
    argv.extend(service.user.iter().map(|user| format!("--uid={user}").into()));
    argv.extend(["--".into(), paths.name().as_str().into()]);
    argv.extend(command.iter().map(|word| unit::unexpanded(word)));
    Ok(argv)
}

// Until it listens where others reach it; what keeps it from that, if something does.
fn wait(machine: &Machine, has_command: bool, port: Option<u16>) -> Result<Option<String>> {
    let limit = machine.options.service_timeout;
    let deadline = Instant::now() + limit;
    let leader = registration::wait_for_leader(&machine.paths, Duration::ZERO)?;
    loop {
        interrupt::check()?;
        if listens(leader, port) {
            return Ok(None);
        }
        if has_command && !machine.paths.command_cgroup().exists() {
            return Ok(Some("has ended".to_owned()));
        }
        if Instant::now() >= deadline {
            let what = port.map_or_else(|| "on any port".to_owned(), |port| format!("on port {port}"));
            return Ok(Some(format!("does not listen {what} after {} s, see --service-timeout", limit.as_secs())));
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
    let [_, local, _, state] = fields[..] else { return false };
    let Some((address, number)) = local.split_once(':') else { return false };
    let is_loopback = address == LOOPBACK_6 || (address.len() == 8 && address.ends_with(LOOPBACK_END));
    let is_it = port.is_none_or(|port| u16::from_str_radix(number, 16) == Ok(port));
    state == LISTENS && !is_loopback && is_it
}

fn tell(machine: &Machine, service: &Service, begun: Instant) {
    let (image, spent) = (machine.image.describe(), begun.elapsed().as_secs_f32());
    let names = if service.aliases.is_empty() { String::new() } else { format!(" as {}", service.aliases.join(", ")) };
    let line = format!("service {} of image {image} is there{names} after {spent:.1} s", service.image);
    exit::say(PROGRAM, OsStr::new(&line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_others_reach_are_told_from_the_rest() {
        let socket =
            |local: &str, state: &str| format!("   0: {local} 00000000:0000 {state} 00000000:00000000 00:0 0 0 1");
        for (local, state, port, expected) in [
            ("00000000:1538", "0A", Some(5432), true),
            ("00000000:1538", "0A", None, true),
            ("00000000:1538", "0A", Some(80), false),
            ("00000000:1538", "01", Some(5432), false),
            ("0100007F:1538", "0A", None, false),
            ("00000000000000000000000000000000:1538", "0A", Some(5432), true),
            ("00000000000000000000000001000000:1538", "0A", Some(5432), false),
        ] {
            assert_eq!(is_open(&socket(local, state), port), expected, "{local} {state} {port:?}");
        }
        assert!(!is_open("", None) && !is_open("1 2 3 0A", None));
    }
}
