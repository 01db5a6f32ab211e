//! Where a machine's things are on the host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::layer::Layer;
use crate::machine::name::MachineName;

/// State of machines; on a tmpfs, so that a reboot of the host forgets them.
pub const STATE_ROOT: &str = "/run/nspawn-ci";
/// Layers of machines.
pub const LAYER_ROOT: &str = "/var/lib/nspawn-ci/machines";
/// Caches of jobs, each a file system in a file.
pub const CACHE_ROOT: &str = "/var/cache/nspawn-ci";
/// Argument files of the administrator.
pub const CONFIG_ROOT: &str = "/etc/nspawn-ci";
/// The slice that holds all our machines.
pub const SLICE: &str = "machine-ci.slice";
/// The slice's cgroup.
pub const SLICE_CGROUP: &str = "/sys/fs/cgroup/machine.slice/machine-ci.slice";
/// The cgroup below the unit's that systemd-nspawn moves the machine to.
pub const PAYLOAD_CGROUP: &str = "payload";
/// The cgroup below the unit's that systemd-nspawn moves itself to, after the machine.
pub const SUPERVISOR_CGROUP: &str = "supervisor";
/// What machines are kept ready: a directory that no machine's name can be.
pub const POOL_ROOT: &str = "/run/nspawn-ci/.standby";
/// Where the machine sees [`MachinePaths::agent_mount`].
pub const AGENT_MOUNT_IN_MACHINE: &str = "/run/nspawn-ci";
/// Where the machine's systemd finds the agent's unit.
pub const UNITS_IN_MACHINE: &str = "/run/nspawn-ci/units";
/// Where the machine has the agent's program.
pub const AGENT_IN_MACHINE: &str = "/run/nspawn-ci/nspawn-run";
/// The directory of the agent's socket, in [`MachinePaths::agent_mount`].
pub const AGENT_DIRECTORY: &str = "agent";
/// The agent's socket, there.
pub const AGENT_SOCKET: &str = "agent/socket";
/// A pipe, there, that the agent writes to once it listens.
pub const AGENT_READY_FIFO: &str = "agent/listens";

const UNIT_PREFIX: &str = "nspawn-";
const NETWORK_PREFIX: &str = "pasta-";
const COMMAND_PREFIX: &str = "command-";
const UNIT_SUFFIX: &str = ".service";

/// The name of the machine that this unit belongs to.
#[must_use]
pub fn name_of_unit(unit: &OsStr) -> Option<&OsStr> {
    let name = unit.as_bytes().strip_suffix(UNIT_SUFFIX.as_bytes())?;
    let prefixes = [UNIT_PREFIX, NETWORK_PREFIX, COMMAND_PREFIX];
    prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix.as_bytes()))
        .map(OsStr::from_bytes)
}

/// Returns the name of the unit of a machine that is started under this name.
#[must_use]
pub fn unit_of(name: &MachineName) -> String {
    format!("{UNIT_PREFIX}{name}{UNIT_SUFFIX}")
}

/// Files, units and cgroups of a machine.
///
/// A standby machine gets another name when it is taken over, but its units can't be renamed. So the units are named
/// after the name that the machine was started under, which the machine's state records. Of an existing machine use
/// [`crate::machine::state::State::paths`] or [`crate::machine::State::paths_of`].
#[derive(Clone, Debug)]
pub struct MachinePaths {
    name: MachineName,
    started_as: MachineName,
}

impl MachinePaths {
    /// Returns the paths of a machine that is started under its own name, or of which only files matter.
    #[must_use]
    pub fn named(name: &MachineName) -> Self {
        Self::started_as(name, name)
    }

    /// Returns the paths of the machine `name`, whose units are named after `started_as`.
    #[must_use]
    pub fn started_as(name: &MachineName, started_as: &MachineName) -> Self {
        Self {
            name: name.clone(),
            started_as: started_as.clone(),
        }
    }

    /// Returns the name that the machine was started under.
    #[must_use]
    pub fn start_name(&self) -> &MachineName {
        &self.started_as
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// The machine's directory under [`STATE_ROOT`].
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(self.name.as_str())
    }

    /// What is written down about the machine: see [`crate::machine::state`]. Locked, with others, by every command that
    /// runs in a machine without an init.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.state_dir().join("state.json")
    }

    /// There from the end of the machine's `nspawn-prepare` to the beginning of its `nspawn-cleanup`.
    #[must_use]
    pub fn ready_mark(&self) -> PathBuf {
        self.state_dir().join("ready")
    }

    /// There once something has failed in the machine: see [`crate::lifecycle::retention`].
    #[must_use]
    pub fn failure_mark(&self) -> PathBuf {
        self.state_dir().join("failed")
    }

    /// There while the machine stands by, or is made for that: which of [`POOL_ROOT`] it belongs to.
    #[must_use]
    pub fn standby_mark(&self) -> PathBuf {
        self.state_dir().join("standby")
    }

    /// What a machine that stands by was made of: there once it may be taken.
    #[must_use]
    pub fn fingerprint_file(&self) -> PathBuf {
        self.state_dir().join("specification")
    }

    /// The properties that a standby machine is registered with: see [`crate::systemd::machined`].
    #[must_use]
    pub fn registration_record(&self) -> PathBuf {
        self.state_dir().join("registration")
    }

    /// Why its unit could not start it.
    #[must_use]
    pub fn start_error_file(&self) -> PathBuf {
        self.state_dir().join("refusal")
    }

    /// Until when the machine is kept: see [`crate::lifecycle::retention`].
    #[must_use]
    pub fn kept_mark(&self) -> PathBuf {
        self.state_dir().join("kept")
    }

    /// Held while the machine is made or removed.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state_dir().join("lock")
    }

    /// The range of user ids that the machine has: see [`crate::lifecycle::uid_range`].
    #[must_use]
    pub fn uid_range_file(&self) -> PathBuf {
        self.state_dir().join("users")
    }

    // What is mounted is mounted in the unit's own mount namespace alone; elsewhere these are empty.

    /// Mount point of what the machine is shown of these programs: a small file system of its own, which
    /// its root may fill and change without harm to anybody else.
    #[must_use]
    pub fn agent_mount(&self) -> PathBuf {
        self.state_dir().join("shown")
    }

    /// The directory that the agent listens in, shown writable to the machine.
    #[must_use]
    pub fn agent_dir(&self) -> PathBuf {
        self.agent_mount().join(AGENT_DIRECTORY)
    }

    /// The agent's program, shown to the machine.
    #[must_use]
    pub fn agent_program(&self) -> PathBuf {
        self.agent_mount().join("nspawn-run")
    }

    /// The directory of the agent's unit file, shown to the machine.
    #[must_use]
    pub fn agent_units(&self) -> PathBuf {
        self.agent_mount().join("units")
    }

    /// Mount point of the image.
    #[must_use]
    pub fn image_mount(&self) -> PathBuf {
        self.state_dir().join("image")
    }

    /// Mount point of the machine's root.
    #[must_use]
    pub fn root_mount(&self) -> PathBuf {
        self.state_dir().join("root")
    }

    /// The machine's writable layer.
    #[must_use]
    pub fn layer(&self) -> PathBuf {
        Path::new(LAYER_ROOT).join(self.name.as_str())
    }

    /// Directory of the layer's directories. A layer of limited size on disk is a file system of its own.
    #[must_use]
    pub fn layer_root(&self, layer: Layer, is_sized: bool) -> PathBuf {
        match layer {
            Layer::Disk if !is_sized => self.layer(),
            Layer::Snapshot => self.layer(),
            _ => self.disk_mount(),
        }
    }

    /// The root of a machine whose layer is a copy of its image.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.layer().join("root")
    }

    /// The file system in a file that holds a layer of limited size.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.layer().join("disk")
    }

    /// Mount point of [`MachinePaths::disk`], or of a layer in memory.
    #[must_use]
    pub fn disk_mount(&self) -> PathBuf {
        self.state_dir().join("disk")
    }

    /// Mount point of the project's cache, before it is shown to the machine.
    #[must_use]
    pub fn cache_mount(&self) -> PathBuf {
        self.state_dir().join("cache")
    }

    /// The unit that is the machine.
    #[must_use]
    pub fn unit(&self) -> String {
        unit_of(&self.started_as)
    }

    /// The unit's file, there as long as systemd knows the unit (org.freedesktop.systemd1(5), transient units).
    #[must_use]
    pub fn unit_file(&self) -> PathBuf {
        Path::new("/run/systemd/transient").join(self.unit())
    }

    /// The unit that connects it, where it has a network of its own.
    #[must_use]
    pub fn network_unit(&self) -> String {
        format!("{NETWORK_PREFIX}{}{UNIT_SUFFIX}", self.started_as)
    }

    /// The unit that runs what a machine is for, where it is a service of a job.
    #[must_use]
    pub fn command_unit(&self) -> String {
        format!("{COMMAND_PREFIX}{}{UNIT_SUFFIX}", self.started_as)
    }

    /// The unit's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        Path::new(SLICE_CGROUP).join(self.unit())
    }

    /// The cgroup of [`MachinePaths::network_unit`].
    #[must_use]
    pub fn network_cgroup(&self) -> PathBuf {
        Path::new(SLICE_CGROUP).join(self.network_unit())
    }

    /// The cgroup of [`MachinePaths::command_unit`].
    #[must_use]
    pub fn command_cgroup(&self) -> PathBuf {
        Path::new(SLICE_CGROUP).join(self.command_unit())
    }

    /// The file of systemd-machined that exists as long as the machine is registered (sd-login(3)).
    #[must_use]
    pub fn registration_file(&self) -> PathBuf {
        Path::new("/run/systemd/machines").join(self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_the_names_of_their_machines() {
        let paths = MachinePaths::named(&MachineName::new("a.b").unwrap());
        assert_eq!(name_of_unit(paths.unit().as_ref()).unwrap(), "a.b");
        assert_eq!(name_of_unit(paths.network_unit().as_ref()).unwrap(), "a.b");
        assert_eq!(name_of_unit(paths.command_unit().as_ref()).unwrap(), "a.b");
        for other in ["a.service", "nspawn-a.scope", "cgroup.procs"] {
            assert_eq!(name_of_unit(other.as_ref()), None);
        }
        assert!(SLICE_CGROUP.ends_with(SLICE));
    }
}
