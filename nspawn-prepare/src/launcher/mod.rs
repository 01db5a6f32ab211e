//! The hidden launch form: the unit's process, until it becomes systemd-nspawn.
//!
//! What is mounted here lives in the unit's own mount namespace (`PrivateMounts=yes`): the kernel
//! takes it away with the unit's last process, whatever ends that.
//!
//! | module | holds |
//! | --- | --- |
//! | [`root`] | the machine's root: its layer over the image |
//! | [`shown`] | what the machine is shown of these programs |
//! | [`units`] | what its systemd is given beside the image's units |
//! | [`points`] | mount points and files that are missing in it |
//! | [`cgroups`] | its cgroup, with the limits of the unit's |
//! | [`cores`] | no core dumps of its processes |
//! | [`apparmor`] | its programs out of reach of the host's AppArmor profiles |

pub mod agent_files;
pub mod apparmor;
pub mod boot_units;
pub mod cgroups;
pub mod cores;
pub mod mount_points;
pub mod root;

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;
use nspawn_common::command;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::RANGE_SIZE;
use nspawn_common::lifecycle::uid_range;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::systemd::nspawn;

use crate::create::diagnosis;
use crate::layer::OVERLAID;
use crate::network::pasta;
use crate::network::resolvers::RESOLV_CONF;

/// The argument that asks for it: `--launch MACHINE COMMAND…`.
pub const OPTION: &str = "--launch";

/// To forget a watch for memory pressure takes the kernel ten milliseconds, and what systemd-nspawn and a machine's
/// systemd could give back then is little (systemd's MEMORY_PRESSURE.md).
pub const NO_PRESSURE: (&str, &str) = ("MEMORY_PRESSURE_WATCH", "/dev/null");

/// The command that launches `command` for the machine `name`.
pub fn command(name: &MachineName, command: Vec<OsString>) -> Result<Vec<OsString>> {
    let program = command::current_program()?;
    let mut argv = vec![program.into(), OPTION.into(), name.as_str().into()];
    argv.extend(command);
    Ok(argv)
}

/// Mounts the machine's root and becomes `COMMAND`.
pub fn launch(arguments: &[OsString]) -> Result<()> {
    let [name, program, rest @ ..] = arguments else {
        bail!("{OPTION} is for the machine's unit alone")
    };
    let name = MachineName::new(name)?;
    refuse_the_hosts_mounts()?;
    let paths = MachinePaths::new(&name);
    let started = mount(&paths, rest).and_then(|base| {
        confine(&paths, rest)?;
        become_nspawn(program, base, rest)
    });
    let Err(error) = started else { return Ok(()) };
    diagnosis::note(&paths, &error);
    Err(error)
}

// Returns where the machine's users begin.
fn mount(paths: &MachinePaths, options: &[OsString]) -> Result<Option<u32>> {
    let state = State::read(paths.name())?;
    provide_tmp()?;
    let base = uid_range::allocate(paths, state.private_users)?;
    root::mount(paths, &state, base)?;
    mount_points::make(
        &paths.root_mount(),
        &mount_points(&state, options),
        base.unwrap_or(0),
    )?;
    if state.network == Network::Nat {
        let content = pasta::resolv_conf()?;
        mount_points::replace_file(
            &paths.root_mount(),
            Path::new(RESOLV_CONF),
            &content,
            base.unwrap_or(0),
        )?;
    }
    check_overlaid(paths, &state)?;
    agent_files::mount(paths, base.unwrap_or(0))?;
    if state.init == Init::Systemd {
        let environment = if state.service.is_some() {
            &*state.environment
        } else {
            &[]
        };
        boot_units::write(
            &paths.agent_units(),
            &paths.root_mount(),
            base.unwrap_or(0),
            environment,
        )?;
    }
    Ok(base)
}

// systemd-nspawn of 262 makes a directory in /tmp. Where the host's /tmp takes none, this unit has another.
fn provide_tmp() -> Result<()> {
    let probe = Path::new("/tmp").join(format!("nspawn-probe-{}", std::process::id()));
    let made = DirBuilder::new()
        .mode(0o700)
        .create(&probe)
        .and_then(|()| fs::remove_dir(&probe));
    let Err(error) = made else { return Ok(()) };
    if error.kind() == ErrorKind::AlreadyExists {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(
        Some("nspawn-ci"),
        "/tmp",
        Some("tmpfs"),
        flags,
        Some("size=1M,mode=1777"),
    )
    .with_context(|| format!("can't mount on /tmp, which takes no directory ({error})"))
}

// After all other programs that this process runs.
fn confine(paths: &MachinePaths, options: &[OsString]) -> Result<()> {
    cgroups::show_limits(paths)?;
    if let Err(error) = apparmor::leave_profiles() {
        eprintln!(
            "nspawn-prepare: {error:#}; the host's AppArmor profiles apply to programs in the machine"
        );
    }
    cores::forbid(options)
}

fn become_nspawn(program: &OsString, base: Option<u32>, options: &[OsString]) -> Result<()> {
    let error = Command::new(program)
        .args(base.map(|base| format!("--private-users={base}:{RANGE_SIZE}")))
        .args(base.map(|_| "--private-users-ownership=off"))
        .args(options)
        // No file system of nspawn's own on /tmp either: see the mask of tmp.mount.
        .env("SYSTEMD_NSPAWN_TMPFS_TMP", "0")
        .env(NO_PRESSURE.0, NO_PRESSURE.1)
        // By the unit's own stream: what a process sends to the journal itself is nobody's once it has ended.
        .env("SYSTEMD_LOG_TARGET", "console")
        .exec();
    Err(error).with_context(|| format!("can't start {program:?}"))
}

// systemd-nspawn wants a /usr; in a root that is read-only it can make none at all.
fn mount_points(state: &State, options: &[OsString]) -> Vec<(PathBuf, bool)> {
    let mut points = Vec::new();
    if state.init != Init::Systemd {
        points.push(("/usr".into(), false));
    }
    if state.layer == Layer::None {
        points.extend(OVERLAID.map(|name| (Path::new("/").join(name), false)));
        points.extend([RESOLV_CONF, "/etc/hosts"].map(|file| (file.into(), true)));
        points.extend(nspawn::mount_points(options));
    }
    points
}

// Their paths are the host's to systemd-nspawn, and so would be what a link leads to.
fn check_overlaid(paths: &MachinePaths, state: &State) -> Result<()> {
    for name in OVERLAID.iter().filter(|_| state.layer == Layer::None) {
        let there = fs::symlink_metadata(paths.root_mount().join(name));
        if !there.is_ok_and(|there| there.is_dir()) {
            bail!(
                "/{name} in the image {} is no directory, which --layer=none needs",
                state.image
            );
        }
    }
    Ok(())
}

fn refuse_the_hosts_mounts() -> Result<()> {
    let namespace = |process: &str| {
        fs::read_link(format!("/proc/{process}/ns/mnt"))
            .context("can't tell mount namespaces apart")
    };
    if namespace("self")? == namespace("1")? {
        bail!("{OPTION} would mount into the host: it is for the machine's unit alone");
    }
    Ok(())
}
