//! Leftovers of machines on the host.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::command::{call, sh};

/// Held while a test removes stale machines, or needs those that it has.
static STALE: Mutex<()> = Mutex::new(());

/// Removes the stale machines of all tests.
#[track_caller]
pub fn remove_stale() {
    let _guard = keep_stale();
    call("nspawn-cleanup", ["--stale"]).expect(0);
}

/// Keeps other tests from removing stale machines while the guard lives.
pub fn keep_stale() -> MutexGuard<'static, ()> {
    STALE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the leftovers of all machines whose names begin with `prefix`, one per line.
///
/// These are units, mounts, loop devices, layers, state files, registrations, cgroups and
/// processes. A test that ends with some of them has found a leak.
#[must_use]
pub fn left_of(prefix: &str) -> String {
    let slice = "/sys/fs/cgroup/machine.slice/machine-ci.slice";
    // The slice of a job with services.
    let settings = "/run/systemd/system.control/machine-ci";
    let job = prefix.replace('-', "_");
    let line = format!(
        "systemctl list-units --all --plain --no-legend 'nspawn-{prefix}*' 'pasta-{prefix}*'; \
         grep -F '/{prefix}' /proc/mounts; losetup --list --noheadings --output=BACK-FILE | grep -F '/{prefix}'; \
         ls -d /run/nspawn-ci/{prefix}* /var/lib/nspawn-ci/machines/{prefix}* /run/systemd/machines/{prefix}* \
         {slice}/*-{prefix}* {slice}/*/*-{prefix}* {slice}/*-{job}* {settings}-{job}* 2>/dev/null; \
         pgrep -a systemd-nspawn | grep -F -e '--machine={prefix}'; true"
    );
    sh(&line).out()
}
