//! systemd-machined's note of a machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::AddWatchFlags;

use crate::command;
use crate::command::argv;
use crate::machine::paths::MachinePaths;
use crate::sys::inotify;

/// How long systemd-machined usually takes at most to notice an end.
const SOON: Duration = Duration::from_secs(1);
/// How long it may take once it is asked.
const UNREGISTER_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to be told of a machine.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Between two questions whether it has forgotten a machine.
const PAUSE: Duration = Duration::from_millis(2);

/// Whether systemd-machined has a machine of this name that is not one of ours.
#[must_use]
pub fn is_foreign(paths: &MachinePaths) -> bool {
    unit(paths).is_some_and(|unit| unit != paths.unit())
}

/// Waits, `limit` at most, until the machine is registered, and so has all its namespaces. Returns the process
/// number of its PID 1.
///
/// # Errors
/// It is not in time.
pub fn wait_for_leader(paths: &MachinePaths, limit: Duration) -> Result<u32> {
    let leader = || {
        field(paths, "LEADER=")
            .filter(|_| !is_foreign(paths))
            .and_then(|leader| leader.parse().ok())
    };
    let mut found = None;
    let is_there = || {
        found = leader();
        found.is_some()
    };
    inotify::wait_until(
        &paths.registration(),
        AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE,
        limit,
        is_there,
    )?;
    found.with_context(|| format!("systemd-machined knows no machine {}", paths.name()))
}

/// What systemd-machined is told of a machine.
#[derive(Debug)]
pub struct Registration {
    /// The process number of its PID 1.
    pub leader: u32,
    id: String,
    service: String,
    interfaces: String,
}

impl Registration {
    /// Takes a machine's registration away, so that it can have another name: one unit can't be two machines, and
    /// one that is refused for that would be stopped.
    ///
    /// # Errors
    /// It is not registered; systemd-machined does not let go of it in time, or says so itself.
    pub fn unregister(paths: &MachinePaths) -> Result<Self> {
        let note = |key: &str| {
            field(paths, key)
                .with_context(|| format!("systemd-machined knows no machine {}", paths.name()))
        };
        let registration = Self {
            id: note("ID=")?,
            leader: note("LEADER=")?.parse()?,
            service: field(paths, "SERVICE=").unwrap_or_default(),
            interfaces: field(paths, "NETIF=").unwrap_or_default(),
        };
        call(&["UnregisterMachine", "s", paths.name().as_str()])?;
        // It forgets the machine when it has nothing else to do, and tells nobody.
        let deadline = Instant::now() + UNREGISTER_LIMIT;
        while call(&["GetMachine", "s", paths.name().as_str()]).is_ok() {
            if Instant::now() > deadline {
                bail!(
                    "systemd-machined does not let go of machine {}",
                    paths.name()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(registration)
    }

    /// Makes systemd-machined know the machine as `paths` has it.
    ///
    /// # Errors
    /// systemd-machined's own.
    pub fn register(&self, paths: &MachinePaths) -> Result<()> {
        let id: Vec<String> = self
            .id
            .as_bytes()
            .chunks(2)
            .map(|byte| format!("0x{}", String::from_utf8_lossy(byte)))
            .collect();
        let interfaces: Vec<&str> = self.interfaces.split_whitespace().collect();
        let (id_length, interfaces_length) = (id.len().to_string(), interfaces.len().to_string());
        let (leader, root) = (
            self.leader.to_string(),
            paths.root_mount().display().to_string(),
        );
        // org.freedesktop.machine1(5)
        let mut words = vec![
            "RegisterMachineWithNetwork",
            "sayssusai",
            paths.name().as_str(),
            &id_length,
        ];
        words.extend(id.iter().map(String::as_str));
        words.extend([
            &self.service,
            "container",
            &leader,
            &root,
            &interfaces_length,
        ]);
        words.extend(interfaces);
        let is_done = || field(paths, "LEADER=").is_some_and(|known| known == leader);
        let mut before = invocation();
        while let Err(error) = call(&words) {
            // The answer may have been lost by a restart, and the call itself with it.
            if is_done() {
                return Ok(());
            }
            if !is_restarted(before.as_deref()) {
                return Err(error);
            }
            before = invocation();
        }
        Ok(())
    }
}

/// Returns what tells one run of systemd-machined from the next; `None` while it does not run.
#[must_use]
pub fn invocation() -> Option<PathBuf> {
    fs::read_link("/run/systemd/units/invocation:systemd-machined.service").ok()
}

/// Returns whether systemd-machined was restarted since its [`invocation`] was `before`.
#[must_use]
pub fn is_restarted(before: Option<&Path>) -> bool {
    before.is_some_and(|before| invocation().as_deref() != Some(before))
}

fn call(words: &[&str]) -> Result<()> {
    let manager = [
        "org.freedesktop.machine1",
        "/org/freedesktop/machine1",
        "org.freedesktop.machine1.Manager",
    ];
    let command = ["busctl", "--quiet", "call"]
        .iter()
        .chain(&manager)
        .chain(words)
        .map(OsString::from);
    command::run_checked(&command.collect::<Vec<_>>(), CALL_LIMIT)
        .map(drop)
        .context("can't tell systemd-machined of a machine")
}

/// Waits until the machine, which has ended, is registered no more.
///
/// # Errors
/// systemd-machined does not let go of it.
pub fn wait_until_gone(paths: &MachinePaths) -> Result<()> {
    let note = paths.registration();
    let is_gone = |limit| {
        inotify::wait_until(
            &note,
            AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM,
            limit,
            || !note.exists(),
        )
    };
    if unit(paths).is_none_or(|owner| owner != paths.unit()) || is_gone(SOON)? {
        return Ok(());
    }
    // One that was started anew may have missed the end, and looks when it is asked. One that does not
    // run lists nothing.
    let asked = argv([
        "machinectl",
        "show",
        "--property=State",
        &paths.name().to_string(),
    ]);
    if command::run(&asked, UNREGISTER_LIMIT)?.status.success() && !is_gone(UNREGISTER_LIMIT)? {
        bail!(
            "systemd-machined still lists the machine, which is gone; see systemctl status systemd-machined"
        );
    }
    Ok(())
}

fn unit(paths: &MachinePaths) -> Option<String> {
    fs::metadata(paths.registration()).ok()?;
    field(paths, "UNIT=")
        .or_else(|| field(paths, "SCOPE="))
        .or(Some(String::new()))
}

fn field(paths: &MachinePaths, key: &str) -> Option<String> {
    let note = fs::read_to_string(paths.registration()).ok()?;
    note.lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::to_owned)
}
