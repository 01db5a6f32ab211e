//! What there is of machines, who owns them, and removing one without a trace.

use std::ffi::OsString;
use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::command::argv;
use crate::command::btrfs;
use crate::config::modes::Init;
use crate::lifecycle::deferred_unmount;
use crate::lifecycle::lock::Lock;
use crate::lifecycle::retention;
use crate::lifecycle::ssh;
use crate::lifecycle::unmount;
use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::paths::{
    LAYER_ROOT, MachinePaths, PAYLOAD_CGROUP, POOLS, SLICE_CGROUP, STATE_ROOT, SUPERVISOR_CGROUP,
};
use crate::machine::state::{OtherVersion, State};
use crate::sys::cgroup;
use crate::sys::fs::remove_if_present;
use crate::sys::mountinfo;
use crate::sys::process::ProcessId;
use crate::systemd::machined;
use crate::text;

/// How long ending a machine whose processes were killed may take.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long looking something up may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long deleting a layer may take.
const DELETE_LIMIT: Duration = Duration::from_secs(3600);

/// Ends the machine, waits until it is really gone, and deletes all that is left of it. Nothing
/// left of it is no error.
///
/// # Errors
/// Processes that won't die, or files that can't be deleted. What is left is found by the next
/// call.
pub fn remove(name: &MachineName, lock: Lock) -> Result<()> {
    let paths = MachinePaths::new(name);
    clear(&paths, &lock)?;
    give_up_name(&paths)
}

/// Removes the state directory of a machine of which only the lock is left, by whoever holds that.
///
/// # Errors
/// The file system's.
pub fn give_up_name(paths: &MachinePaths) -> Result<()> {
    fs::remove_file(paths.lock_file()).context("can't remove the machine's lock")?;
    fs::remove_dir(paths.state_dir()).or_else(|error| match error.kind() {
        // Another process has made a lock of its own there: now the name is its.
        ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound => Ok(()),
        _ => Err(error).context("can't remove the machine's state directory"),
    })
}

/// As [`remove`], but the machine stays locked and its state directory stays, empty.
///
/// # Errors
/// As [`remove`].
pub fn clear(paths: &MachinePaths, _lock: &Lock) -> Result<()> {
    let left = files(paths)?;
    // The unit of one that stood by, and of which nothing else is left, is another's by now.
    let has_unit = !paths.name().is_for_standby() && !cgroups(paths).is_empty();
    if left.is_empty() && !paths.layer().exists() && !has_unit {
        return Ok(());
    }
    // Whatever ends this program from here on, the machine is one that nobody owns.
    remove_if_present(&paths.ready_mark())?;
    remove_if_present(&paths.kept_mark())?;
    remove_if_present(&paths.specification())?;
    remove_if_present(&paths.standby_mark())?;
    let _held = deferred_unmount::hold(paths);
    end(paths)?;
    ssh::withdraw(paths)?;
    unmount::detach(&paths.disk_mount())?;
    delete_trees(&[paths.snapshot(), paths.layer()])?;
    machined::wait_until_gone(paths)?;
    // What its unit is called, last; and what the unit has made before it ended.
    delete_trees(&files(paths)?)
}

// What is in its state directory but the lock.
fn files(paths: &MachinePaths) -> Result<Vec<PathBuf>> {
    let directory = paths.state_dir();
    let unreadable = || format!("can't read {}", directory.display());
    let entries: Vec<_> = fs::read_dir(&directory)
        .and_then(Iterator::collect::<io::Result<_>>)
        .with_context(unreadable)?;
    Ok(entries
        .iter()
        .map(DirEntry::path)
        .filter(|path| *path != paths.lock_file())
        .collect())
}

/// Whether a machine of this name that stood by is now another's, by whose name it is known.
#[must_use]
pub fn is_taken(paths: &MachinePaths) -> bool {
    paths.name().is_for_standby() && !paths.state_dir().exists() && !paths.layer().exists()
}

fn has_pool(paths: &MachinePaths) -> bool {
    let mark = fs::read_to_string(paths.standby_mark()).unwrap_or_default();
    mark.split_once('/')
        .is_some_and(|(pool, _)| Path::new(POOLS).join(pool).exists())
}

/// Whether the machine stands by, and may be taken.
#[must_use]
pub fn is_standing_by(paths: &MachinePaths) -> bool {
    paths.specification().exists()
}

/// Whether the machine runs, or anything of it.
#[must_use]
pub fn is_running(paths: &MachinePaths) -> bool {
    cgroup::is_populated(&paths.cgroup())
}

/// Whether the machine is frozen, as `systemctl freeze` does it.
#[must_use]
pub fn is_frozen(paths: &MachinePaths) -> bool {
    cgroup::is_frozen(&paths.cgroup())
}

/// Whether somebody counts on the machine: its `nspawn-prepare` has finished and it runs, or waits for a
/// run; or it is kept for a look, or stands by. Only its lock tells whether somebody is making or removing it.
///
/// # Errors
/// systemd does not tell.
pub fn is_owned(paths: &MachinePaths) -> Result<bool> {
    let is_ready = paths.ready_mark().exists() || (is_standing_by(paths) && has_pool(paths));
    Ok(retention::is_kept(paths) || (is_ready && is_expected(paths)?))
}

/// Whether the machine is one that runs for its commands only, and neither its time nor its owner's is over.
#[must_use]
pub fn is_waiting(paths: &MachinePaths) -> bool {
    State::read(paths.name()).is_ok_and(|state| state.init == Init::None && has_time(&state))
}

fn is_expected(paths: &MachinePaths) -> Result<bool> {
    match State::read(paths.name()) {
        Ok(state) if state.init == Init::None => Ok(has_time(&state)),
        Ok(state) if !state.owner.is_none_or(ProcessId::is_alive) || !serves(&state)? => Ok(false),
        // The unit of one that stood by knows no time.
        Ok(state) if paths.origin_link().is_symlink() && !has_time(&state) => Ok(false),
        // Which times and owners count for it, another version of these programs knows.
        Err(error) if error.is::<OtherVersion>() => Ok(true),
        _ => is_active(paths),
    }
}

// A service is its job's, and goes with it.
fn serves(state: &State) -> Result<bool> {
    let Some(role) = &state.service else {
        return Ok(true);
    };
    let job = MachinePaths::new(&role.of);
    Ok(Lock::is_held(&job) || is_owned(&job)?)
}

/// The machines that are services of the job that has the machine `job`.
///
/// # Errors
/// A directory that can't be read.
pub fn services(job: &MachineName) -> Result<Vec<State>> {
    // Their states alone tell, so nothing else is looked at.
    let names = names_in(STATE_ROOT)?
        .into_iter()
        .filter(|name| name.as_str().starts_with(job.as_str()));
    let states = names.filter_map(|name| State::read(&name).ok());
    Ok(states
        .filter(|state| state.service.as_ref().is_some_and(|role| role.of == *job))
        .collect())
}

fn has_time(state: &State) -> bool {
    !state.is_over() && state.owner.is_none_or(ProcessId::is_alive)
}

// A unit whose systemd-nspawn has died may still have processes, but is on its way to its end.
fn is_active(paths: &MachinePaths) -> Result<bool> {
    if !is_running(paths) {
        return Ok(false);
    }
    let state = command::run(&argv(["systemctl", "is-active", &paths.unit()]), LOOK_LIMIT)?;
    match &*state.stdout {
        "deactivating" | "failed" | "inactive" => Ok(false),
        "active" | "activating" | "reloading" => Ok(true),
        _ => bail!(
            "systemctl can't tell whether {} is active{}",
            paths.unit(),
            text::indent(&state.stderr)
        ),
    }
}

/// What there is of the machine, in words.
#[must_use]
pub fn parts(paths: &MachinePaths) -> Vec<&'static str> {
    let parts = [
        ("unit", paths.cgroup()),
        ("network", paths.network_cgroup()),
        ("command", paths.command_cgroup()),
        ("layer", paths.layer()),
        ("state", paths.state_dir()),
    ];
    parts
        .into_iter()
        .filter(|(_, path)| fs::symlink_metadata(path).is_ok())
        .map(|(part, _)| part)
        .collect()
}

/// Has no more machines made that stand by.
///
/// # Errors
/// The file system's.
pub fn forget_pools() -> Result<()> {
    match fs::remove_dir_all(POOLS) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {POOLS}"))
        }
        _ => Ok(()),
    }
}

/// The names of all machines that have anything on this host.
///
/// # Errors
/// A directory that can't be read.
pub fn all() -> Result<Vec<MachineName>> {
    let mut names = Vec::new();
    for root in [STATE_ROOT, LAYER_ROOT, SLICE_CGROUP] {
        names.extend(
            names_in(root)?
                .into_iter()
                .filter(|name| !is_taken(&MachinePaths::new(name))),
        );
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn names_in(root: &str) -> Result<Vec<MachineName>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("can't read {root}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let entry = entry.file_name();
        let name = if root == SLICE_CGROUP {
            paths::name_of_unit(&entry)
        } else {
            Some(&*entry)
        };
        names.extend(name.and_then(|name| MachineName::new(name).ok()));
    }
    Ok(names)
}

/// Whether this process may make and remove machines.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Ends the machine and waits until it is really gone; its layer and its state stay.
///
/// # Errors
/// Processes that won't die.
pub fn end(paths: &MachinePaths) -> Result<()> {
    let unit = paths.unit();
    let was_frozen = is_frozen(paths);
    let killed = kill(&paths.cgroup());
    // What is frozen dies, but systemd stops no such unit.
    if was_frozen {
        command::run(&argv(["systemctl", "thaw", &unit]), END_LIMIT)?;
    }
    let helpers = [
        (paths.network_unit(), paths.network_cgroup()),
        (paths.command_unit(), paths.command_cgroup()),
    ];
    for (_, helper) in &helpers {
        // A helper that has ended has no cgroup. Stopping the units below ends the others.
        let _ = cgroup::kill(helper);
    }
    let stopped = command::run(&argv(["systemctl", "stop", &unit]), END_LIMIT)?;
    // They are bound to the machine's unit, and so about to end by themselves. All in one call would be none, once one
    // has.
    for (unit, _) in helpers.iter().filter(|(_, cgroup)| cgroup.exists()) {
        command::run(&argv(["systemctl", "stop", unit]), END_LIMIT)?;
    }
    if cgroups(paths).iter().any(|path| cgroup::is_populated(path)) {
        let why = killed
            .err()
            .map(|error| format!(" ({error})"))
            .unwrap_or_default();
        bail!(
            "processes of the unit {unit} won't end{why}; see systemctl status {unit}{}",
            text::indent(&stopped.stderr)
        );
    }
    // Failed units keep their name; --collect has already taken most of them.
    if paths.unit_file().exists() {
        command::run(&argv(["systemctl", "reset-failed", &unit]), END_LIMIT)?;
    }
    Ok(())
}

// Those that are there: of the machine, of its network, and of what it is for.
fn cgroups(paths: &MachinePaths) -> Vec<PathBuf> {
    [
        paths.cgroup(),
        paths.network_cgroup(),
        paths.command_cgroup(),
    ]
    .into_iter()
    .filter(|cgroup| cgroup.exists())
    .collect()
}

/// The process number of the machine's systemd-nspawn, which is of the host and in the unit's mount namespace.
#[must_use]
pub fn supervisor(paths: &MachinePaths) -> Option<u32> {
    let supervisor = paths.cgroup().join(SUPERVISOR_CGROUP);
    cgroup::processes(&supervisor).into_iter().next()
}

/// Whether the process belongs to the machine's unit.
#[must_use]
pub fn is_part(paths: &MachinePaths, process: u32) -> bool {
    cgroup::is_member(&paths.cgroup(), process)
}

// SIGKILL to all of the machine at once, its PID 1 included (cgroups(7)): an orderly stop only costs
// time. systemd-nspawn itself is spared where its payload has begun, and takes away what it has in
// the host's /tmp (since systemd 257). What is left of it then, the unit's stop kills.
fn kill(cgroup: &Path) -> io::Result<()> {
    let has_begun = cgroup.join(SUPERVISOR_CGROUP).exists();
    let killed = if has_begun {
        cgroup.join(PAYLOAD_CGROUP)
    } else {
        cgroup.to_owned()
    };
    cgroup::kill(&killed)
}

// What most machines leave is a few files: their state, and a file system in a file.
fn delete_flat(path: &Path) -> io::Result<()> {
    let delete = |path: &Path| fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    match delete(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            fs::read_dir(path)?.try_for_each(|entry| delete(&entry?.path()))?;
            fs::remove_dir(path)
        }
        done => done,
    }
}

// rm never follows a link, and takes trees of any depth. It crosses no file system, but would cross a
// bind mount of the same one.
fn delete_trees(paths: &[PathBuf]) -> Result<()> {
    let mounts = mountinfo::mounts_below(paths)?;
    if let Some(mount) = mounts.first() {
        bail!(
            "something is mounted on {}; unmount it first: umount {}",
            mount.display(),
            mount.display()
        );
    }
    // At once, whatever is in it.
    paths
        .iter()
        .filter(|path| btrfs::is_subvolume(path))
        .for_each(|path| btrfs::delete(path));
    if paths.iter().all(|path| delete_flat(path).is_ok()) {
        return Ok(());
    }
    let on_all = |command: &[&str]| -> Vec<OsString> {
        command
            .iter()
            .map(OsString::from)
            .chain(paths.iter().map(OsString::from))
            .collect()
    };
    let remove = on_all(&["rm", "--recursive", "--force", "--one-file-system", "--"]);
    if command::run(&remove, DELETE_LIMIT)?.status.success() {
        return Ok(());
    }
    // The machine's root may have made subvolumes read-only and files immutable. chattr ignores links (chattr(1), -R).
    paths.iter().for_each(|path| btrfs::make_writable(path));
    let _ = command::run(&on_all(&["chattr", "-R", "-f", "-ia", "--"]), DELETE_LIMIT);
    paths.iter().for_each(|path| btrfs::delete(path));
    command::run_checked(&remove, DELETE_LIMIT)
        .map(drop)
        .context("can't delete all of the machine")
}
