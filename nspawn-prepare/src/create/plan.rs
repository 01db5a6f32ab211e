//! Plan of a machine: the steps that create it, in phases.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;
use nspawn_common::command::ext4;
use nspawn_common::command::ext4::Content;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::lifecycle::{calling_unit, job_slice};
use nspawn_common::machine::state::State;

use crate::create::spec::MachineSpec;
use crate::create::start_commands;
use crate::create::start_commands::StartCommands;
use crate::create::state;
use crate::create::step::{Hint, Step};
use crate::layer::commands::{COPY_HINT, copy_command, mount_command};
use crate::network::pasta;
use crate::preflight::QUERY_LIMIT;
use crate::slice;

/// Time limit for copying an image: its blocks are shared, but each file is created.
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// Time limit for creating any other layer.
const LAYER_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for attaching a job's cache and services.
const ATTACH_LIMIT: Duration = Duration::from_secs(300);

/// Steps that create a machine, in the order of the fields.
#[derive(Debug)]
pub struct Plan {
    /// Steps after which the machine counts for `--max-machines`, or in its pool. The state is the
    /// first file.
    pub reserve: Vec<Step>,
    /// Steps that create the slice of a job and its services; none for a job without services.
    pub share: Vec<Step>,
    /// Steps that create the mount points, the layer and the slice of all machines.
    pub build: Vec<Step>,
    /// Steps that start the machine; none for a machine without an init. They can be repeated.
    pub start: Vec<Step>,
    /// Steps that give the running machine what a job needs.
    pub attach: Vec<Step>,
    /// Last step: the machine is in use from here on, or in its pool.
    pub publish: Vec<Step>,
}

impl Plan {
    /// Returns the plan of a machine.
    ///
    /// For a machine of a standby pool, `publish` is empty: the caller adds the step that writes
    /// the fingerprint.
    pub fn new(spec: &MachineSpec) -> Result<Self> {
        let state = state::new(spec)?;
        Ok(Self {
            reserve: reserve(spec, &state),
            share: share(spec),
            build: build(spec, &state),
            start: start(spec)?,
            attach: attach(spec)?,
            publish: publish(spec),
        })
    }

    /// Returns all steps, in the order of execution.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        [
            &self.reserve,
            &self.share,
            &self.build,
            &self.start,
            &self.attach,
            &self.publish,
        ]
        .into_iter()
        .flatten()
    }
}

fn reserve(spec: &MachineSpec, state: &State) -> Vec<Step> {
    let paths = &spec.paths;
    let mut steps = vec![
        Step::directory(paths.state_dir(), 0o700),
        Step::file(paths.state_file(), state.to_json().to_string().into_bytes()),
    ];
    if let Some(pool) = &spec.pool {
        steps.push(Step::file(paths.standby_mark(), pool.clone().into_bytes()));
    }
    steps
}

fn share(spec: &MachineSpec) -> Vec<Step> {
    if spec.job.services.is_empty() {
        return Vec::new();
    }
    let commands = job_slice::create_commands(&spec.name, &spec.job.shared_properties);
    commands
        .map(|command| Step::command(command, QUERY_LIMIT))
        .into()
}

fn build(spec: &MachineSpec, state: &State) -> Vec<Step> {
    let paths = &spec.paths;
    let mount_points = [
        paths.image_mount(),
        paths.disk_mount(),
        paths.root_mount(),
        paths.agent_mount(),
    ];
    let mut steps = Vec::from(mount_points.map(|path| Step::directory(path, 0o700)));
    steps.extend(build_layer(spec, state));
    steps.extend(slice::limit_command().map(|command| Step::command(command, QUERY_LIMIT)));
    steps
}

fn build_layer(spec: &MachineSpec, state: &State) -> Vec<Step> {
    let paths = &spec.paths;
    let directory = Step::directory(paths.layer(), 0o700);
    match (state.layer, state.layer_size) {
        (Layer::Disk, None) => vec![directory],
        (Layer::Disk, Some(size)) => {
            let disk = paths.disk();
            let format = ext4::format_command(&disk, size);
            let mount = ext4::mount_command(&disk, &paths.disk_mount(), Content::Temporary);
            let mut steps = vec![
                directory,
                Step::sparse_file(disk, size),
                Step::command(format, LAYER_LIMIT),
            ];
            if state.init == Init::None {
                steps.push(mount_on_host(mount));
            }
            steps
        }
        (Layer::Snapshot, _) => {
            let copy = copy_command(&state.image_layers[0], &paths.snapshot());
            let hint = Hint {
                text: COPY_HINT,
                needs_running_machine: false,
            };
            vec![directory, Step::command(copy, COPY_LIMIT).with_hint(hint)]
        }
        (Layer::Tmpfs, size) if state.init == Init::None => {
            vec![mount_on_host(mount_command(size, &paths.disk_mount()))]
        }
        (Layer::Tmpfs | Layer::None, _) => Vec::new(),
    }
}

/// Returns the step that mounts the layer of a machine without an init.
///
/// The layer has to outlive the unit, in whose mount namespace the launcher mounts other layers:
/// one in memory for its content, and one on disk so that the kernel keeps its errors.
fn mount_on_host(command: Vec<OsString>) -> Step {
    let hint = Hint {
        text: "can't mount the layer; see --layer-size",
        needs_running_machine: false,
    };
    Step::command(calling_unit::on_host(command), LAYER_LIMIT).with_hint(hint)
}

fn start(spec: &MachineSpec) -> Result<Vec<Step>> {
    if spec.options.init == Init::None {
        return Ok(Vec::new());
    }
    let timeout = spec.options.timeout;
    let commands = StartCommands::new(spec)?;
    let mut steps = vec![Step::command(commands.unit, timeout)];
    if let Some(network) = commands.network {
        let hint = Hint {
            text: pasta::FAILURE,
            needs_running_machine: true,
        };
        steps.push(Step::command(network.connect, timeout).with_hint(hint));
        steps.push(Step::command(network.wait, timeout));
    }
    Ok(steps)
}

// A machine without an init is given what its job needs at each start, by the commands in its
// state.
fn attach(spec: &MachineSpec) -> Result<Vec<Step>> {
    if spec.options.init == Init::None || !spec.job.need_attaching() {
        return Ok(Vec::new());
    }
    let command = start_commands::attach(spec)?;
    Ok(vec![Step::command(command, ATTACH_LIMIT)])
}

fn publish(spec: &MachineSpec) -> Vec<Step> {
    if spec.pool.is_some() {
        return Vec::new();
    }
    vec![Step::file(spec.paths.ready_mark(), Vec::new())]
}
