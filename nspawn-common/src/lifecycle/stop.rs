//! Kills a machine and stops its units.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command;
use crate::command::argv;
use crate::lifecycle::fuse;
use crate::machine::name::MachineName;
use crate::machine::namespaces;
use crate::machine::paths::{MachinePaths, PAYLOAD_CGROUP, SUPERVISOR_CGROUP};
use crate::machine::processes;
use crate::machine::state::State;
use crate::machine::unit_files;
use crate::sys::power_off::power_off;
use crate::sys::{cgroup, clock};
use crate::text;

/// Time limit for stopping a unit whose processes were killed.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Time limit for the end of processes that systemd has killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at them.
const PAUSE: Duration = Duration::from_millis(2);

/// Stops the machine and waits until all its processes have ended. Its layer and its state stay.
///
/// # Errors
/// Fails if processes of the machine survive SIGKILL.
pub fn stop_machine(name: &MachineName) -> Result<()> {
    let paths = &State::paths_of(name);
    let unit = paths.unit();
    let was_frozen = processes::is_frozen(paths);
    let killed = kill(paths);
    // From here on, no process of the machine can open a connection.
    fuse::abort_connections(paths);
    // Frozen processes die by SIGKILL, but systemd refuses to stop a frozen unit.
    if was_frozen {
        command::run(&argv(["systemctl", "thaw", &unit]), STOP_LIMIT)?;
    }
    let helpers = [
        (paths.network_unit(), paths.network_cgroup()),
        (paths.command_unit(), paths.command_cgroup()),
    ];
    for (_, helper) in &helpers {
        // Usually the helper does not exist. If it can't be killed, the check below finds its
        // processes.
        let _ = cgroup::kill(helper);
    }
    // Another program may have created a unit of this name after the machine had ended.
    let is_foreign = unit_files::is_foreign(&unit);
    let stop_error = if is_foreign {
        String::new()
    } else {
        command::run(&argv(["systemctl", "stop", &unit]), STOP_LIMIT)?.stderr
    };
    // These units may already have stopped, because they are bound to the machine's unit. One
    // `systemctl stop` for several units stops none of them once one is gone, so stop them one by
    // one.
    for (unit, _) in helpers.iter().filter(|(_, cgroup)| cgroup.exists()) {
        command::run(&argv(["systemctl", "stop", unit]), STOP_LIMIT)?;
    }
    if !wait_until_empty(paths) {
        let cause = match killed {
            Err(error) => format!(" ({error})"),
            Ok(()) => String::new(),
        };
        bail!(
            "can't stop the unit {unit}: its processes don't end{cause}; see systemctl status {unit}{}",
            text::indent(&stop_error)
        );
    }
    // A failed unit keeps its name. --collect has already removed most of them.
    if !is_foreign && paths.unit_file().exists() {
        command::run(&argv(["systemctl", "reset-failed", &unit]), STOP_LIMIT)?;
    }
    Ok(())
}

// systemd does not wait for processes that it kills when the main process has ended, such as that
// which records the console. Returns whether all have ended.
fn wait_until_empty(paths: &MachinePaths) -> bool {
    clock::poll_until(Instant::now() + KILL_LIMIT, PAUSE, || {
        let cgroups = existing_cgroups(paths);
        !cgroups.iter().any(|path| cgroup::is_populated(path))
    })
}

/// Returns the existing cgroups of the machine, its network helper and its service command.
pub fn existing_cgroups(paths: &MachinePaths) -> Vec<PathBuf> {
    let cgroups = [
        paths.cgroup(),
        paths.network_cgroup(),
        paths.command_cgroup(),
    ];
    cgroups.into_iter().filter(|path| path.exists()).collect()
}

/// Kills all processes of the machine at once, its PID 1 included, since an orderly stop only costs
/// time.
///
/// If the payload has begun, this spares the supervisor, which then removes its files in the host's
/// /tmp (since systemd 257). Stopping the unit kills the rest. The end of a machine that was only
/// killed would be a failure of its unit in the host's journal, so its PID namespace is powered off.
fn kill(paths: &MachinePaths) -> io::Result<()> {
    let unit = paths.cgroup();
    if let Some(leader) = processes::leader(paths) {
        // A leader that has ended by now needs nothing.
        if let Ok([namespace]) = namespaces::open(paths, leader, ["ns/pid"]) {
            power_off(&namespace);
        }
    }
    if unit.join(SUPERVISOR_CGROUP).exists() {
        cgroup::kill(&unit.join(PAYLOAD_CGROUP))
    } else {
        cgroup::kill(&unit)
    }
}
