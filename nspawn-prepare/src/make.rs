//! Making a machine: its steps are taken, and what becomes of a failure.

use std::ffi::OsStr;

use anyhow::{Error, Result, bail};
use nspawn_common::clock::Moment;
use nspawn_common::exit::{self, JobError};
use nspawn_common::image;
use nspawn_common::interrupt::{self, Interrupted};
use nspawn_common::keep;
use nspawn_common::lifecycle;
use nspawn_common::lock::Lock;
use nspawn_common::modes::{Init, Layer};
use nspawn_common::network::Network;
use nspawn_common::owner::Owner;
use nspawn_common::registration;
use nspawn_common::state::State;

use crate::PROGRAM;
use crate::diagnosis;
use crate::host;
use crate::layer;
use crate::limits;
use crate::machine::Machine;
use crate::nat;
use crate::plan::Step;
use crate::serve;
use crate::services::{self, Services, Unavailable};
use crate::slots;
use crate::standby;
use crate::start;
use crate::uplink;

impl Machine {
    /// Makes the machine, or takes one that stands by, and hands it over by `announce`; what a failure has made of it
    /// is removed again, or kept. `queue` is held until others count it.
    pub fn make(
        &self,
        steps: &[Step],
        queue: Option<Lock>,
        announce: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        host::check_host()?;
        host::check_network(&self.options.network, self.options.private_users)?;
        layer::check_image(self.options.layer, &self.image)?;
        if self.has_disks() {
            layer::check_loop_devices()?;
        }
        if self.options.layer == Layer::Disk {
            layer::check_file_size(self.layer_size)?;
        }
        if self.image.is_disk() {
            host::check_disk_images()?;
        } else {
            image::check(
                &self.image.name,
                &self.image.path,
                &self.image.path,
                self.options.init,
            )?;
        }
        host::check_units(&self.paths)?;
        if registration::is_foreign(&self.paths) {
            bail!(
                "there is a machine {} that these programs did not make; choose another --name",
                self.name
            );
        }
        let lock = Lock::acquire(&self.paths)?;
        let started = Moment::now();
        // One that is taken brings a lock of its own, to be held as long as this one.
        let mut taken = None;
        let made = services::remove(&self.name).and_then(|()| lifecycle::clear(&self.paths, &lock));
        let made = made.and_then(|()| self.take_all(steps, queue, &mut taken, announce));
        let Err(error) = made else { return Ok(()) };
        let state = self.state()?;
        let is_of_others =
            error.is::<Interrupted>() || error.is::<JobError>() || error.is::<Unavailable>();
        let error = if is_of_others {
            error
        } else {
            diagnosis::of(&state, error, started)
        };
        // Also while the machine was asked.
        let error = interrupt::check().err().unwrap_or(error);
        interrupt::undo();
        let is_kept = self.options.keep.keeps(true) && keep::is_worth_while(&state, false);
        if is_of_others || error.is::<Interrupted>() || !is_kept || !self.paths.layer().exists() {
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
        services::remove(&self.name)?;
        lifecycle::end(&self.paths)?;
        keep::note_failure(&self.paths)?;
        keep::keep(&self.paths, self.options.keep_for)?;
        exit::say(PROGRAM, OsStr::new(&keep::describe(state, false)));
        Ok(())
    }

    // Removes what there is of the machine, because of `error`.
    fn unmake(&self, lock: Lock, error: Error) -> Result<()> {
        match services::remove(&self.name).and_then(|()| lifecycle::remove(&self.name, lock)) {
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
        host::check_limits()?;
        let slots = |most| {
            let queue = slots::wait(&self.paths, most, self.options.timeout)?;
            // The wait may have been long.
            host::check_limits().map(|()| queue)
        };
        let queue = queue.map_or_else(
            || self.options.max_machines.map(slots).transpose(),
            |queue| Ok(Some(queue)),
        )?;
        let (making, last) =
            steps.split_at(steps.len() - 1 - usize::from(self.is_equipped_at_once()));
        let services = Services::begin(&self.job.services, self.options.service_limit())?;
        standby::take(self, taken)?;
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
            serve::start(&self.name)?;
        }
        if self.pool.is_none() {
            if self.role.is_none() {
                self.tell(&unbounded)?;
            }
            if let Err(error) = standby::refill(&self.image.name) {
                exit::say(
                    PROGRAM,
                    OsStr::new(&format!("no machine is made ahead: {error:#}")),
                );
            }
        }
        interrupt::check()?;
        if !self.job.runner.is_none_or(Owner::is_alive) {
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
        if error.is::<Interrupted>() {
            return error;
        }
        Unavailable::new(format!(
            "machine {} can't be given what its job needs: {error:#}",
            self.name
        ))
        .into()
    }

    // What it lacks.
    fn tell(&self, unbounded: &[&str]) -> Result<()> {
        if self.options.network == Network::Nat && uplink::is_missing() {
            let line = "the host has no network interface but its loopback, so the machine can't connect to anything";
            exit::say(PROGRAM, OsStr::new(line));
        }
        if !unbounded.is_empty() {
            let missing = unbounded.join(", ");
            exit::say(
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
                exit::say(PROGRAM, &step.shell());
            }
            step.take().map_err(|error| {
                if nat::is_its(step) && lifecycle::is_running(&self.paths) {
                    error.context(nat::FAILURE)
                } else if layer::is_copy(step, &self.paths) {
                    error.context(layer::COPY_FAILURE)
                } else {
                    error
                }
            })?;
            interrupt::check()?;
        }
        Ok(())
    }
}
