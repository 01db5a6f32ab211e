//! Keeps machines for inspection, after something in them failed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::config::init::Init;
use crate::config::layer::Layer;
use crate::machine::paths::MachinePaths;
use crate::machine::state::State;
use crate::shell;
use crate::sys::clock;
use crate::systemd::nspawn;

/// Clock of the time in the mark of a kept machine. An hour of retention also passes while the host
/// sleeps.
const CLOCK: &str = "boottime ";

/// Records that something in the machine has failed.
pub fn record_failure(paths: &MachinePaths) -> Result<()> {
    write(&paths.failure_mark(), "")
}

/// Returns whether something in the machine has failed.
#[must_use]
pub fn has_failed(paths: &MachinePaths) -> bool {
    paths.failure_mark().exists()
}

/// Keeps the machine for `time` from now on. After that the machine is stale.
pub fn keep(paths: &MachinePaths, time: Duration) -> Result<()> {
    write(
        &paths.kept_mark(),
        &format!("{CLOCK}{}", (clock::since_boot() + time).as_secs()),
    )
}

/// Returns whether the machine is kept, and the time for that has not passed.
#[must_use]
pub fn is_kept(paths: &MachinePaths) -> bool {
    fs::read_to_string(paths.kept_mark()).is_ok_and(|mark| is_ahead(&mark, clock::since_boot()))
}

fn is_ahead(mark: &str, now: Duration) -> bool {
    let until = mark
        .strip_prefix(CLOCK)
        .and_then(|until| until.parse().ok());
    until.is_some_and(|until| now < Duration::from_secs(until))
}

/// Returns a line that says for how long the machine is kept, how to enter it, and how to remove
/// it.
#[must_use]
pub fn describe(state: &State, is_running: bool) -> String {
    let (name, minutes) = (&state.name, state.keep_for.as_secs().div_ceil(60));
    let enter = if is_running || state.init == Init::None {
        format!("nspawn-run {name}").into()
    } else {
        inspect_command(state)
    };
    let enter = enter.to_string_lossy();
    format!(
        "machine {name} is kept for {minutes} min; inspect it: {enter}; remove it: nspawn-cleanup {name}"
    )
}

/// Returns whether there is anything to inspect. A stopped machine with an in-memory layer leaves
/// nothing behind.
#[must_use]
pub fn is_inspectable(state: &State, is_running: bool) -> bool {
    is_running || state.init == Init::None || !state.layer.is_in_memory()
}

/// Returns a command that shows the files of a stopped machine, its layer over its image,
/// read-only.
fn inspect_command(state: &State) -> OsString {
    let paths = state.paths();
    if state.layer == Layer::Snapshot {
        return read_only_nspawn(&[&nspawn::assign("--directory", paths.snapshot().as_os_str())]);
    }
    let is_disk_image = state.image_path.is_file();
    let image = if is_disk_image {
        paths.image_mount()
    } else {
        state.image_path.clone()
    };
    let both = nspawn::joined(&[&image, &state.layer_root().join("upper"), Path::new("/")]);
    let tree = nspawn::assign("--directory", image.as_os_str());
    let nspawn = read_only_nspawn(&[&tree, &nspawn::assign("--overlay-ro", &both)]);
    let mount_image = [
        OsStr::new("systemd-dissect"),
        "--mount".as_ref(),
        "--read-only".as_ref(),
    ];
    let mount_image = mount_image
        .into_iter()
        .chain([state.image_path.as_ref(), image.as_os_str()]);
    let (disk, target) = (paths.disk(), paths.disk_mount());
    let mount_disk = [
        OsStr::new("mount"),
        "-o".as_ref(),
        "ro,loop".as_ref(),
        disk.as_ref(),
        target.as_ref(),
    ];
    let mounts = [
        (is_disk_image, shell::join(mount_image)),
        (state.layer_size.is_some(), shell::join(mount_disk)),
    ];
    let mounts: Vec<_> = mounts
        .into_iter()
        .filter_map(|(is_needed, command)| is_needed.then_some(command))
        .collect();
    if mounts.is_empty() {
        return nspawn;
    }
    let mut script = mounts.join(OsStr::new(" && "));
    script.push(" && exec ");
    script.push(nspawn);
    script.push(" \"$@\"");
    shell::join([
        OsStr::new("unshare"),
        "--mount".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        &script,
        "sh".as_ref(),
    ])
}

fn read_only_nspawn(options: &[&OsStr]) -> OsString {
    shell::join(
        [OsStr::new("systemd-nspawn"), "--read-only".as_ref()]
            .iter()
            .chain(options),
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_kept_until_its_time_since_the_boot() {
        let hour = Duration::from_secs(3600);
        assert!(is_ahead("boottime 3601", hour) && !is_ahead("boottime 3600", hour));
        // A time of the wall clock would be decades ahead.
        for other in ["", "1700000000", "boottime", "boottime x"] {
            assert!(!is_ahead(other, hour), "{other:?}");
        }
    }
}
