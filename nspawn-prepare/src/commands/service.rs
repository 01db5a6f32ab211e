//! The internal form that creates the machine of a service of a GitLab job.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::config::retention::Retention;
use nspawn_common::error::Failure;
use nspawn_common::gitlab::{Job, Service};
use nspawn_common::image::lookup::Image;
use nspawn_common::image::requirements;
use nspawn_common::machine::state::ServiceRole;
use nspawn_common::sys::signals;

use crate::create::plan::Plan;
use crate::create::run::Creation;
use crate::create::spec;
use crate::create::spec::MachineSpec;
use crate::gitlab::job_policy;
use crate::options;
use crate::options::{MachineOptions, Options, ServiceDefaults};
use crate::preflight;
use crate::services::network;

/// Creates the machine of a service of the job in this process's environment.
///
/// The first service of a job has the `number` 1.
pub fn run(number: u8, arguments: &[OsString]) -> Result<()> {
    let job = Job::from_env()?;
    let index = usize::from(number).checked_sub(1);
    let service = index.and_then(|index| job.services.get(index));
    let service = service.with_context(|| format!("the job has no service {number}"))?;
    let image_of =
        |options: &Options| Ok(job_policy::image_of_service(&options.policy, service)?.name);
    let Some((options, image)) = options::parse(arguments, image_of)? else {
        return Ok(());
    };
    let (image, _lock) = preflight::find_and_lock_image(&image)?;
    job_policy::check_image(&options.policy.allowed_services, &image)?;
    network::check(&options.machine.network)?;
    let verbose = options.output.verbose;
    let spec = spec(&job, number, service, image, options)?;
    signals::catch()?;
    let creation = Creation {
        spec: &spec,
        plan: &Plan::new(&spec)?,
        verbose,
        // The name is the job's own.
        replaces: true,
    };
    creation.run(None, || Ok(()))
}

fn spec(
    job: &Job,
    number: u8,
    service: &Service,
    image: Image,
    options: Options,
) -> Result<MachineSpec> {
    let machine = machine_options(options.machine, service, &image);
    let defaults = options.service_defaults;
    let role = ServiceRole {
        job: job.machine_name()?,
        number,
        requested_image: service.image.clone(),
        aliases: service.aliases.clone(),
        command: command(&defaults, machine.init, service)?,
        user: service.user.clone().or(defaults.user),
        directory: defaults.directory,
        port: service.port.or(defaults.port),
        ready_timeout: options.policy.service_timeout,
    };
    let name = role.job.of_service(number)?;
    let mut spec = MachineSpec::new(name, image, machine, spec::lifetime(job))?;
    spec.join_slice_of(role.job.clone());
    spec.service = Some(role);
    Ok(spec)
}

// The machine of a service runs all the time, is removed with its job, and shares the job's slot.
fn machine_options(options: MachineOptions, service: &Service, image: &Image) -> MachineOptions {
    let mut environment = options.environment;
    environment.extend(service.environment.iter().map(OsString::from));
    let can_boot = || {
        let check = |tree| requirements::check(&image.name, &image.path, tree, Init::Systemd);
        image.tree().is_some_and(|tree| check(tree).is_ok())
    };
    let init = match options.init {
        Init::None if can_boot() => Init::Systemd,
        Init::None => Init::Stub,
        init => init,
    };
    MachineOptions {
        environment,
        init,
        keep: Retention::Never,
        max_machines: None,
        ..options
    }
}

// As with docker, another entrypoint also replaces the default command of the image.
fn command(defaults: &ServiceDefaults, init: Init, service: &Service) -> Result<Vec<OsString>> {
    let words = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let (mut entrypoint, mut command) = (words(&service.entrypoint), words(&service.command));
    if command.is_empty() && entrypoint.is_empty() {
        command.clone_from(&defaults.command);
    }
    if entrypoint.is_empty() {
        entrypoint.clone_from(&defaults.entrypoint);
    }
    entrypoint.append(&mut command);
    if entrypoint.is_empty() && init != Init::Systemd {
        bail!(Failure::job(format!(
            "can't run the service {}: it has no command; add command: to it in the job, or \
             on this host --service-command to the image's argument file",
            service.image
        )));
    }
    Ok(entrypoint)
}
