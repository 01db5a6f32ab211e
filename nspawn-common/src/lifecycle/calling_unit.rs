//! Checks the unit that these programs run in, for example a hardened unit of GitLab Runner.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};

use crate::error;
use crate::image::lookup::LOCK_ROOT;
use crate::machine::paths::{LAYER_ROOT, STATE_ROOT};
use crate::sys;
use crate::systemd::transient_unit::TransientUnit;

/// Capabilities that creating and reaching a machine requires: name and number (capabilities(7)).
const CAPABILITIES: [(&str, u32); 3] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_SYS_PTRACE", 19),
];
/// The cgroup of the host's PID 1, as systemd creates it.
const INIT_CGROUP: &str = "/init.scope";
/// Minimum of free space in [`STATE_ROOT`] for a machine's state and systemd's files about it, in
/// bytes.
const STATE_ROOM: u64 = 256 << 10;

/// Returns whether this process runs as root, which creating and removing machines requires.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Refuses a host, or a unit of it, in which no machine can be created.
///
/// # Errors
/// One line that names what to change.
pub fn check() -> Result<()> {
    check_unit()?;
    check_writable()?;
    check_room()
}

/// Refuses a host without cgroups of version 2, and a process that does not see the host's PID 1.
///
/// # Errors
/// One line that names what to change.
pub fn check_view() -> Result<()> {
    let is_unified =
        statfs("/sys/fs/cgroup").is_ok_and(|there| there.filesystem_type() == CGROUP2_SUPER_MAGIC);
    check_cgroups(
        is_unified,
        fs::read_to_string("/proc/1/cgroup").ok().as_deref(),
    )
}

fn check_unit() -> Result<()> {
    check_view()?;
    check_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())?;
    if let Err(error) = fs::read_link("/proc/1/ns/mnt") {
        bail!(
            "this process can't see the namespaces of the host's PID 1 ({error}); set PrivateUsers=no in the unit that \
             it runs in"
        );
    }
    if let Err(Errno::ENOSYS | Errno::EPERM) =
        File::open("/").map_or(Ok(()), |root| open_here(&root))
    {
        bail!(
            "the system call openat2 is forbidden; set RestrictSUIDSGID=no in the unit that this runs in, and allow it \
             in SystemCallFilter="
        );
    }
    Ok(())
}

fn open_here(root: &File) -> nix::Result<()> {
    sys::fs::open_in_root(root, ".", OFlag::O_PATH).map(drop)
}

fn check_cgroups(is_unified: bool, of_init: Option<&str>) -> Result<()> {
    if !is_unified {
        bail!(
            "this host's cgroups are not of version 2, which machines need; remove systemd.unified_cgroup_hierarchy=0 \
             from the kernel command line, or add systemd.unified_cgroup_hierarchy=1 there, and reboot"
        );
    }
    let place = of_init.and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::")));
    if place.is_some_and(|place| place != INIT_CGROUP) {
        bail!(
            "this process does not see the host's PID 1 and its cgroup; set PrivatePIDs=no and ProtectControlGroups=no \
             in the unit that it runs in"
        );
    }
    Ok(())
}

/// Checks the capabilities in a text of proc_pid_status(5).
fn check_capabilities(status: &str) -> Result<()> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()) else {
        return Ok(());
    };
    let missing = CAPABILITIES
        .iter()
        .filter(|(_, number)| effective & (1 << number) == 0);
    let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        let missing = missing.join(" ");
        bail!(
            "root lacks {missing} here; add it to CapabilityBoundingSet= of the unit that this runs in"
        );
    }
    Ok(())
}

/// Refuses a host, or a unit of it, where the directories of machines can't be written to.
///
/// # Errors
/// One line that names what to change.
pub fn check_writable() -> Result<()> {
    for directory in [STATE_ROOT, LAYER_ROOT, LOCK_ROOT] {
        let place = nearest(Path::new(directory));
        if access(&place, AccessFlags::W_OK) == Err(Errno::EROFS) {
            bail!(
                "{} is read-only here, and machines need {directory}; {}",
                place.display(),
                remedy_for_read_only()
            );
        }
    }
    Ok(())
}

fn remedy_for_read_only() -> &'static str {
    if has_own_mounts() {
        "add ReadWritePaths=/run /var/lib /var/cache to the unit that this runs in"
    } else {
        "mount a writable file system there"
    }
}

// The directory itself, or what there is of the way to it.
fn nearest(directory: &Path) -> PathBuf {
    directory
        .ancestors()
        .find(|place| place.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

// Another machine's state takes room.
fn check_room() -> Result<()> {
    let Ok(there) = statfs(&nearest(Path::new(STATE_ROOT))) else {
        return Ok(());
    };
    let free = there.blocks_available() * u64::try_from(there.block_size()).unwrap_or(0);
    // A file system without a fixed number of inodes says 0 of them.
    let has_inodes = there.files() == 0 || there.files_free() > STATE_ROOM >> 12;
    if free < STATE_ROOM || !has_inodes {
        bail!(
            "/run, which holds the state of machines, is full: {} KiB and {} inodes are free; remove what fills it, or \
             enlarge it: mount -o remount,size=… /run",
            free >> 10,
            there.files_free()
        );
    }
    Ok(())
}

/// Returns whether what this process mounts stays out of the host's view (`PrivateTmp=` and others,
/// systemd.exec(5)).
#[must_use]
pub fn has_own_mounts() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    matches!((namespace("self"), namespace("1")), (Ok(own), Ok(host)) if own != host)
}

/// Returns `command`, run by the host's systemd where this process has mounts of its own.
#[must_use]
pub fn on_host(command: Vec<OsString>) -> Vec<OsString> {
    if !has_own_mounts() {
        return command;
    }
    let unit = TransientUnit::new("exec");
    unit.options(["--quiet", "--wait", "--pipe"])
        .command(command)
}

/// Returns what the unit that this runs in takes from it, if anything, instead of the `error` that
/// this has caused.
#[must_use]
pub fn explain(error: Error) -> Error {
    if error::is_job_fault(&error) || error::is_interrupted(&error) {
        return error;
    }
    check_unit()
        .and_then(|()| check_writable())
        .err()
        .unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_version_1_and_of_another_namespace_are_refused() {
        assert!(check_cgroups(true, Some("0::/init.scope\n")).is_ok());
        assert!(check_cgroups(true, Some("3:memory:/x\n0::/init.scope\n")).is_ok());
        assert!(check_cgroups(true, None).is_ok());
        // Hybrid and version 1: /sys/fs/cgroup is a tmpfs.
        let error = check_cgroups(false, Some("12:cpu:/\n0::/init.scope\n"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("add systemd.unified_cgroup_hierarchy=1"),
            "{error}"
        );
        for other in [
            "0::/../../init.scope\n",
            "0::/\n",
            "0::/system.slice/x.service\n",
        ] {
            let error = check_cgroups(true, Some(other)).unwrap_err().to_string();
            assert!(error.contains("ProtectControlGroups=no"), "{error}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert!(check_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").is_ok());
        assert!(check_capabilities("").is_ok());
        let error = check_capabilities("CapEff:\t000001fffff7fffe\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("root lacks CAP_CHOWN CAP_SYS_PTRACE here"),
            "{error}"
        );
    }

    #[test]
    fn the_nearest_directory_that_exists_is_found() {
        assert_eq!(
            nearest(Path::new("/proc/no/such/thing")),
            Path::new("/proc")
        );
        assert_eq!(nearest(Path::new("/proc")), Path::new("/proc"));
    }
}
