//! Queue for `--max-machines`: waits until fewer machines than that are on the host.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, Inotify};
use nspawn_common::error;
use nspawn_common::lifecycle::lock::{Lock, Resource};
use nspawn_common::lifecycle::{list, lock, stale};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::{MachinePaths, STATE_ROOT};
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::sys::{inotify, signals};

use crate::diagnostics::print_diagnostic;

/// Time after which the machines are counted again even if no change was seen.
const RECOUNT: Duration = Duration::from_secs(5);
/// Time for which a process holds the lock that does not itself wait for a slot.
const SHORT_WAIT: Duration = Duration::from_secs(1);

/// Waits until fewer than `max_machines` machines besides this one take a slot, for `limit` at
/// most.
///
/// The caller holds the returned lock until the machine's state file exists, by which the machine
/// takes a slot. Until then no other process counts.
pub fn wait(paths: &MachinePaths, max_machines: u32, limit: Duration) -> Result<Lock> {
    let deadline = Instant::now() + limit;
    let lock = lock_queue(max_machines, limit)?;
    let mut is_announced = false;
    loop {
        let changes = inotify::open()?;
        let count = count_other_machines(paths, &changes)?;
        if count < max_machines as usize {
            return Ok(lock);
        }
        if !is_announced {
            print_diagnostic(format!(
                "{count} machines exist; waiting until one is removed (--max-machines={max_machines})"
            ));
            is_announced = true;
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            bail!(
                "{count} machines exist, and none was removed within {} s; see --max-machines and --timeout",
                limit.as_secs()
            );
        }
        wait_for_change(&changes, remaining)?;
    }
}

// The lock's holder waits for a slot, and the processes that wait for the lock are the queue behind
// it.
fn lock_queue(max_machines: u32, limit: Duration) -> Result<Lock> {
    match lock::host(Resource::Machines, SHORT_WAIT) {
        Err(error) if !error::is_interrupted(&error) => {}
        result => return result,
    }
    print_diagnostic(format!(
        "other callers wait too; waiting until a machine is removed (--max-machines={max_machines})"
    ));
    lock::host(Resource::Machines, limit)
        .context("no machine was removed in time; see --max-machines and --timeout")
}

// Watches each machine before looking at it, so that no change is missed.
fn count_other_machines(this: &MachinePaths, changes: &Inotify) -> Result<usize> {
    watch(changes, STATE_ROOT.as_ref(), AddWatchFlags::IN_DELETE);
    let mut count = 0;
    for name in list::all()? {
        // Standby machines take no slot until a caller takes them over. A job and its services take
        // one slot together: a service that waited for a slot of another service would wait
        // forever.
        if name.is_for_standby() || is_service(&name) {
            continue;
        }
        let paths = MachinePaths::named(&name);
        if paths.state_dir() == this.state_dir() {
            continue;
        }
        watch_state(changes, &paths);
        // A takeover changes the unit of a name, so the unit is looked up after the watch has
        // begun.
        let paths = State::paths_of(&name);
        watch_unit(changes, &paths);
        if takes_slot(&paths) {
            count += 1;
        }
    }
    Ok(count)
}

fn is_service(name: &MachineName) -> bool {
    State::read(name).is_ok_and(|state| state.service.is_some())
}

// The state file is deleted with its machine, and the lock file is closed when its holder ends.
fn watch_state(changes: &Inotify, paths: &MachinePaths) {
    watch(
        changes,
        &paths.state_dir(),
        AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CLOSE_WRITE,
    );
}

fn watch_unit(changes: &Inotify, paths: &MachinePaths) {
    let events = paths.cgroup().join("cgroup.events");
    watch(changes, &events, AddWatchFlags::IN_MODIFY);
}

fn takes_slot(paths: &MachinePaths) -> bool {
    paths.state_file().exists()
        && (Lock::is_held(paths) || processes::is_running(paths) || stale::awaits_commands(paths))
}

// A missing file needs no watch: that it appears frees no slot.
fn watch(changes: &Inotify, path: &Path, events: AddWatchFlags) {
    let _ = changes.add_watch(path, events);
}

// The kernel may report the end of a lock's holder before the lock is free, so the wait ends now
// and then without any event.
fn wait_for_change(changes: &Inotify, limit: Duration) -> Result<()> {
    signals::check()?;
    signals::wait_readable(changes.as_fd(), limit.min(RECOUNT))?;
    signals::check()
}
