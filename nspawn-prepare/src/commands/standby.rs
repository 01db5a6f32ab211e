//! `nspawn-prepare --standby=N`, and the internal form that refills a pool.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result, bail};
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::ImageLock;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::machine::name;
use nspawn_common::machine::name::MachineName;
use nspawn_common::sys::signals;

use crate::create::plan::Plan;
use crate::create::run::Creation;
use crate::create::spec::MachineSpec;
use crate::create::step::Step;
use crate::diagnostics::print_diagnostic;
use crate::gitlab::runner_binary;
use crate::options;
use crate::options::Options;
use crate::preflight;
use crate::standby::machines::Members;
use crate::standby::pool::Pool;
use crate::standby::{fingerprint, machines, pool};

/// Records a pool for the images of these arguments, and fills it.
pub fn run(arguments: &[OsString], options: &Options) -> Result<()> {
    let (Some(count), [_, ..]) = (options.standby, &*options.images) else {
        bail!("--standby needs the names of images")
    };
    if options.name.is_some() || options.output.dry_run {
        bail!(
            "--standby can't be combined with --name or --dry-run: the caller that takes over a machine names it"
        );
    }
    signals::catch()?;
    let mut images = Vec::new();
    for image in &options.images {
        images.push(lookup::find(image)?.name);
    }
    let mut machine_environment = Vec::new();
    for image in &images {
        let candidate = Candidate::new(arguments, image, "nominal")?;
        fingerprint::check(&candidate.spec)?;
        machine_environment.extend(candidate.spec.options.environment);
    }
    let pool = Pool::record(arguments, &images, count, &machine_environment)?;
    fill_all(&pool, arguments, &images)
}

/// Refills a pool, unless it was deleted.
pub fn refill(id: &OsStr) -> Result<()> {
    let Some(pool) = Pool::find(id)? else {
        return Ok(());
    };
    pool.restore_context()?;
    signals::catch()?;
    // Only with --standby may the arguments name several images.
    let mut arguments = vec![OsString::from("--standby=0")];
    arguments.extend(pool.arguments());
    fill_all(&pool, &arguments, &pool.images())
}

fn fill_all(pool: &Pool, arguments: &[OsString], images: &[String]) -> Result<()> {
    images
        .iter()
        .try_for_each(|image| fill(pool, arguments, image))
}

// Creates machines of `image` until the pool has as many as it is to have. Removes obsolete and
// surplus machines.
fn fill(pool: &Pool, arguments: &[OsString], image: &str) -> Result<()> {
    let mut attempts = None;
    loop {
        let queue = pool::lock_all()?;
        let count = pool.current_count()?;
        if count == 0 {
            // The pool was deleted, perhaps while this process created a machine. Its image may be
            // gone as well.
            remove_others(&pool.mark(image), &[], count)?;
            return Ok(());
        }
        let candidate = Candidate::new(arguments, image, &name::random_uuid()?[..8])?;
        let fingerprint = fingerprint::compute(&candidate.spec)?;
        let usable = remove_others(&pool.mark(image), &fingerprint, count)?;
        if usable >= count {
            return Ok(());
        }
        let remaining = attempts.get_or_insert(count);
        *remaining = remaining.checked_sub(1).with_context(|| {
            format!(
                "can't fill the standby pool of {image}: its machines end, or become \
                 obsolete, as fast as they are created"
            )
        })?;
        candidate.create(pool.mark(image), fingerprint, queue)?;
    }
}

// Returns the number of usable machines, of which at most `count` are left.
fn remove_others(mark: &str, fingerprint: &[u8], count: usize) -> Result<usize> {
    let mut members = Members::find(mark, fingerprint)?;
    let kept = count.min(members.usable.len());
    members.obsolete.extend(members.usable.drain(kept..));
    for paths in &members.obsolete {
        if let Err(error) = machines::remove(paths) {
            print_diagnostic(format!("{error:#}"));
        }
    }
    Ok(kept)
}

/// A machine that can be added to a pool.
struct Candidate {
    spec: MachineSpec,
    verbose: bool,
    /// Keeps the image from being removed.
    _image_lock: ImageLock,
}

impl Candidate {
    // The image may have an argument file of its own, so the options are parsed for each image.
    fn new(arguments: &[OsString], image: &str, suffix: &str) -> Result<Self> {
        let (found, lock) = preflight::find_and_lock_image(image)?;
        let parsed = options::parse(arguments, |_| Ok(image.to_owned()))?;
        let (mut options, _) = parsed.context("can't use --help or --version with --standby")?;
        runner_binary::show(&mut options, None)?;
        let name = MachineName::for_standby(suffix)?;
        Ok(Self {
            spec: MachineSpec::new(name, found, options.machine, None)?,
            verbose: options.output.verbose,
            _image_lock: lock,
        })
    }

    fn create(mut self, mark: String, fingerprint: Vec<u8>, queue: Lock) -> Result<()> {
        self.spec.pool = Some(mark);
        let mut plan = Plan::new(&self.spec)?;
        // The fingerprint is the last step, because it makes the machine usable.
        let path = self.spec.paths.fingerprint_file();
        plan.publish.push(Step::file(path, fingerprint));
        let creation = Creation {
            spec: &self.spec,
            plan: &plan,
            verbose: self.verbose,
            replaces: false,
        };
        creation.run(Some(queue), || Ok(()))
    }
}
