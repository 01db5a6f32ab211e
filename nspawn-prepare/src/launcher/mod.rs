//! The launcher: mounts the machine's root and becomes systemd-nspawn.
//!
//! The launcher is the process that the machine's unit starts. The unit has its own mount namespace
//! (`PrivateMounts=yes`), so the kernel removes the mounts with the unit's last process, however
//! that ends.
//!
//! | module | contents |
//! | --- | --- |
//! | [`root`] | the machine's root |
//! | [`image`] | the layers of the image |
//! | [`memory`] | file systems in memory |
//! | [`overlay`] | overlays of the image and the machine's layer |
//! | [`mount_points`] | mount points that the root lacks |
//! | [`names`] | files by which programs resolve names |
//! | [`host_devices`] | access to loop devices, which the machine does not have |
//! | [`agent_files`] | the file system that carries the agent into the machine |
//! | [`boot_units`] | units and masks for the machine's systemd |
//! | [`tmp`] | a /tmp that systemd-nspawn can use |
//! | [`binds`] | the sources of bind mounts |
//! | [`devices`] | the nodes of devices that the machine has besides the usual ones |
//! | [`cgroups`] | the machine's cgroup, with the limits of the unit |
//! | [`core_dumps`] | no core dumps of the machine's processes |
//! | [`filter_cache`] | filters that systemd-nspawn need not compile again |
//! | [`system_calls`] | system calls by which the machine would reach beyond itself |
//! | [`socketcall`] | sockets of 32-bit programs on x86-64 |
//! | [`personality`] | the architecture that the machine's programs see |
//! | [`apparmor`] | keeps the host's AppArmor profiles from the machine's programs |

mod agent_files;
mod apparmor;
mod binds;
pub mod boot_units;
mod cgroups;
mod core_dumps;
mod devices;
pub mod filter_cache;
mod host_devices;
mod image;
mod memory;
mod mount_points;
pub mod names;
mod overlay;
mod personality;
mod root;
mod socketcall;
mod system_calls;
mod tmp;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Error, Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::config::private_users::IdRange;
use nspawn_common::lifecycle::{diagnosis, uid_range};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::namespace_owner;

use crate::diagnostics::print_diagnostic;
use crate::launcher::filter_cache::Entry;
use crate::preflight;
use crate::recorder;

/// Environment variable that turns off the watch for memory pressure in systemd's programs.
///
/// The kernel takes ten milliseconds to remove a watch, and these programs could release little
/// memory (systemd's MEMORY_PRESSURE.md).
pub const NO_PRESSURE: (&str, &str) = ("MEMORY_PRESSURE_WATCH", "/dev/null");

/// Mounts the machine's root and becomes `command`.
///
/// Returns only after an error, which it records for the process that starts the unit.
pub fn launch(machine: &MachineName, command: &[OsString]) -> Result<()> {
    let [program, options @ ..] = command else {
        bail!("can't launch machine {machine}: there is no command");
    };
    refuse_host_mounts()?;
    // If the state can't be read, becoming the machine reports that.
    let paths = State::paths_of(machine);
    let Err(error) = become_machine(&paths, program, options);
    diagnosis::record_start_error(&paths, &error);
    Err(error)
}

/// Refuses to mount in the mount namespace of the host.
fn refuse_host_mounts() -> Result<()> {
    let namespace = |process: &str| {
        fs::read_link(format!("/proc/{process}/ns/mnt")).context("can't compare mount namespaces")
    };
    if namespace("self")? == namespace("1")? {
        bail!("can't launch a machine in the host's mount namespace: only the machine's unit may");
    }
    Ok(())
}

fn become_machine(
    paths: &MachinePaths,
    program: &OsString,
    options: &[OsString],
) -> Result<Infallible> {
    let state = State::read(paths.name())?;
    let writes_host = binds::is_host_writable(paths, options);
    let ids = uid_range::allocate(paths, state.private_users)?;
    // A new /tmp would hide the sources there.
    let options = binds::hold_sources(paths, options, root::owner(ids))?;
    let (devices, options) = &devices::create(paths, &options)?;
    tmp::provide()?;
    mount_root(paths, &state, ids, options)?;
    devices.set_owners(&paths.root_mount(), root::owner(ids))?;
    let filters = find_filters(options);
    let cgroup = confine(paths, &state, options, writes_host)?;
    let console = recorder::start(&paths.console_output(), Some(&cgroup))?;
    if let Some(ids) = ids {
        count_as_user(ids.base, &cgroup)?;
    }
    let mut command = nspawn(program, ids, console);
    command
        .args(personality::option(&paths.root_mount(), options))
        .args(options);
    if filters.is_some_and(|filters| filters.install()) {
        // systemd-nspawn compiles no filters then (ENVIRONMENT.md of systemd).
        command.env("SYSTEMD_SECCOMP", "0");
    }
    Err(command.exec()).with_context(|| format!("can't start {program:?}"))
}

/// Mounts the machine's root, and adds the files that the image lacks.
fn mount_root(
    paths: &MachinePaths,
    state: &State,
    ids: Option<IdRange>,
    options: &[OsString],
) -> Result<()> {
    let root = paths.root_mount();
    let owner = root::owner(ids);
    root::mount(paths, state, ids)?;
    mount_points::create(&root, &mount_points::required(state, options), owner)?;
    names::write(&root, state, owner)?;
    mount_points::check_overlaid(&root, state)?;
    root::mount_overlaid(paths, state, ids)?;
    agent_files::mount(paths, owner)?;
    if state.init == Init::Systemd {
        let environment = unit_environment(state);
        boot_units::write(
            &paths.agent_units(),
            &root,
            owner,
            &state.network,
            environment,
        )?;
    }
    Ok(())
}

/// Returns the variables that the units of a machine's systemd get.
///
/// Only the machines of services have any.
fn unit_environment(state: &State) -> &[OsString] {
    if state.service.is_some() {
        &state.environment
    } else {
        &[]
    }
}

/// Returns the filters for these options if the cache has them, or else starts to record them.
fn find_filters(options: &[OsString]) -> Option<Entry> {
    let filters = Entry::of(options)?;
    if let Err(error) = filters.record_if_missing() {
        print_diagnostic(format!(
            "{error:#}; systemd-nspawn compiles its filters at each start"
        ));
    }
    Some(filters)
}

/// Limits this process, and so the machine. Comes after all other programs that this process runs.
///
/// Returns the cgroup for processes that stay beside systemd-nspawn.
fn confine(
    paths: &MachinePaths,
    state: &State,
    options: &[OsString],
    writes_host: bool,
) -> Result<File> {
    let cgroup = cgroups::set_up(paths)?;
    if let Err(error) = apparmor::leave_profiles() {
        print_diagnostic(format!(
            "{error:#}; the host's AppArmor profiles apply to programs in the machine"
        ));
    }
    core_dumps::forbid(options)?;
    system_calls::restrict(paths, state, options, writes_host)?;
    Ok(cgroup)
}

/// Makes the kernel count namespaces, inotify instances and such of the machine for a user of its
/// own.
///
/// A host that forbids ptrace(2) gets the machine nevertheless, as one that shares root's numbers.
fn count_as_user(user: u32, cgroup: &File) -> Result<()> {
    let report = |error: Error| {
        print_diagnostic(format!(
            "{error:#}; so the machine can use up the namespaces and inotify instances of the host's root"
        ));
    };
    if let Err(error) = namespace_owner::set_in_next_program(user, cgroup, report) {
        report(error);
        preflight::check_inotify()?;
    }
    Ok(())
}

/// Returns the command of systemd-nspawn without the machine's options.
fn nspawn(program: &OsString, ids: Option<IdRange>, console: OwnedFd) -> Command {
    let mut command = Command::new(program);
    if let Some(IdRange { base, size }) = ids {
        command.arg(format!("--private-users={base}:{size}"));
        command.arg("--private-users-ownership=off");
    }
    command
        .stdout(console)
        // systemd-nspawn mounts no file system on /tmp, for the same reason for which tmp.mount is
        // masked.
        .env("SYSTEMD_NSPAWN_TMPFS_TMP", "0")
        .env(NO_PRESSURE.0, NO_PRESSURE.1)
        // systemd-nspawn logs to stderr, which is the unit's stream. The journal may not find the
        // unit of a message that comes from a process directly, once that process has ended.
        .env("SYSTEMD_LOG_TARGET", "console");
    command
}
