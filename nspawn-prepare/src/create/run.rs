//! Runs the plan of a machine, and removes or keeps a machine that failed.

use std::time::Instant;

use anyhow::{Error, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::error;
use nspawn_common::error::{Failure, Fault};
use nspawn_common::image::requirements;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::{
    diagnosis, limit_enforcement, remove, retention, stale, start, stop,
};
use nspawn_common::machine::paths;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::sys::signals;
use nspawn_common::systemd::machined;
use nspawn_common::systemd::machined::Registration;

use crate::create::plan::Plan;
use crate::create::queue;
use crate::create::spec::MachineSpec;
use crate::create::state;
use crate::create::step::Step;
use crate::diagnostics::print_diagnostic;
use crate::layer;
use crate::network::uplink;
use crate::preflight;
use crate::services::readiness;
use crate::services::spawn;
use crate::services::spawn::Services;
use crate::standby::pool;
use crate::standby::takeover;

/// The creation of one machine.
pub struct Creation<'a> {
    pub spec: &'a MachineSpec,
    pub plan: &'a Plan,
    /// Flag to print each step on stderr.
    pub verbose: bool,
    /// Permission to replace a machine of the same name that is in use.
    pub replaces: bool,
}

impl Creation<'_> {
    /// Creates the machine, or takes over a standby machine, and calls `announce` just before the
    /// machine is in use.
    ///
    /// If the creation fails, the machine is removed, or kept for inspection. `queue` is a lock
    /// that is held until the machine takes its slot.
    pub fn run(&self, queue: Option<Lock>, announce: impl FnOnce() -> Result<()>) -> Result<()> {
        let state = state::new(self.spec)?;
        self.check_requirements()?;
        let lock = Lock::acquire(&self.spec.paths)?;
        self.check_name()?;
        let begin = Moment::now();
        // A standby machine that is taken over has its own lock, which must be held as long as this
        // one.
        let mut standby_lock = None;
        let Err(error) = self.replace(&lock, queue, &mut standby_lock, announce) else {
            return Ok(());
        };
        let is_explained = Fault::of(&error).is_some();
        let error = if is_explained {
            error
        } else {
            diagnosis::explain(&state, error, begin)
        };
        // A signal may have arrived while the diagnosis queried the machine.
        let error = signals::check().err().unwrap_or(error);
        signals::ignore();
        let keeps =
            self.spec.options.keep.applies_to(true) && retention::is_inspectable(&state, false);
        let can_keep = !is_explained && !error::is_interrupted(&error);
        if keeps && can_keep && self.spec.paths.layer().exists() {
            self.keep(&state, error)
        } else {
            self.remove(lock, error)
        }
    }

    fn check_requirements(&self) -> Result<()> {
        let MachineSpec {
            paths,
            image,
            options,
            ..
        } = self.spec;
        preflight::check_host()?;
        preflight::check_network(&options.network, options.private_users)?;
        preflight::check_binds(&options.binds)?;
        preflight::check_devices(&options.devices)?;
        layer::check_image(options.layer, image)?;
        if self.spec.has_disks() {
            layer::check_loop_devices()?;
        }
        if options.layer == Layer::Disk {
            layer::check_file_size(self.spec.layer_size)?;
        }
        if image.has_disks() {
            preflight::check_disk_images()?;
        }
        if let Some(tree) = image.tree() {
            requirements::check(&image.name, &image.path, tree, options.init)?;
        }
        preflight::check_units(paths)?;
        if machined::is_foreign(&State::paths_of(&self.spec.name)) {
            bail!(
                "can't make machine {}: another program has registered a machine of that name; choose another --name",
                self.spec.name
            );
        }
        Ok(())
    }

    // While this process holds the lock, no other one can create a machine of the same name.
    fn check_name(&self) -> Result<()> {
        let name = &self.spec.name;
        if !self.replaces && stale::is_alive(&self.spec.paths)? {
            bail!(
                "can't create machine {name}: a machine of that name is in use; remove it: nspawn-cleanup {name}, or \
                 replace it by --replace"
            );
        }
        Ok(())
    }

    // The machine replaces one of the same name.
    fn replace(
        &self,
        lock: &Lock,
        queue: Option<Lock>,
        standby_lock: &mut Option<Lock>,
        announce: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        spawn::remove(&self.spec.name)?;
        remove::remove_contents(&self.spec.name, lock)?;
        let queue = self.wait_for_slot(queue)?;
        takeover::take(self.spec, standby_lock)?;
        let is_new = standby_lock.is_none();
        if is_new {
            self.run_steps(&self.plan.reserve)?;
        }
        drop(queue);
        self.run_steps(&self.plan.share)?;
        let services = Services::begin(&self.spec.job.services, self.spec.job.services_limit)?;
        let unenforced = self.build_and_start(is_new)?;
        services.finish()?;
        self.check_shared_limits()?;
        self.attach()?;
        if self.spec.pool.is_none() {
            self.print_warnings(&unenforced);
            self.refill_pools();
        } else {
            Registration::record(&self.spec.paths)?;
        }
        signals::check()?;
        if !self.spec.job.runner.is_none_or(ProcessId::is_alive) {
            bail!("the calling GitLab Runner has ended");
        }
        // The caller must know the machine's name by the time that the machine is in use.
        announce()?;
        self.run_steps(&self.plan.publish)
    }

    fn wait_for_slot(&self, queue: Option<Lock>) -> Result<Option<Lock>> {
        let options = &self.spec.options;
        preflight::check_limits(options.private_users)?;
        let Some(max_machines) = options.max_machines.filter(|_| queue.is_none()) else {
            return Ok(queue);
        };
        let queue = queue::wait(&self.spec.paths, max_machines, options.timeout)?;
        // The wait may have been long.
        preflight::check_limits(options.private_users)?;
        Ok(Some(queue))
    }

    // Returns the default limits that the kernel does not enforce.
    fn build_and_start(&self, is_new: bool) -> Result<Vec<&'static str>> {
        if is_new {
            self.run_steps(&self.plan.build)?;
        }
        let options = &self.spec.options;
        start::retry(&self.spec.name, || {
            let deadline = Instant::now() + options.timeout;
            if is_new {
                let left = || deadline.saturating_duration_since(Instant::now());
                self.run_each(&self.plan.start, |step| step.run_within(left()))?;
            }
            if options.init == Init::None {
                limit_enforcement::check_controllers(&options.properties)
            } else {
                start::confirm(&self.spec.name, &options.properties, deadline)
            }
        })
    }

    // The limits of the machine's own unit are checked when it has started.
    fn check_shared_limits(&self) -> Result<()> {
        let Some(job) = self
            .spec
            .paths
            .slice_of()
            .filter(|job| **job == self.spec.name)
        else {
            return Ok(());
        };
        let cgroup = paths::slice_cgroup_of_job(job);
        limit_enforcement::check_cgroup(&cgroup, &self.spec.job.shared_properties).map(drop)
    }

    fn attach(&self) -> Result<()> {
        if let Err(error) = self.run_steps(&self.plan.attach) {
            return Err(self.attach_error(error));
        }
        if !self.spec.job.services.is_empty() {
            readiness::start(&self.spec.name)?;
        }
        Ok(())
    }

    // The machine itself has started.
    fn attach_error(&self, error: Error) -> Error {
        if error::is_interrupted(&error) {
            return error;
        }
        let name = &self.spec.name;
        Failure::host(format!(
            "can't attach the job's cache and services to machine {name}: {error:#}"
        ))
        .into()
    }

    fn print_warnings(&self, unenforced: &[&str]) {
        // The log of the job would repeat the warnings for each service.
        if self.spec.service.is_some() {
            return;
        }
        if self.spec.options.network == Network::Nat && uplink::is_missing() {
            print_diagnostic(
                "the host has no network interface but its loopback, so the machine can't connect to anything",
            );
        }
        if !unenforced.is_empty() {
            print_diagnostic(format!(
                "this host's kernel does not enforce {}; nothing limits them",
                unenforced.join(", ")
            ));
        }
    }

    fn refill_pools(&self) {
        if let Err(error) = pool::refill(&self.spec.image.name) {
            print_diagnostic(format!("can't refill standby pools: {error:#}"));
        }
    }

    fn run_steps(&self, steps: &[Step]) -> Result<()> {
        self.run_each(steps, Step::run)
    }

    fn run_each(&self, steps: &[Step], run: impl Fn(&Step) -> Result<()>) -> Result<()> {
        for step in steps {
            if self.verbose {
                print_diagnostic(step.shell_command());
            }
            run(step).map_err(|error| self.with_hint(step, error))?;
            signals::check()?;
        }
        Ok(())
    }

    fn with_hint(&self, step: &Step, error: Error) -> Error {
        match step.hint {
            Some(hint)
                if !hint.needs_running_machine || processes::is_running(&self.spec.paths) =>
            {
                error.context(hint.text)
            }
            _ => error,
        }
    }

    fn keep(&self, state: &State, error: Error) -> Result<()> {
        let Err(second) = self.stop_and_keep(state) else {
            return Err(error);
        };
        let name = &self.spec.name;
        Err(error.context(format!(
            "can't keep machine {name} ({second:#}) after this error"
        )))
    }

    fn stop_and_keep(&self, state: &State) -> Result<()> {
        let paths = &self.spec.paths;
        spawn::remove(&self.spec.name)?;
        stop::stop_machine(&self.spec.name)?;
        retention::record_failure(paths)?;
        retention::keep(paths, self.spec.options.keep_for)?;
        print_diagnostic(retention::describe(state, false));
        Ok(())
    }

    fn remove(&self, lock: Lock, error: Error) -> Result<()> {
        let name = &self.spec.name;
        let removed = spawn::remove(name).and_then(|()| remove::remove_machine(name, lock));
        let Err(second) = removed else {
            return Err(error);
        };
        Err(error.context(format!(
            "can't remove machine {name} ({second:#}) after this error"
        )))
    }
}
