//! A full host queues: no more than so many machines at a time, whoever makes them.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, Inotify};
use nspawn_common::error;
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock;
use nspawn_common::lifecycle::lock::{Lock, Resource};
use nspawn_common::lifecycle::status;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::{MachinePaths, STATE_ROOT};
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::report;
use nspawn_common::sys::inotify;
use nspawn_common::sys::signals;

use crate::PROGRAM;

/// How long until it is counted again without any sign of a change.
const RECOUNT: Duration = Duration::from_secs(5);
/// How long others may take that do not wait themselves.
const SOON: Duration = Duration::from_secs(1);

/// Waits, `limit` at most, until fewer than `most` machines beside this one take a slot. What it
/// returns is held until this machine takes one, by its state file: so nobody else counts meanwhile.
///
/// # Errors
/// No slot in time; the program was asked to end.
pub fn wait(paths: &MachinePaths, most: u32, limit: Duration) -> Result<Lock> {
    let deadline = Instant::now() + limit;
    // Those who wait for this lock are the queue behind the one who has it and waits for a slot.
    let queue = lock::host(Resource::Machines, SOON).or_else(|error| {
        if error::is_interrupted(&error) {
            return Err(error);
        }
        tell(&format!(
            "others wait for a machine to go; waiting behind them (--max-machines={most})"
        ));
        lock::host(Resource::Machines, limit)
            .context("no machine has gone; see --max-machines and --timeout")
    })?;
    let mut told = false;
    loop {
        let changes = inotify::open()?;
        let taken = count(paths, &changes)?;
        if taken < most as usize {
            return Ok(queue);
        }
        if !told {
            tell(&format!(
                "{taken} machines are there; waiting for one to go (--max-machines={most})"
            ));
            told = true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "{taken} machines are there and none has gone in {} s; see --max-machines and --timeout",
                limit.as_secs()
            );
        }
        wait_for_change(&changes, left)?;
    }
}

fn tell(line: &str) {
    report::print_diagnostic(PROGRAM, OsStr::new(line));
}

// Watches before it looks, so that no change is missed.
fn count(own: &MachinePaths, changes: &Inotify) -> Result<usize> {
    watch(changes, STATE_ROOT.as_ref(), AddWatchFlags::IN_DELETE);
    let all = list::all()?;
    // Nobody has yet asked for those that stand by.
    let all = all
        .iter()
        .filter(|name| !name.is_for_standby() && !is_service(name));
    let others = all
        .map(MachinePaths::new)
        .filter(|paths| paths.state_dir() != own.state_dir());
    let taking = others.filter(|paths| {
        // A state goes with its machine, and a lock is closed with its holder.
        watch(
            changes,
            &paths.state_dir(),
            AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CLOSE_WRITE,
        );
        watch(
            changes,
            &paths.cgroup().join("cgroup.events"),
            AddWatchFlags::IN_MODIFY,
        );
        let is_there = || {
            Lock::is_held(paths) || processes::is_running(paths) || status::awaits_commands(paths)
        };
        paths.state_file().exists() && is_there()
    });
    Ok(taking.count())
}

// A job and its services take one together: one that waited for the others' would wait for ever.
fn is_service(name: &MachineName) -> bool {
    State::read(name).is_ok_and(|state| state.service.is_some())
}

// What is not there changes by coming to be, which frees no slot.
fn watch(changes: &Inotify, path: &std::path::Path, what: AddWatchFlags) {
    let _ = changes.add_watch(path, what);
}

fn wait_for_change(changes: &Inotify, limit: Duration) -> Result<()> {
    signals::check()?;
    // Now and then without any change: the kernel may tell of a holder's end before its lock is free.
    signals::wait_readable(changes.as_fd(), limit.min(RECOUNT))?;
    signals::check()
}
