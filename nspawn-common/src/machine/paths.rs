//! Files, units and cgroups of a machine on the host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::layer::Layer;
use crate::machine::name::MachineName;

/// Directory of the machines' states, on a tmpfs, so that a reboot of the host clears them.
pub const STATE_ROOT: &str = "/run/nspawn-ci";
/// Directory of the machines' layers.
pub const LAYER_ROOT: &str = "/var/lib/nspawn-ci/machines";
/// Directory of the caches of jobs, each a file system in a file.
pub const CACHE_ROOT: &str = "/var/cache/nspawn-ci";
/// Directory of the administrator's argument files.
pub const CONFIG_ROOT: &str = "/etc/nspawn-ci";
/// Slice of all machines.
pub const SLICE: &str = "machine-ci.slice";
/// Directory of the settings that `systemctl set-property --runtime` writes (systemd.unit(5)).
const RUNTIME_SETTINGS: &str = "/run/systemd/system.control";
/// Cgroup of the slice.
pub const SLICE_CGROUP: &str = "/sys/fs/cgroup/machine.slice/machine-ci.slice";
/// Name of the cgroup, below that of the unit, to which systemd-nspawn moves the machine.
pub const PAYLOAD_CGROUP: &str = "payload";
/// Cgroup below that of the unit in which the recorder of the console is. If the unit has limits,
/// the launcher is there as well, and systemd-nspawn until it moves itself to
/// [`SUPERVISOR_CGROUP`].
pub const LAUNCHER_CGROUP: &str = "launcher";
/// Name of the cgroup, below that of the unit, to which systemd-nspawn moves itself, after it has
/// moved the machine.
pub const SUPERVISOR_CGROUP: &str = "supervisor";
/// Directory of the standby pools. No machine can have its name.
pub const POOL_ROOT: &str = "/run/nspawn-ci/.standby";
/// Path of [`MachinePaths::agent_mount`] in the machine.
pub const AGENT_MOUNT_IN_MACHINE: &str = "/run/nspawn-ci";
/// Directory of the agent's unit file in the machine.
pub const UNITS_IN_MACHINE: &str = "/run/nspawn-ci/units";
/// Path of the agent's program in the machine.
pub const AGENT_IN_MACHINE: &str = "/run/nspawn-ci/nspawn-run";
/// The directory of the agent's socket, in [`MachinePaths::agent_mount`].
pub const AGENT_DIRECTORY: &str = "agent";
/// The agent's socket, in [`MachinePaths::agent_mount`].
pub const AGENT_SOCKET: &str = "agent/socket";
/// FIFO in [`MachinePaths::agent_mount`] that the agent writes to once it accepts connections.
pub const AGENT_READY_FIFO: &str = "agent/listens";

const UNIT_PREFIX: &str = "nspawn-";
const NETWORK_PREFIX: &str = "pasta-";
const COMMAND_PREFIX: &str = "command-";
const UNIT_SUFFIX: &str = ".service";
const SLICE_SUFFIX: &str = ".slice";

/// Returns the name of the machine that a unit belongs to.
#[must_use]
pub fn name_of_unit(unit: &OsStr) -> Option<&OsStr> {
    let name = unit.as_bytes().strip_suffix(UNIT_SUFFIX.as_bytes())?;
    let prefixes = [UNIT_PREFIX, NETWORK_PREFIX, COMMAND_PREFIX];
    prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix.as_bytes()))
        .map(OsStr::from_bytes)
}

/// Returns the name of the unit of a machine that is started under the name `name`.
#[must_use]
pub fn unit_of(name: &MachineName) -> String {
    format!("{UNIT_PREFIX}{name}{UNIT_SUFFIX}")
}

/// Returns the name of the slice that the machines of a job with services share.
///
/// A dash in the name of a slice separates it from the slice above it (systemd.slice(5)), and a
/// machine's name has no `_`.
#[must_use]
pub fn slice_of_job(job: &MachineName) -> String {
    let stem = SLICE.trim_end_matches(SLICE_SUFFIX);
    format!("{stem}-{}{SLICE_SUFFIX}", job.as_str().replace('-', "_"))
}

/// Returns the name of the job whose machines share the slice of this name.
#[must_use]
pub fn job_of_slice(slice: &OsStr) -> Option<MachineName> {
    let stem = SLICE.trim_end_matches(SLICE_SUFFIX);
    let job = slice.to_str()?.strip_suffix(SLICE_SUFFIX)?;
    let job = job.strip_prefix(stem)?.strip_prefix('-')?;
    MachineName::new(job.replace('_', "-")).ok()
}

/// Returns the cgroup of the slice that the machines of a job with services share.
#[must_use]
pub fn slice_cgroup_of_job(job: &MachineName) -> PathBuf {
    Path::new(SLICE_CGROUP).join(slice_of_job(job))
}

/// Returns the directory with the limits of the slice that the machines of a job share.
#[must_use]
pub fn slice_settings_of_job(job: &MachineName) -> PathBuf {
    Path::new(RUNTIME_SETTINGS).join(format!("{}.d", slice_of_job(job)))
}

/// Files, units and cgroups of a machine.
///
/// A standby machine gets another name when it is taken over, but its units can't be renamed. So
/// the units have the name under which the machine was started, which the machine's state records.
/// For an existing machine, use [`crate::machine::state::State::paths`] or
/// [`crate::machine::state::State::paths_of`].
#[derive(Clone, Debug)]
pub struct MachinePaths {
    name: MachineName,
    started_as: MachineName,
    /// Job in whose slice the machine's unit is, if the job has services.
    slice_of: Option<MachineName>,
}

impl MachinePaths {
    /// Returns the paths of a machine that is started under its own name.
    ///
    /// They also serve a caller that uses only files, since these have the machine's own name.
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
            slice_of: None,
        }
    }

    /// Returns the paths of the same machine in the slice of this job, if any.
    #[must_use]
    pub fn in_slice_of(self, job: Option<MachineName>) -> Self {
        Self {
            slice_of: job,
            ..self
        }
    }

    /// Returns the job in whose slice the machine's unit is, if the job has services.
    #[must_use]
    pub fn slice_of(&self) -> Option<&MachineName> {
        self.slice_of.as_ref()
    }

    /// Returns the name of the slice that the machine's unit is in.
    #[must_use]
    pub fn slice(&self) -> String {
        self.slice_of
            .as_ref()
            .map_or_else(|| SLICE.to_owned(), slice_of_job)
    }

    /// Returns the name that the machine was started under.
    #[must_use]
    pub fn start_name(&self) -> &MachineName {
        &self.started_as
    }

    /// Returns the machine's name.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// Returns the machine's directory under [`STATE_ROOT`].
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(self.name.as_str())
    }

    /// Returns the file of the machine's state: see [`crate::machine::state`].
    ///
    /// Each command in a machine without an init holds a shared lock of this file.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.state_dir().join("state.json")
    }

    /// Returns the mark of a machine that is ready.
    ///
    /// It exists from the end of the machine's `nspawn-prepare` to the beginning of its
    /// `nspawn-cleanup`.
    #[must_use]
    pub fn ready_mark(&self) -> PathBuf {
        self.state_dir().join("ready")
    }

    /// Returns the mark of a machine whose boot or job has failed: see
    /// [`crate::lifecycle::retention`].
    #[must_use]
    pub fn failure_mark(&self) -> PathBuf {
        self.state_dir().join("failed")
    }

    /// Returns the mark of a standby machine, which is written before the machine starts.
    ///
    /// It contains the name of the pool in [`POOL_ROOT`].
    #[must_use]
    pub fn standby_mark(&self) -> PathBuf {
        self.state_dir().join("standby")
    }

    /// Returns the file of a standby machine's fingerprint, which exists while the machine can be
    /// taken over.
    #[must_use]
    pub fn fingerprint_file(&self) -> PathBuf {
        self.state_dir().join("specification")
    }

    /// Returns the file with the properties under which a standby machine is registered: see
    /// [`crate::systemd::machined`].
    #[must_use]
    pub fn registration_record(&self) -> PathBuf {
        self.state_dir().join("registration")
    }

    /// Returns the file in which the launcher records why it failed.
    #[must_use]
    pub fn start_error_file(&self) -> PathBuf {
        self.state_dir().join("refusal")
    }

    /// Returns the file with the last output of the machine's console: see
    /// [`crate::machine::output`].
    #[must_use]
    pub fn console_output(&self) -> PathBuf {
        self.state_dir().join("console")
    }

    /// Returns the file with the last output of the service's command, if the machine is a service
    /// of a job.
    #[must_use]
    pub fn command_output(&self) -> PathBuf {
        self.state_dir().join("command")
    }

    /// Returns the mark of a kept machine, which contains the time until which it is kept: see
    /// [`crate::lifecycle::retention`].
    #[must_use]
    pub fn kept_mark(&self) -> PathBuf {
        self.state_dir().join("kept")
    }

    /// Returns the lock that a process holds while it creates or removes the machine.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state_dir().join("lock")
    }

    /// Returns the file with the machine's UID range: see [`crate::lifecycle::uid_range`].
    #[must_use]
    pub fn uid_range_file(&self) -> PathBuf {
        self.state_dir().join("users")
    }

    // The mounts exist only in the unit's mount namespace. Elsewhere the mount points are empty.

    /// Returns the mount point of the small tmpfs that carries the agent into the machine.
    ///
    /// The machine's root can fill and change it without an effect on the host.
    #[must_use]
    pub fn agent_mount(&self) -> PathBuf {
        self.state_dir().join("shown")
    }

    /// Returns the directory of the agent's socket, which is writable in the machine.
    #[must_use]
    pub fn agent_dir(&self) -> PathBuf {
        self.agent_mount().join(AGENT_DIRECTORY)
    }

    /// Returns the agent's program.
    #[must_use]
    pub fn agent_program(&self) -> PathBuf {
        self.agent_mount().join("nspawn-run")
    }

    /// Returns the directory of the agent's unit file.
    #[must_use]
    pub fn agent_units(&self) -> PathBuf {
        self.agent_mount().join("units")
    }

    /// Returns the mount point of the image.
    #[must_use]
    pub fn image_mount(&self) -> PathBuf {
        self.state_dir().join("image")
    }

    /// Returns the mount point of the machine's root.
    #[must_use]
    pub fn root_mount(&self) -> PathBuf {
        self.state_dir().join("root")
    }

    /// Returns the directory of the mount points of the sources of bind mounts.
    #[must_use]
    pub fn bind_sources(&self) -> PathBuf {
        self.state_dir().join("binds")
    }

    /// Returns the mount point of the file system with the machine's device nodes.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        self.state_dir().join("devices")
    }

    /// Returns the directory of the machine's layer on disk.
    #[must_use]
    pub fn layer(&self) -> PathBuf {
        Path::new(LAYER_ROOT).join(self.name.as_str())
    }

    /// Returns the directory that contains the upper and work directories of the layer's overlays.
    ///
    /// A layer of limited size on disk is a file system of its own.
    #[must_use]
    pub fn layer_root(&self, layer: Layer, is_sized: bool) -> PathBuf {
        match layer {
            Layer::Disk if !is_sized => self.layer(),
            Layer::Snapshot => self.layer(),
            _ => self.disk_mount(),
        }
    }

    /// Returns the root of a machine whose layer is a copy of its image.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.layer().join("root")
    }

    /// Returns the file with the file system of a layer of limited size.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.layer().join("disk")
    }

    /// Returns the mount point of [`MachinePaths::disk`], or of a layer in memory.
    #[must_use]
    pub fn disk_mount(&self) -> PathBuf {
        self.state_dir().join("disk")
    }

    /// Returns the mount point of the project's cache in the mount namespace of the unit.
    #[must_use]
    pub fn cache_mount(&self) -> PathBuf {
        self.state_dir().join("cache")
    }

    /// Returns the name of the machine's unit.
    #[must_use]
    pub fn unit(&self) -> String {
        unit_of(&self.started_as)
    }

    /// Returns the file of the machine's unit, which exists as long as the unit is loaded
    /// (org.freedesktop.systemd1(5), transient units).
    #[must_use]
    pub fn unit_file(&self) -> PathBuf {
        Path::new("/run/systemd/transient").join(self.unit())
    }

    /// Returns the name of pasta's unit, which exists if pasta connects the machine.
    #[must_use]
    pub fn network_unit(&self) -> String {
        format!("{NETWORK_PREFIX}{}{UNIT_SUFFIX}", self.started_as)
    }

    /// Returns the name of the unit of the service's command, if the machine is a service of a job.
    #[must_use]
    pub fn command_unit(&self) -> String {
        format!("{COMMAND_PREFIX}{}{UNIT_SUFFIX}", self.started_as)
    }

    /// Returns the cgroup of [`MachinePaths::unit`].
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        let slice = match &self.slice_of {
            Some(job) => slice_cgroup_of_job(job),
            None => SLICE_CGROUP.into(),
        };
        slice.join(self.unit())
    }

    /// Returns the cgroup of [`MachinePaths::network_unit`].
    #[must_use]
    pub fn network_cgroup(&self) -> PathBuf {
        Path::new(SLICE_CGROUP).join(self.network_unit())
    }

    /// Returns the cgroup of [`MachinePaths::command_unit`].
    #[must_use]
    pub fn command_cgroup(&self) -> PathBuf {
        Path::new(SLICE_CGROUP).join(self.command_unit())
    }

    /// Returns the file of systemd-machined that exists as long as the machine is registered
    /// (sd-login(3)).
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

    #[test]
    fn slice_of_a_job_is_directly_below_that_of_all_machines() {
        let job = MachineName::new("gitlab-7-00ff").unwrap();
        let paths = MachinePaths::named(&job).in_slice_of(Some(job.clone()));
        assert_eq!(paths.slice(), "machine-ci-gitlab_7_00ff.slice");
        assert_eq!(
            paths.cgroup(),
            Path::new(SLICE_CGROUP)
                .join("machine-ci-gitlab_7_00ff.slice/nspawn-gitlab-7-00ff.service")
        );
        assert_eq!(job_of_slice(paths.slice().as_ref()), Some(job));
        for other in [
            SLICE,
            "machine-ci-.slice",
            "machine-x.slice",
            "nspawn-a.service",
        ] {
            assert_eq!(job_of_slice(other.as_ref()), None);
        }
    }
}
