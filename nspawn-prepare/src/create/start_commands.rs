//! Command lines that start a machine: its unit, and the network of that.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nspawn_common::command::argv;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::lifecycle::{calling_unit, limits};
use nspawn_common::machine::paths::{AGENT_IN_MACHINE, AGENT_MOUNT_IN_MACHINE, UNITS_IN_MACHINE};
use nspawn_common::systemd::nspawn::{Bind, Nspawn, Payload};
use nspawn_common::systemd::transient_unit::MachineUnit;

use crate::create::spec::MachineSpec;
use crate::device::Node;
use crate::internal_form::Internal;
use crate::launcher;
use crate::launcher::boot_units::AGENT_UNIT;
use crate::layer;
use crate::layer::CONTAINER_DIRECTORIES;
use crate::network::pasta;

/// Time for which systemd waits longer for the boot than `--timeout`, so that the machine can be
/// queried before that.
const START_MARGIN: Duration = Duration::from_secs(30);

/// System calls that need no privileges, and that systemd-nspawn refuses by EPERM, which libraries
/// do not expect.
///
/// systemd-nspawn ignores names that it does not know, and refuses such calls by ENOSYS. The
/// launcher's own filter decides on those of keyrings: with `--nesting` they are allowed, since the
/// kernel separates users of namespaces. Otherwise a machine could read any key of the host that is
/// readable by all. Locked memory is bounded by RLIMIT_MEMLOCK, and counts towards the machine's
/// memory limit. fanotify_init(2) shows users without privileges only their own files.
const SYSTEM_CALLS: &str = "--system-call-filter=add_key keyctl request_key \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self \
    pkey_alloc pkey_free pkey_mprotect \
    mlock mlock2 mlockall munlock munlockall \
    fanotify_init fanotify_mark \
    cachestat fchmodat2 file_getattr file_setattr futex_requeue futex_wait futex_wake getxattrat \
    listmount listxattrat lsm_get_self_attr lsm_list_modules lsm_set_self_attr map_shadow_stack mseal \
    open_tree_attr pidfd_getfd process_mrelease removexattrat setxattrat statmount";

/// Units that are of no use in a machine.
const MASKED_UNITS: [&str; 9] = [
    "tmp.mount",             // large builds in /tmp belong on the layer, not in memory
    "console-getty.service", // the console is read-only, so nobody can log in there
    "systemd-ask-password-console.path", // for the same reason, nobody can enter a password there
    "systemd-ask-password-wall.path", // jobs have no terminal on which it could ask for one
    "systemd-remount-fs.service", // the image's fstab names disks that the machine does not have
    "dev-hugepages.mount",   // the kernel refuses huge pages to containers
    "sys-fs-fuse-connections.mount", // and the control of FUSE, which works without it
    "run-lock.mount",        // a directory in /run is enough
    "systemd-journal-flush.service", // the journal need not be on disk, because it is deleted with the machine
];

/// Commands that start a machine, in the order of the fields.
pub struct StartCommands {
    pub unit: Vec<OsString>,
    /// Present with `--network=nat`.
    pub network: Option<NetworkCommands>,
    /// Present for a machine without an init that a job needs something of.
    pub attach: Option<Vec<OsString>>,
}

/// Commands that connect a machine to the host's network while it boots.
pub struct NetworkCommands {
    pub connect: Vec<OsString>,
    /// Waits for the start of the machine's unit, for which the unit's own command does not wait.
    pub wait: Vec<OsString>,
}

impl StartCommands {
    /// Returns the commands that start a machine: one without an init for each command in it, any
    /// other once.
    pub fn new(spec: &MachineSpec) -> Result<Self> {
        let options = &spec.options;
        let attaches = options.init == Init::None && spec.job.need_attaching();
        Ok(Self {
            unit: unit(spec)?,
            network: match options.network {
                Network::Nat => Some(network(spec)?),
                _ => None,
            },
            attach: if attaches { Some(attach(spec)?) } else { None },
        })
    }

    /// Returns the commands as a list.
    pub fn into_list(self) -> Vec<Vec<OsString>> {
        let mut list = vec![self.unit];
        if let Some(network) = self.network {
            list.extend([network.connect, network.wait]);
        }
        list.extend(self.attach);
        list
    }
}

/// Returns the command that attaches the job's cache and services to the running machine.
pub fn attach(spec: &MachineSpec) -> Result<Vec<OsString>> {
    let form = Internal::Attach {
        machine: spec.name.clone(),
        cache_size: spec.job.cache_size,
    };
    // The caller's unit may hide loop devices by PrivateDevices=, for example.
    Ok(calling_unit::on_host(form.argv()?))
}

fn network(spec: &MachineSpec) -> Result<NetworkCommands> {
    let options = &spec.options;
    Ok(NetworkCommands {
        connect: pasta::command(&spec.name, options.timeout, &options.allowed_destinations)?,
        wait: argv(["systemctl", "start", &spec.paths.unit()]),
    })
}

fn unit(spec: &MachineSpec) -> Result<Vec<OsString>> {
    let options = &spec.options;
    let defaults = limits::DEFAULTS.iter().map(OsString::from);
    let devices = spec.device_nodes();
    let properties: Vec<_> = defaults
        .chain(devices.iter().map(Node::to_property))
        .chain(options.properties.iter().cloned())
        .collect();
    let unit = MachineUnit {
        name: &spec.name,
        slice: spec.paths.slice(),
        image: &spec.image.name,
        timeout: options.timeout + START_MARGIN,
        lifetime: spec.lifetime,
        // pasta connects the machine while it boots.
        is_waited_for: options.network != Network::Nat,
        properties: &properties,
    };
    let launch = Internal::Launch {
        machine: spec.name.clone(),
        command: nspawn(spec, &devices),
    };
    Ok(unit.start_command(&launch.argv()?))
}

fn nspawn(spec: &MachineSpec, devices: &[Node]) -> Vec<OsString> {
    let nspawn = Nspawn {
        name: &spec.name,
        root: spec.paths.root_mount(),
        binds: binds(spec),
        network: &spec.options.network,
        is_read_only: spec.options.layer == Layer::None,
        options: other_options(spec, devices),
        payload: payload(spec),
    };
    nspawn.command()
}

fn payload(spec: &MachineSpec) -> Payload {
    let agent =
        |option: &str| Payload::Command(vec![AGENT_IN_MACHINE.to_owned(), option.to_owned()]);
    match spec.options.init {
        Init::Systemd => Payload::Boot(boot_arguments(spec)),
        Init::Stub => agent("--agent"),
        Init::None => agent("--agent-once"),
    }
}

fn boot_arguments(spec: &MachineSpec) -> Vec<String> {
    let mut arguments = vec![format!("systemd.wants={AGENT_UNIT}")];
    arguments.extend(MASKED_UNITS.map(|unit| format!("systemd.mask={unit}")));
    arguments.extend(spec.options.boot_arguments.iter().cloned());
    arguments
}

fn binds(spec: &MachineSpec) -> Vec<Bind> {
    let agent = Bind::writable(&spec.paths.agent_mount(), Path::new(AGENT_MOUNT_IN_MACHINE));
    let mut binds = vec![agent];
    binds.extend(container_binds(spec));
    let has_user_namespace = spec.options.private_users != PrivateUsers::No;
    for bind in spec.options.binds.iter().cloned() {
        binds.push(if has_user_namespace {
            bind.with_owner()
        } else {
            bind
        });
    }
    binds
}

// An overlay can't be the upper layer of another one, so images of containers are stored next to
// the machine's overlay.
fn container_binds(spec: &MachineSpec) -> Vec<Bind> {
    let options = &spec.options;
    if !options.nesting || options.layer == Layer::Snapshot {
        return Vec::new();
    }
    let root = spec
        .paths
        .layer_root(options.layer, spec.layer_size.is_some());
    let bind = |name: &str| Bind::writable(&root.join(name), &Path::new("/var/lib").join(name));
    CONTAINER_DIRECTORIES.map(bind).into()
}

fn other_options(spec: &MachineSpec, devices: &[Node]) -> Vec<OsString> {
    let mut options = Vec::new();
    if spec.options.init == Init::Systemd {
        // systemd searches these directories before its own (systemd.unit(5),
        // systemd.generator(7)).
        options.push(format!("--setenv=SYSTEMD_UNIT_PATH={UNITS_IN_MACHINE}:").into());
        options
            .push(format!("--setenv=SYSTEMD_GENERATOR_PATH={UNITS_IN_MACHINE}/generators:").into());
        let (name, value) = launcher::NO_PRESSURE;
        options.push(format!("--setenv={name}={value}").into());
    }
    options.push(SYSTEM_CALLS.into());
    if spec.options.layer == Layer::None {
        options.extend(layer::commands::temporary_options(
            &spec.paths,
            spec.layer_size,
        ));
    }
    options.extend(devices.iter().map(Node::to_option));
    options.extend(spec.options.rlimits.iter().cloned());
    options.extend(spec.options.privileges.iter().cloned());
    options
}
