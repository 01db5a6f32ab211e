//! Checks that the host can run a machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use nspawn_common::command;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::{Image, ImageLock};
use nspawn_common::lifecycle::calling_unit;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::unit_files;
use nspawn_common::sys::fork;
use nspawn_common::systemd::nspawn::Bind;

use crate::device::Device;

/// Time limit for a query to a system service.
pub const QUERY_LIMIT: Duration = Duration::from_secs(10);

/// Number of inotify instances of a booted machine (measured with systemd 252 to 262).
const INOTIFY_INSTANCES: usize = 10;
/// Number of files that this process has open at a time, beside those that it always has.
const OPEN_FILES: usize = 10;
/// Number of ptys that a new machine takes: one for its console.
const PTYS: u32 = 1;

/// Refuses to run as another user than root. Only root can see the images.
pub fn check_root() -> Result<()> {
    if !calling_unit::is_root() {
        bail!("only root can make machines; try sudo");
    }
    Ok(())
}

/// Refuses a host that lacks systemd or systemd-nspawn.
pub fn check_host() -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        bail!("this host does not run systemd, which machines need");
    }
    if command::find_program("systemd-nspawn").is_none() {
        bail!("systemd-nspawn is not installed; install the package systemd-container");
    }
    calling_unit::check()
}

/// Finds an image and locks it, unless this process can't write to the directories of machines.
pub fn find_and_lock_image(reference: &str) -> Result<(Image, ImageLock)> {
    calling_unit::check_writable()?;
    lookup::find_and_lock(reference)
}

/// Refuses a host that can't mount disk images.
pub fn check_disk_images() -> Result<()> {
    if command::find_program("systemd-dissect").is_none() {
        bail!(
            "systemd-dissect, which mounts disk images, is not installed; install the package systemd-container"
        );
    }
    Ok(())
}

/// Refuses a machine name whose units would have the names of other programs' units.
///
/// systemd can't create a transient unit with the name of such a unit.
pub fn check_units(paths: &MachinePaths) -> Result<()> {
    if let Some(unit) = unit_files::find_foreign(paths) {
        bail!(
            "can't create machine {}: this host has a unit {unit}; choose another --name",
            paths.name()
        );
    }
    Ok(())
}

/// Refuses a network that this host or these options don't support.
pub fn check_network(network: &Network, users: PrivateUsers) -> Result<()> {
    match network {
        Network::Nat if command::find_program("pasta").is_none() => {
            bail!(
                "pasta, which connects machines, is not installed; install the package passt, or see --network"
            )
        }
        // systemd-nspawn enters the user namespace first, and may then not join another network
        // namespace.
        Network::Namespace(_) if users != PrivateUsers::No => {
            bail!("can't use --network={network} with a user namespace; add --private-users=no")
        }
        _ => Ok(()),
    }
}

/// Refuses bind mounts whose source is missing, or whose destination is not a path in the machine.
///
/// The machine's unit opens the sources, and does not see the mounts of the calling unit.
pub fn check_binds(binds: &[Bind]) -> Result<()> {
    for bind in binds {
        if !bind.destination().is_absolute() && bind.source().is_some() {
            bail!(
                "can't bind mount on {}: the path in the machine is not absolute; see --bind in systemd-nspawn(1)",
                bind.destination().display()
            );
        }
        bind.open_source(Path::new("/proc/1/root"))?;
    }
    Ok(())
}

/// Refuses devices that the host lacks, or that machines can't have.
pub fn check_devices(devices: &[Device]) -> Result<()> {
    devices.iter().try_for_each(Device::check)
}

/// Refuses a host that has reached a limit.
///
/// A machine would fail to boot, with messages that don't name the limit.
pub fn check_limits(users: PrivateUsers) -> Result<()> {
    check_open_files()?;
    // Any other machine has inotify instances of its own, or its launcher checks this.
    if users == PrivateUsers::No {
        check_inotify()?;
    }
    check_processes()?;
    check_ptys()
}

fn check_ptys() -> Result<()> {
    let names = ["nr", "max", "reserve"];
    let [Some(used), Some(max), Some(reserved)] = names.map(read_pty_sysctl) else {
        return Ok(());
    };
    // The kernel reserves some ptys for the host itself
    // (Documentation/admin-guide/sysctl/kernel.rst, "pty"), and machines can't get the last of the
    // others.
    if used + PTYS >= max.saturating_sub(reserved) {
        bail!(
            "the host has {used} of its {max} pseudoterminals in use; allow more: sysctl -w kernel.pty.max={}",
            2 * max
        );
    }
    Ok(())
}

fn read_pty_sysctl(name: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/sys/kernel/pty/{name}")).ok()?;
    text.trim().parse().ok()
}

/// Checks that this process can open the files that it needs at a time.
///
/// Otherwise it could begin to create a machine, and not remove it again.
fn check_open_files() -> Result<()> {
    let opened: io::Result<Vec<_>> = (0..OPEN_FILES).map(|_| File::open("/dev/null")).collect();
    opened.map(drop).map_err(|error| {
        anyhow!(
            "can't open {OPEN_FILES} files at a time ({error}); see LimitNOFILE= of the unit that this runs in"
        )
    })
}

/// Checks that this process can fork.
///
/// Otherwise it could begin to create a machine, and not remove it again.
fn check_processes() -> Result<()> {
    fork::check().map_err(|errno| {
        anyhow!(
            "can't start another process ({}); see TasksMax= of the unit that this runs in",
            errno.desc()
        )
    })
}

/// Checks that a machine can open its inotify instances.
///
/// Opening some is the only way to know, because the kernel does not report how many a user has.
pub fn check_inotify() -> Result<()> {
    let opened: nix::Result<Vec<_>> = (0..INOTIFY_INSTANCES)
        .map(|_| Inotify::init(InitFlags::IN_CLOEXEC))
        .collect();
    // Any other error has another cause, and is reported by the step that it affects.
    if !matches!(opened, Err(Errno::EMFILE)) {
        return Ok(());
    }
    let max = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    let max: u32 = max.trim().parse().unwrap_or(128);
    bail!(
        "the host's root has almost all of its {max} inotify instances in use, of which a machine needs about \
         {INOTIFY_INSTANCES}; allow more: sysctl -w fs.inotify.max_user_instances={}",
        (8 * max).max(1024)
    )
}

/// Returns the path of the agent's program, which is nspawn-run.
pub fn agent_program() -> Result<PathBuf> {
    command::find_sibling("nspawn-run")
}
