//! Content of a new machine's state file.

use anyhow::Result;
use nspawn_common::config::init::Init;
use nspawn_common::machine::state::State;
use nspawn_common::sys::clock;

use crate::create::spec::MachineSpec;
use crate::create::start_commands::StartCommands;

/// Returns the state of a machine that is being created now.
pub fn new(spec: &MachineSpec) -> Result<State> {
    let options = &spec.options;
    // Each command in a machine without an init starts the machine, by the commands in its state.
    let start = match options.init {
        Init::None => StartCommands::new(spec)?.into_list(),
        Init::Systemd | Init::Stub => Vec::new(),
    };
    Ok(State {
        name: spec.name.clone(),
        image: spec.image.name.clone(),
        image_path: spec.image.path.clone(),
        image_layers: spec.image.layers.clone(),
        environment: options.environment.clone(),
        private_users: options.private_users,
        network: options.network.clone(),
        init: options.init,
        layer: options.layer,
        layer_size: spec.layer_size,
        start,
        timeout: options.timeout,
        created: Some(clock::awake()),
        lifetime: spec.lifetime,
        owner: options.owner.or(spec.job.runner),
        properties: options.properties.clone(),
        nesting: options.nesting,
        address_families: options.allowed_families.clone(),
        keep: options.keep,
        keep_for: options.keep_for,
        user: spec.job.user.clone(),
        entrypoint: spec.job.entrypoint.clone(),
        cache: spec.job.cache.clone(),
        service: spec.service.clone(),
        started_as: spec.name.clone(),
        slice_of: spec.paths.slice_of().cloned(),
    })
}
