//! `nspawn-prepare IMAGE`: creates a machine from an image.

use std::ffi::{OsStr, OsString};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use nspawn_common::config::network::Network;
use nspawn_common::error::Failure;
use nspawn_common::gitlab;
use nspawn_common::gitlab::Job;
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::Image;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::signals;

use crate::commands::standby;
use crate::create::plan::Plan;
use crate::create::run::Creation;
use crate::create::spec;
use crate::create::spec::MachineSpec;
use crate::diagnostics::print_diagnostic;
use crate::gitlab::server_lookup::ServerLookup;
use crate::gitlab::{config_stage, job_policy, runner_binary};
use crate::options;
use crate::options::Options;
use crate::preflight;

/// Runs the command with these arguments.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let job = if gitlab::is_active() {
        Some(Job::from_env()?)
    } else {
        None
    };
    let image_of = |options: &Options| {
        preflight::check_root()?;
        Ok(lookup::find(&image_reference(options, job.as_ref())?)?.name)
    };
    let Some((options, image)) = options::parse(arguments, image_of)? else {
        return Ok(());
    };
    if options.config {
        return config_stage::print_config();
    }
    match job {
        Some(job) => prepare_job(arguments, options, &image, &job),
        None if options.standby.is_some() => standby::run(arguments, &options),
        None => prepare(options, &image),
    }
}

fn prepare(mut options: Options, image: &str) -> Result<()> {
    let (image, _lock) = preflight::find_and_lock_image(image)?;
    runner_binary::show(&mut options, None)?;
    let name = machine_name(&options, &image)?;
    let spec = MachineSpec::new(name, image, options.machine, None)?;
    let plan = Plan::new(&spec)?;
    if options.output.dry_run {
        return print_plan(&plan);
    }
    signals::catch()?;
    let creation = Creation {
        spec: &spec,
        plan: &plan,
        verbose: options.output.verbose,
        replaces: options.replace,
    };
    creation.run(None, || print_machine(&spec.name, options.output.json))
}

fn prepare_job(arguments: &[OsString], mut options: Options, image: &str, job: &Job) -> Result<()> {
    let (image, _lock) = preflight::find_and_lock_image(image)?;
    if job.image.is_some() && options.image.is_none() {
        job_policy::check_image(&options.policy.allowed_images, &image)?;
    }
    config_stage::check_modes(&options.machine)?;
    // The job's own limits are for the job's machine only.
    let requirements = job_policy::requirements(job, &options, arguments)?;
    job_policy::apply_job_limits(&mut options.machine, gitlab::variable)?;
    let lines = runner_binary::show(&mut options, Some(job))?;
    let name = job_machine_name(&options, job)?;
    let mut spec = MachineSpec::new(name, image, options.machine, spec::lifetime(job))?;
    spec.job = requirements;
    if !spec.job.services.is_empty() {
        spec.join_slice_of(spec.name.clone());
    }
    let plan = Plan::new(&spec)?;
    if options.output.dry_run {
        return print_plan(&plan);
    }
    signals::catch()?;
    let begin = Instant::now();
    let server = start_server_lookup(&spec);
    let creation = Creation {
        spec: &spec,
        plan: &plan,
        verbose: options.output.verbose,
        // The name is the job's own. GitLab Runner repeats a prepare stage that failed.
        replaces: true,
    };
    creation.run(None, || {
        config_stage::report_ready_machine(&spec, job, begin, lines);
        warn_of_server(&spec, server);
        Ok(())
    })
}

// The administrator's fixed image comes first, then the job's, then the administrator's default.
fn image_reference(options: &Options, job: Option<&Job>) -> Result<String> {
    if let Some(image) = &options.image {
        return Ok(image.clone());
    }
    if let Some(image) = job.and_then(|job| job.image.as_deref()) {
        return Ok(job_policy::map_image(&options.policy.image_map, image));
    }
    if let Some(image) = &options.default_image {
        return Ok(image.clone());
    }
    Err(match job {
        Some(_) => Failure::job(
            "the job names no image, and this runner has no default; add image: NAME to the job"
                .to_owned(),
        )
        .into(),
        None => anyhow!("no image is named; see --help"),
    })
}

fn machine_name(options: &Options, image: &Image) -> Result<MachineName> {
    let Some(name) = &options.name else {
        return MachineName::of_image(&image.name);
    };
    let name = MachineName::new(name)?;
    if name.is_for_standby() {
        bail!("can't use {name}: the name is reserved for standby machines; choose another --name");
    }
    Ok(name)
}

fn job_machine_name(options: &Options, job: &Job) -> Result<MachineName> {
    if options.name.is_some() {
        bail!(
            "can't use --name in a GitLab job: the other stages derive the machine's name from the job"
        );
    }
    job.machine_name()
}

// GitLab may run on this host too, and machines can't connect to the host by default.
fn start_server_lookup(spec: &MachineSpec) -> Option<ServerLookup> {
    if spec.options.network != Network::Nat {
        return None;
    }
    ServerLookup::start(gitlab::variable("CI_SERVER_HOST")?).ok()
}

// A failed lookup is not worth a warning.
fn warn_of_server(spec: &MachineSpec, server: Option<ServerLookup>) {
    let allowed = &spec.options.allowed_destinations;
    if let Some(Ok(Some(warning))) = server.map(|server| server.warning(allowed)) {
        print_diagnostic(warning);
    }
}

fn print_machine(name: &MachineName, as_json: bool) -> Result<()> {
    let line = if as_json {
        State::read(name)?.to_json().to_string()
    } else {
        name.to_string()
    };
    report::print_line(OsStr::new(&line))
}

fn print_plan(plan: &Plan) -> Result<()> {
    for step in plan.steps() {
        report::print_line(&step.shell_command())?;
    }
    Ok(())
}
