//! What the host must have.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use nspawn_common::command;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::lifecycle::caller;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::fork;

/// How long looking something up may take.
pub const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Directories of units that are not transient (systemd.unit(5), "Unit File Load Path").
const UNIT_DIRECTORIES: [&str; 10] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// How many inotify instances a booted machine has (measured on systemd 252 to 262).
const INOTIFY_INSTANCES: usize = 10;
/// How many pseudoterminals a machine takes at first: its console.
const PTYS: u32 = 1;

/// Refuses all but root: others can't even see the images.
pub fn check_root() -> Result<()> {
    if !caller::is_root() {
        bail!("only root can make machines; try sudo");
    }
    Ok(())
}

/// Refuses a host that can't run machines, and says what it lacks.
pub fn check_host() -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        bail!("this host does not run systemd, which machines need");
    }
    if command::find_program("systemd-nspawn").is_none() {
        bail!("systemd-nspawn is not installed; install the package systemd-container");
    }
    caller::check()
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

/// Refuses a name whose units the host has files of, such as those of these programs' own services. A unit with a file
/// can't be transient, and undoing the attempt would stop it.
pub fn check_units(paths: &MachinePaths) -> Result<()> {
    let is_there = |unit: &String| {
        UNIT_DIRECTORIES
            .iter()
            .any(|directory| is_entry(&Path::new(directory).join(unit)))
    };
    let units = [paths.unit(), paths.network_unit(), paths.command_unit()];
    match units.iter().find(|unit| is_there(unit)) {
        Some(unit) => bail!(
            "can't make machine {}: this host has a unit {unit}; choose another --name",
            paths.name()
        ),
        None => Ok(()),
    }
}

fn is_entry(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Refuses a network that can't be had.
pub fn check_network(network: &Network, users: PrivateUsers) -> Result<()> {
    match network {
        Network::Nat if command::find_program("pasta").is_none() => {
            bail!(
                "pasta, which connects machines, is not installed; install the package passt, or see --network"
            )
        }
        // It enters the user namespace first, and may then no longer join another's network.
        Network::Namespace(_) if users != PrivateUsers::No => {
            bail!("--network={network} can't be had with a user namespace; add --private-users=no")
        }
        _ => Ok(()),
    }
}

/// Refuses a host that has come to a limit which a booting machine only fails at in dark words.
pub fn check_limits() -> Result<()> {
    check_inotify()?;
    check_processes()?;
    let number = |name: &str| -> Option<u32> {
        fs::read_to_string(format!("/proc/sys/kernel/pty/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    // The kernel reserves some for the host itself (Documentation/admin-guide/sysctl/kernel.rst, "pty").
    if let (Some(used), Some(most), Some(reserved)) =
        (number("nr"), number("max"), number("reserve"))
    {
        if used + PTYS > most.saturating_sub(reserved) {
            bail!(
                "the host has {used} of its {most} pseudoterminals in use; allow more: sysctl -w kernel.pty.max={}",
                2 * most
            );
        }
    }
    Ok(())
}

// By trying: with no process to spare, a machine could be begun and not be removed again.
fn check_processes() -> Result<()> {
    fork::check().map_err(|errno| {
        anyhow!(
            "can't start another process ({}); see TasksMax= of the unit that this runs in",
            errno.desc()
        )
    })
}

// By trying, since the kernel tells nobody how many a user has.
fn check_inotify() -> Result<()> {
    let tried: nix::Result<Vec<_>> = (0..INOTIFY_INSTANCES)
        .map(|_| Inotify::init(InitFlags::IN_CLOEXEC))
        .collect();
    match tried {
        Err(Errno::EMFILE) => {
            let most =
                fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
            let most: u32 = most.trim().parse().unwrap_or(128);
            bail!(
                "the host's root has almost all of its {most} inotify instances in use, of which a machine needs about \
                 {INOTIFY_INSTANCES}; allow more: sysctl -w fs.inotify.max_user_instances={}",
                (8 * most).max(1024)
            )
        }
        // Another limit is another matter, and will be told where it is met.
        _ => Ok(()),
    }
}

/// The agent is nspawn-run itself.
pub fn agent_program() -> Result<PathBuf> {
    command::find_sibling("nspawn-run")
}
