//! The verb: from an image to a machine that takes commands.

use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nspawn_common::config::network::Network;
use nspawn_common::error::Failure;
use nspawn_common::gitlab;
use nspawn_common::gitlab::Job;
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::{Image, ImageLock};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::signals;

use crate::PROGRAM;
use crate::create::spec::{ForJob, Machine};
use crate::create::step::Step;
use crate::gitlab::config_stage;
use crate::gitlab::policy;
use crate::gitlab::runner_binary;
use crate::gitlab::server_lookup::ServerLookup;
use crate::options;
use crate::options::Options;
use crate::preflight;
use crate::standby::fingerprint;
use crate::standby::pool;
use crate::standby::pool::Pool;

/// How much longer than its job a machine may live: for what comes after the job's own time, and no
/// longer than until somebody wonders.
const LIFETIME_MARGIN: Duration = Duration::from_secs(30 * 60);

/// Reads the options and makes the machine.
pub fn main(argv: &[OsString]) -> Result<()> {
    let job = if gitlab::is_active() {
        Some(Job::from_env()?)
    } else {
        None
    };
    let image_of = |options: &Options| {
        preflight::check_root()?;
        Ok(lookup::find(&image_reference(options, job.as_ref())?)?.name)
    };
    let Some((mut options, image)) = options::parse(argv, image_of)? else {
        return Ok(());
    };
    if options.config {
        return config_stage::print_config(job.as_ref());
    }
    if options.standby.is_some() && job.is_none() {
        return stand_by(argv, &options);
    }
    let (image, _lock) = lookup::find_and_lock(&image)?;
    if job.as_ref().is_some_and(|job| job.image.is_some()) && options.image.is_none() {
        policy::check_image(&options.allowed_images, &image)?;
    }
    if job.is_some() {
        config_stage::check_modes(&options)?;
        policy::grant(&mut options, gitlab::variable)?;
    }
    let runner = runner_binary::show(&mut options, job.is_some())?;
    let name = machine_name(&options, job.as_ref(), &image)?;
    let mut machine = machine(name, image, options, job.as_ref().and_then(lifetime))?;
    if let Some(job) = &job {
        machine.job = policy::of_job(job, &machine.options, argv)?;
    }
    let steps = machine.plan()?;
    if machine.options.dry_run {
        return print_steps(&steps);
    }
    signals::catch()?;
    let started = Instant::now();
    let server = server_lookup(&machine, job.is_some());
    machine.make(&steps, None, || match job {
        Some(job) => {
            config_stage::report_ready_machine(&machine, &job, runner.as_deref(), started)?;
            warn_of_server(&machine, server);
            Ok(())
        }
        None => print_machine(&machine),
    })
}

/// A machine to be made.
pub fn machine(
    name: MachineName,
    image: Image,
    options: Options,
    lifetime: Option<Duration>,
) -> Result<Machine> {
    let layer_size = options.layer_size.bytes(options.layer)?;
    let (paths, job) = (MachinePaths::new(&name), ForJob::default());
    Ok(Machine {
        paths,
        name,
        image,
        options,
        layer_size,
        lifetime,
        pool: None,
        job,
        role: None,
    })
}

/// How long the machines of a job may live.
pub fn lifetime(job: &Job) -> Option<Duration> {
    job.timeout.map(|timeout| timeout + LIFETIME_MARGIN)
}

fn stand_by(argv: &[OsString], options: &Options) -> Result<()> {
    let (Some(count), [_, ..]) = (options.standby, &*options.images) else {
        bail!("--standby needs the names of images")
    };
    if options.name.is_some() || options.dry_run {
        bail!(
            "--standby goes neither with --name nor with --dry-run: those who take the machines name them"
        );
    }
    signals::catch()?;
    let names = options
        .images
        .iter()
        .map(|image| Ok(lookup::find(image)?.name))
        .collect::<Result<Vec<_>>>()?;
    let mut given = Vec::new();
    for name in &names {
        let (machine, _lock) = next(argv, name, "nominal")?;
        fingerprint::check(&machine)?;
        given.extend(machine.options.environment);
    }
    let pool = Pool::record(argv, &names, count, &given)?;
    names
        .iter()
        .try_for_each(|name| pool.fill(name, |unique| next(argv, name, unique)))
}

/// Fills a pool again, where it is not forgotten.
pub fn refill(arguments: &[OsString]) -> Result<()> {
    let [id] = arguments else {
        bail!("{} is for nspawn-prepare alone", pool::OPTION)
    };
    let Some(pool) = Pool::find(id)? else {
        return Ok(());
    };
    pool.enter()?;
    signals::catch()?;
    // Several images are for --standby alone.
    let argv = [vec!["--standby=0".into()], pool.arguments()].concat();
    pool.images()
        .iter()
        .try_for_each(|image| pool.fill(image, |unique| next(&argv, image, unique)))
}

// Another machine of a pool. Its image may have an argument file of its own.
fn next(argv: &[OsString], image: &str, unique: &str) -> Result<(Machine, ImageLock)> {
    let (found, lock) = lookup::find_and_lock(image)?;
    let (mut options, _) = options::parse(argv, |_| Ok(image.to_owned()))?.context("no options")?;
    runner_binary::show(&mut options, false)?;
    Ok((
        machine(MachineName::for_standby(unique)?, found, options, None)?,
        lock,
    ))
}

// GitLab may run on this host too, to which machines can't connect by themselves.
fn server_lookup(machine: &Machine, is_job: bool) -> Option<ServerLookup> {
    let name = gitlab::variable("CI_SERVER_HOST")
        .filter(|_| is_job && machine.options.network == Network::Nat)?;
    ServerLookup::start(name).ok()
}

// A look-up that fails is no reason for a warning.
fn warn_of_server(machine: &Machine, server: Option<ServerLookup>) {
    let allowed = &machine.options.allowed_destinations;
    if let Some(Ok(Some(warning))) = server.map(|server| server.warning(allowed)) {
        report::print_diagnostic(PROGRAM, OsStr::new(&warning));
    }
}

// What the administrator fixed, what the job asks for, what the administrator falls back to.
fn image_reference(options: &Options, job: Option<&Job>) -> Result<String> {
    let of_job = || Some(policy::mapped(&options.image_map, job?.image.as_deref()?));
    let asked = options.image.clone().or_else(of_job);
    asked.or_else(|| options.default_image.clone()).ok_or_else(|| match job {
        Some(_) => {
            Failure::job("the job names no image, and this runner has no default; add image: NAME to the job".to_owned())
                .into()
        }
        None => anyhow!("no image is named; see --help"),
    })
}

fn machine_name(options: &Options, job: Option<&Job>, image: &Image) -> Result<MachineName> {
    match (&options.name, job) {
        (Some(_), Some(_)) => {
            bail!("--name is not for GitLab jobs: the other stages know a job's machine by the job")
        }
        (Some(name), None) => match MachineName::new(name)? {
            name if name.is_for_standby() => {
                bail!("{name} is a name for machines that stand by; choose another --name")
            }
            name => Ok(name),
        },
        (None, Some(job)) => job.machine_name(),
        (None, None) => MachineName::of_image(&image.name),
    }
}

fn print_machine(machine: &Machine) -> Result<()> {
    let line = if machine.options.json {
        State::read(&machine.name)?.to_json().to_string()
    } else {
        machine.name.to_string()
    };
    report::print_line(OsStr::new(&line))
}

fn print_steps(steps: &[Step]) -> Result<()> {
    steps
        .iter()
        .try_for_each(|step| report::print_line(&step.shell()))
}
