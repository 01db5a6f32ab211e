//! Making a machine: its steps are taken, and what becomes of a failure.

use std::ffi::OsStr;

use anyhow::{Error, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::error;
use nspawn_common::error::Failure;
use nspawn_common::error::Fault;
use nspawn_common::image::lookup;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::remove;
use nspawn_common::lifecycle::retention;
use nspawn_common::lifecycle::stop;
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::clock::Moment;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::sys::signals;
use nspawn_common::systemd::machined;

use crate::PROGRAM;
use crate::create::diagnosis;
use crate::create::queue;
use crate::create::spec::Machine;
use crate::create::start;
use crate::create::step::Step;
use crate::layer;
use crate::limits;
use crate::network::pasta;
use crate::network::uplink;
use crate::preflight;
use crate::services::readiness;
use crate::services::spawn;
use crate::services::spawn::Services;
use crate::standby::pool;

impl Machine {
    /// Makes the machine, or takes one that stands by, and hands it over by `announce`; what a failure has made of it
    /// is removed again, or kept. `queue` is held until others count it.
    pub fn make(
        &self,
        steps: &[Step],
        queue: Option<Lock>,
        announce: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        preflight::check_host()?;
        preflight::check_network(&self.options.network, self.options.private_users)?;
        layer::check_image(self.options.layer, &self.image)?;
        if self.has_disks() {
            layer::check_loop_devices()?;
        }
        if self.options.layer == Layer::Disk {
            layer::check_file_size(self.layer_size)?;
        }
        if self.image.is_disk() {
            preflight::check_disk_images()?;
        } else {
            lookup::check(
                &self.image.name,
                &self.image.path,
                &self.image.path,
                self.options.init,
            )?;
        }
        preflight::check_units(&self.paths)?;
        if machined::is_foreign(&self.paths) {
            bail!(
                "there is a machine {} that these programs did not make; choose another --name",
                self.name
            );
        }
        let lock = Lock::acquire(&self.paths)?;
        let started = Moment::now();
        // One that is taken brings a lock of its own, to be held as long as this one.
        let mut taken = None;
        let made =
            spawn::remove(&self.name).and_then(|()| remove::remove_contents(&self.paths, &lock));
        let made = made.and_then(|()| self.take_all(steps, queue, &mut taken, announce));
        let Err(error) = made else { return Ok(()) };
        let state = self.state()?;
        let is_of_others = Fault::of(&error).is_some();
        let error = if is_of_others {
            error
        } else {
            diagnosis::of(&state, error, started)
        };
        // Also while the machine was asked.
        let error = signals::check().err().unwrap_or(error);
        signals::ignore();
        let is_kept =
            self.options.keep.applies_to(true) && retention::is_inspectable(&state, false);
        if is_of_others || error::is_interrupted(&error) || !is_kept || !self.paths.layer().exists()
        {
            return self.unmake(lock, error);
        }
        match self.keep(&state) {
            Ok(()) => Err(error),
            Err(second) => Err(error.context(format!(
                "machine {} can't be kept ({second:#}), after this",
                self.name
            ))),
        }
    }

    fn keep(&self, state: &State) -> Result<()> {
        spawn::remove(&self.name)?;
        stop::stop_machine(&self.paths)?;
        retention::record_failure(&self.paths)?;
        retention::keep(&self.paths, self.options.keep_for)?;
        report::print_diagnostic(PROGRAM, OsStr::new(&retention::describe(state, false)));
        Ok(())
    }

    // Removes what there is of the machine, because of `error`.
    fn unmake(&self, lock: Lock, error: Error) -> Result<()> {
        match spawn::remove(&self.name).and_then(|()| remove::remove_machine(&self.name, lock)) {
            Ok(()) => Err(error),
            Err(second) => Err(error.context(format!(
                "machine {} can't be removed again ({second:#}), after this",
                self.name
            ))),
        }
    }

    // The last step makes it somebody's, who must know its name by then.
    fn take_all(
        &self,
        steps: &[Step],
        queue: Option<Lock>,
        taken: &mut Option<Lock>,
        announce: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        preflight::check_limits()?;
        let slots = |most| {
            let queue = queue::wait(&self.paths, most, self.options.timeout)?;
            // The wait may have been long.
            preflight::check_limits().map(|()| queue)
        };
        let queue = queue.map_or_else(
            || self.options.max_machines.map(slots).transpose(),
            |queue| Ok(Some(queue)),
        )?;
        let (making, last) =
            steps.split_at(steps.len() - 1 - usize::from(self.is_equipped_at_once()));
        let services = Services::begin(&self.job.services, self.options.service_limit())?;
        pool::take(self, taken)?;
        let rest = if taken.is_none() {
            let (reservation, rest) = making.split_at(self.reservation(&self.state()?).len());
            self.take(reservation)?;
            rest
        } else {
            &[]
        };
        drop(queue);
        let (laying, starting) = rest.split_at(
            rest.iter()
                .position(Step::starts_unit)
                .unwrap_or(rest.len()),
        );
        self.take(laying)?;
        let unbounded = start::repeat(&self.paths, || self.start(starting))?;
        services.finish()?;
        let (equipping, handing_over) = last.split_at(last.len() - 1);
        self.take(equipping).map_err(|error| self.lacking(error))?;
        if !self.job.services.is_empty() {
            readiness::start(&self.name)?;
        }
        if self.pool.is_none() {
            if self.role.is_none() {
                self.tell(&unbounded)?;
            }
            if let Err(error) = pool::refill(&self.image.name) {
                report::print_diagnostic(
                    PROGRAM,
                    OsStr::new(&format!("no machine is made ahead: {error:#}")),
                );
            }
        }
        signals::check()?;
        if !self.job.runner.is_none_or(ProcessId::is_alive) {
            bail!("the GitLab Runner that called has ended");
        }
        announce()?;
        self.take(handing_over)
    }

    // Takes the steps that start it. Returns what nothing bounds.
    fn start(&self, steps: &[Step]) -> Result<Vec<&'static str>> {
        self.take(steps)?;
        if self.options.init == Init::None {
            limits::foresee(&self.options.properties)
        } else {
            start::confirm(&self.paths, &self.options.properties)
        }
    }

    // It has started all the same.
    fn lacking(&self, error: Error) -> Error {
        if error::is_interrupted(&error) {
            return error;
        }
        Failure::host(format!(
            "machine {} can't be given what its job needs: {error:#}",
            self.name
        ))
        .into()
    }

    // What it lacks.
    fn tell(&self, unbounded: &[&str]) -> Result<()> {
        if self.options.network == Network::Nat && uplink::is_missing() {
            let line = "the host has no network interface but its loopback, so the machine can't connect to anything";
            report::print_diagnostic(PROGRAM, OsStr::new(line));
        }
        if !unbounded.is_empty() {
            let missing = unbounded.join(", ");
            report::print_diagnostic(
                PROGRAM,
                OsStr::new(&format!(
                    "this host's kernel does not hold {missing}; nothing bounds them"
                )),
            );
        }
        Ok(())
    }

    fn take(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            if self.options.verbose {
                report::print_diagnostic(PROGRAM, &step.shell());
            }
            step.take().map_err(|error| {
                if pasta::is_its(step) && processes::is_running(&self.paths) {
                    error.context(pasta::FAILURE)
                } else if layer::is_copy(step, &self.paths) {
                    error.context(layer::COPY_FAILURE)
                } else {
                    error
                }
            })?;
            signals::check()?;
        }
        Ok(())
    }
}
