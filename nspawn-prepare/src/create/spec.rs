//! A machine: what it is, and the steps that make it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use nspawn_common::command::argv;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::image::lookup::Image;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::{
    AGENT_IN_MACHINE, AGENT_MOUNT_IN_MACHINE, MachinePaths, UNITS_IN_MACHINE,
};
use nspawn_common::machine::state::{ServiceRole, State};
use nspawn_common::sys::clock;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::systemd::nspawn::{Bind, Nspawn, Payload};
use nspawn_common::systemd::transient_unit::Unit;

use crate::create::step::Step;
use crate::gitlab::attach;
use crate::launcher;
use crate::launcher::boot_units::AGENT_UNIT;
use crate::layer;
use crate::layer::CONTAINER_DIRECTORIES;
use crate::limits;
use crate::network::pasta;
use crate::options::Options;
use crate::preflight::LOOK_LIMIT;
use crate::services::spawn::Order;
use crate::standby::fingerprint;

/// How much longer than the boot may take systemd waits for it: time to ask the machine what it waits for.
const START_MARGIN: Duration = Duration::from_secs(30);

/// Units that a machine of ours has no use for.
const MASKED: [&str; 7] = [
    "tmp.mount",                  // a big build in /tmp belongs on the layer, not in memory
    "console-getty.service",      // nobody can type at a console that is read-only
    "systemd-remount-fs.service", // the image's fstab tells of disks that the machine does not have
    "dev-hugepages.mount",        // the kernel gives huge pages to no container by this
    "sys-fs-fuse-connections.mount", // nor the control of FUSE, which itself works without
    "run-lock.mount",             // a directory of /run does as well
    "systemd-journal-flush.service", // a journal that goes with the machine need not be on disk
];

/// A machine to be made.
#[derive(Clone)]
pub struct Machine {
    pub name: MachineName,
    pub paths: MachinePaths,
    pub image: Image,
    pub options: Options,
    /// How large its layer may become, in bytes; `None` for as large as the host's file system.
    pub layer_size: Option<u64>,
    /// How long it may run, in a job that says so.
    pub lifetime: Option<Duration>,
    /// What it is to stand by for, if it is.
    pub pool: Option<String>,
    /// What a job asks of it.
    pub job: ForJob,
    /// What it is to a job that it is a service of.
    pub role: Option<ServiceRole>,
}

/// What a job asks of its machine, beside the image.
#[derive(Clone, Default)]
pub struct ForJob {
    /// Whom its scripts run as.
    pub user: Option<String>,
    /// What its own scripts are run by.
    pub entrypoint: Vec<OsString>,
    /// The file of its project's cache.
    pub cache: Option<PathBuf>,
    /// What makes its services.
    pub services: Vec<Order>,
    /// The GitLab Runner that runs it.
    pub runner: Option<ProcessId>,
}

impl ForJob {
    // Of what can be had once the machine runs.
    fn is_anything(&self) -> bool {
        self.user.is_some() || self.cache.is_some() || !self.services.is_empty()
    }
}

impl Machine {
    /// All that makes the machine, the state first.
    pub fn plan(&self) -> Result<Vec<Step>> {
        let (paths, state) = (&self.paths, self.state()?);
        let mut steps = self.reservation(&state);
        let mounts = [
            paths.image_mount(),
            paths.disk_mount(),
            paths.root_mount(),
            paths.agent_mount(),
        ];
        steps.extend(mounts.map(|mount| Step::Directory(mount, 0o700)));
        steps.extend(layer::steps(&state));
        steps.extend(limits::slice_command().map(|command| Step::Run(command, LOOK_LIMIT)));
        if self.options.init != Init::None {
            steps.extend(
                self.start_commands()?
                    .into_iter()
                    .map(|command| Step::Run(command, self.options.timeout)),
            );
        }
        if self.is_equipped_at_once() {
            steps.push(Step::Run(
                attach::command(&self.name, self.options.cache_size)?,
                attach::LIMIT,
            ));
        }
        steps.push(match self.pool {
            Some(_) => Step::File(paths.fingerprint_file(), fingerprint::of(self)?),
            None => Step::File(paths.ready_mark(), Vec::new()),
        });
        Ok(steps)
    }

    /// Whether what a job needs is given to it once, or at each of its starts.
    pub fn is_equipped_at_once(&self) -> bool {
        self.options.init != Init::None && self.job.is_anything()
    }

    /// The first steps: they make it a machine that takes a slot, or one of its pool.
    pub fn reservation(&self, state: &State) -> Vec<Step> {
        let paths = &self.paths;
        let mut steps = vec![
            Step::Directory(paths.state_dir(), 0o700),
            Step::File(paths.state_file(), state.to_json().to_string().into_bytes()),
        ];
        steps.extend(
            self.pool
                .iter()
                .map(|pool| Step::File(paths.standby_mark(), pool.clone().into_bytes())),
        );
        steps
    }

    /// What a machine without an init is started by for each of its runs, and any other once.
    pub fn start_commands(&self) -> Result<Vec<Vec<OsString>>> {
        let mut commands = vec![self.unit_command()?];
        if self.options.network == Network::Nat {
            commands.push(pasta::command(
                &self.name,
                self.options.timeout,
                &self.options.allowed_destinations,
            )?);
            commands.push(argv(["systemctl", "start", &self.paths.unit()]));
        }
        if self.options.init == Init::None && self.job.is_anything() {
            commands.push(attach::command(&self.name, self.options.cache_size)?);
        }
        Ok(commands)
    }

    fn unit_command(&self) -> Result<Vec<OsString>> {
        let options = &self.options;
        let has_own_users = options.private_users != PrivateUsers::No;
        let shown = Bind::writable(&self.paths.agent_mount(), Path::new(AGENT_MOUNT_IN_MACHINE));
        let given = options.binds.iter().cloned();
        let given = given.map(|bind| {
            if has_own_users {
                bind.with_owner()
            } else {
                bind
            }
        });
        let nspawn = Nspawn {
            name: &self.name,
            root: self.paths.root_mount(),
            binds: [shown]
                .into_iter()
                .chain(self.nested_binds())
                .chain(given)
                .collect(),
            network: &options.network,
            is_read_only: options.layer == Layer::None,
            options: self.other_options(),
            payload: self.payload(),
        };
        let properties = limits::DEFAULTS
            .iter()
            .map(OsString::from)
            .chain(options.properties.iter().cloned());
        let properties: Vec<_> = properties.collect();
        let unit = Unit {
            name: &self.name,
            image: &self.image.name,
            timeout: options.timeout + START_MARGIN,
            lifetime: self.lifetime,
            has_disks: self.has_disks(),
            // What comes after can be done while it boots.
            is_waited_for: options.network != Network::Nat,
            properties: &properties,
        };
        Ok(unit.start_command(&launcher::command(&self.name, nspawn.command())?))
    }

    fn payload(&self) -> Payload {
        let agent =
            |option: &str| Payload::Command(vec![AGENT_IN_MACHINE.to_owned(), option.to_owned()]);
        match self.options.init {
            Init::Systemd => {
                let agent = format!("systemd.wants={AGENT_UNIT}");
                let masks = MASKED.map(|unit| format!("systemd.mask={unit}"));
                Payload::Boot(
                    [agent]
                        .into_iter()
                        .chain(masks)
                        .chain(self.options.boot_words.iter().cloned())
                        .collect(),
                )
            }
            Init::Stub => agent("--agent"),
            Init::None => agent("--agent-once"),
        }
    }

    /// Whether it mounts file systems in files.
    pub fn has_disks(&self) -> bool {
        self.image.is_disk() || (self.options.layer == Layer::Disk && self.layer_size.is_some())
    }

    // An overlay can't be the upper layer of another, so containers are kept beside the machine's.
    fn nested_binds(&self) -> Vec<Bind> {
        let root = self
            .paths
            .layer_root(self.options.layer, self.layer_size.is_some());
        let kept = CONTAINER_DIRECTORIES
            .iter()
            .filter(|_| self.options.nesting && self.options.layer != Layer::Snapshot);
        kept.map(|name| Bind::writable(&root.join(name), &Path::new("/var/lib").join(name)))
            .collect()
    }

    fn other_options(&self) -> Vec<OsString> {
        let mut options = Vec::new();
        if self.options.init == Init::Systemd {
            // Before the places where they are else (systemd.unit(5), systemd.generator(7)).
            options.push(format!("--setenv=SYSTEMD_UNIT_PATH={UNITS_IN_MACHINE}:").into());
            options.push(
                format!("--setenv=SYSTEMD_GENERATOR_PATH={UNITS_IN_MACHINE}/generators:").into(),
            );
            let (name, value) = launcher::NO_PRESSURE;
            options.push(format!("--setenv={name}={value}").into());
        }
        if !self.options.nesting {
            // systemd-nspawn of 262 allows them, though any key of the host's that is open to all is read by them.
            options.push("--system-call-filter=~@keyring".into());
        }
        if self.options.layer == Layer::None {
            options.extend(layer::temporary_options(&self.paths, self.layer_size));
        }
        options.extend(self.options.rlimits.iter().cloned());
        options.extend(self.options.privileges.iter().cloned());
        options
    }

    /// What is written down about it.
    pub fn state(&self) -> Result<State> {
        let is_started_by_runs = self.options.init == Init::None;
        Ok(State {
            name: self.name.clone(),
            image: self.image.name.clone(),
            image_path: self.image.path.clone(),
            environment: self.options.environment.clone(),
            private_users: self.options.private_users,
            network: self.options.network.clone(),
            init: self.options.init,
            layer: self.options.layer,
            layer_size: self.layer_size,
            start: if is_started_by_runs {
                self.start_commands()?
            } else {
                Vec::new()
            },
            timeout: self.options.timeout,
            created: Some(clock::awake()),
            lifetime: self.lifetime,
            owner: self.options.owner.or(self.job.runner),
            properties: self.options.properties.clone(),
            nesting: self.options.nesting,
            keep: self.options.keep,
            keep_for: self.options.keep_for,
            user: self.job.user.clone(),
            entrypoint: self.job.entrypoint.clone(),
            cache: self.job.cache.clone(),
            service: self.role.clone(),
        })
    }
}
