//! Where a machine's things are on the host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::name::MachineName;

/// State of machines; on a tmpfs, so that a reboot of the host forgets them.
pub const STATE_ROOT: &str = "/run/nspawn-ci";
/// Layers of machines.
pub const LAYER_ROOT: &str = "/var/lib/nspawn-ci/machines";
/// Argument files of the administrator.
pub const CONFIG_ROOT: &str = "/etc/nspawn-ci";
/// The slice that holds all our machines.
pub const SLICE: &str = "machine-ci.slice";
/// The slice's cgroup.
pub const SLICE_CGROUP: &str = "/sys/fs/cgroup/machine.slice/machine-ci.slice";
/// Where the machine sees the agent's program, which is nspawn-run itself.
pub const AGENT_IN_MACHINE: &str = "/run/nspawn-ci/nspawn-run";
/// Where the machine sees the directory that the agent listens in.
pub const AGENT_DIR_IN_MACHINE: &str = "/run/nspawn-ci/agent";
/// The agent's socket in that directory.
pub const AGENT_SOCKET: &str = "socket";

const UNIT_PREFIX: &str = "nspawn-";
const UNIT_SUFFIX: &str = ".service";

/// The name of the machine whose [`MachinePaths::unit`] this is.
#[must_use]
pub fn name_of_unit(unit: &OsStr) -> Option<&OsStr> {
    let name = unit.as_bytes().strip_prefix(UNIT_PREFIX.as_bytes())?.strip_suffix(UNIT_SUFFIX.as_bytes())?;
    Some(OsStr::from_bytes(name))
}

/// All paths and names that follow from a machine's name.
#[derive(Clone, Debug)]
pub struct MachinePaths {
    name: MachineName,
}

impl MachinePaths {
    /// The paths of the machine `name`.
    #[must_use]
    pub fn new(name: &MachineName) -> Self {
        Self { name: name.clone() }
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

    /// What is written down about the machine: see [`crate::state`].
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.state_dir().join("state.json")
    }

    /// There from the end of the machine's `nspawn-prepare` to the beginning of its `nspawn-cleanup`.
    #[must_use]
    pub fn ready_mark(&self) -> PathBuf {
        self.state_dir().join("ready")
    }

    /// There once something has failed in the machine: see [`crate::keep`].
    #[must_use]
    pub fn failure_mark(&self) -> PathBuf {
        self.state_dir().join("failed")
    }

    /// Until when the machine is kept: see [`crate::keep`].
    #[must_use]
    pub fn kept_mark(&self) -> PathBuf {
        self.state_dir().join("kept")
    }

    /// Held while the machine is made or removed.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state_dir().join("lock")
    }

    // What the machine is shown of the host's files is the machine's own, in its layer: its root can
    // make a read-only bind mount writable again, and fill the file system that it is on.

    /// The directory that the agent listens in, shown writable to the machine.
    #[must_use]
    pub fn agent_dir(&self) -> PathBuf {
        self.layer().join("agent")
    }

    /// The agent's program, shown to the machine.
    #[must_use]
    pub fn agent_program(&self) -> PathBuf {
        self.layer().join("nspawn-run")
    }

    /// The agent's unit file, shown to the machine.
    #[must_use]
    pub fn agent_unit(&self) -> PathBuf {
        self.layer().join("agent.service")
    }

    /// Mount point of the image, in the unit's own mount namespace only.
    #[must_use]
    pub fn image_mount(&self) -> PathBuf {
        self.state_dir().join("image")
    }

    /// Mount point of the machine's root, in the unit's own mount namespace only.
    #[must_use]
    pub fn root_mount(&self) -> PathBuf {
        self.state_dir().join("root")
    }

    /// The machine's writable layer.
    #[must_use]
    pub fn layer(&self) -> PathBuf {
        Path::new(LAYER_ROOT).join(self.name.as_str())
    }

    /// What the machine has written, as overlayfs keeps it.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.layer().join("upper")
    }

    /// What overlayfs works in.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.layer().join("work")
    }

    /// The unit that is the machine.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("{UNIT_PREFIX}{}{UNIT_SUFFIX}", self.name)
    }

    /// The unit's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        Path::new(SLICE_CGROUP).join(self.unit())
    }

    /// systemd-machined's note of the machine, there as long as it is registered (see sd-login(3)).
    #[must_use]
    pub fn registration(&self) -> PathBuf {
        Path::new("/run/systemd/machines").join(self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_the_names_of_their_machines() {
        let paths = MachinePaths::new(&MachineName::new("a.b").unwrap());
        assert_eq!(name_of_unit(paths.unit().as_ref()).unwrap(), "a.b");
        for other in ["a.service", "nspawn-a.scope", "cgroup.procs"] {
            assert_eq!(name_of_unit(other.as_ref()), None);
        }
        assert!(SLICE_CGROUP.ends_with(SLICE));
    }
}
