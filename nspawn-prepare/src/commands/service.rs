//! One service of a job: its machine.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::config::retention::Retention;
use nspawn_common::error::Failure;
use nspawn_common::gitlab::{Job, Service};
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::Image;
use nspawn_common::machine::state::ServiceRole;
use nspawn_common::sys::signals;

use crate::commands::prepare;
use crate::gitlab::policy;
use crate::options;
use crate::options::Options;
use crate::services::network;

/// The argument that asks for one: `--service NUMBER OPTIONS…`.
pub const OPTION: &str = "--service";

/// Makes the machine of the service of the job that this is called for.
pub fn main(arguments: &[OsString]) -> Result<()> {
    let [number, argv @ ..] = arguments else {
        bail!("{OPTION} is for nspawn-prepare alone")
    };
    let number: u8 = number
        .to_str()
        .and_then(|number| number.parse().ok())
        .context("no number")?;
    let job = Job::from_env()?;
    let service = usize::from(number)
        .checked_sub(1)
        .and_then(|place| job.services.get(place));
    let service = service.context("the job has no such service")?;
    let image_of = |options: &Options| Ok(policy::image_of_service(options, service)?.name);
    let Some((options, image)) = options::parse(argv, image_of)? else {
        return Ok(());
    };
    let (image, _lock) = lookup::find_and_lock(&image)?;
    policy::check_image(&options.allowed_services, &image)?;
    network::check(&options.network)?;
    let options = adapted(options, service, &image);
    let role = ServiceRole {
        job: job.machine_name()?,
        number,
        requested_image: service.image.clone(),
        aliases: service.aliases.clone(),
        command: command_of(&options, service)?,
        user: service
            .user
            .clone()
            .or_else(|| options.service_user.clone()),
        directory: options.service_directory.clone(),
        port: service.port.or(options.service_port),
        ready_timeout: options.service_timeout,
    };
    let name = role.job.of_service(number)?;
    let mut machine = prepare::machine(name, image, options, prepare::lifetime(&job))?;
    machine.role = Some(role);
    signals::catch()?;
    machine.make(&machine.plan()?, None, || Ok(()))
}

// It is there for its job alone, and runs all the time.
fn adapted(options: Options, service: &Service, image: &Image) -> Options {
    let environment = options
        .environment
        .into_iter()
        .chain(service.environment.iter().map(OsString::from))
        .collect();
    let init = match options.init {
        Init::None
            if lookup::check(&image.name, &image.path, &image.path, Init::Systemd).is_ok() =>
        {
            Init::Systemd
        }
        Init::None => Init::Stub,
        init => init,
    };
    Options {
        environment,
        init,
        keep: Retention::Never,
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
        bail!(Failure::job(format!(
            "the service {} has nothing to run: add a command: to it in the job, or on this host --service-command in \
             the image's argument file",
            service.image
        )));
    }
    Ok(whole)
}
