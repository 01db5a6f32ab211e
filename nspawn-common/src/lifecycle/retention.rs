//! Keeps machines for inspection, after something in them failed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
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

/// Options for mounting the files of a hostile machine.
const HARMLESS: &str = "ro,nodev,nosuid,noexec,nosymfollow";

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

/// Returns a command that opens a shell of the host in the tree of a stopped machine, its layer over
/// its image.
///
/// Nothing of the tree runs, since the machine's walls are no longer there. The mounts end with the
/// shell.
fn inspect_command(state: &State) -> OsString {
    let root = state.paths().root_mount();
    let mut script = mount_commands(state, &root).join(OsStr::new(" && "));
    script.push(" && ");
    script.push(shell::join([OsStr::new("cd"), root.as_ref()]));
    script.push(" && exec \"${@:-sh}\"");
    let words = ["unshare", "--mount", "sh", "-c"].map(OsStr::new);
    shell::join(words.into_iter().chain([&*script, "sh".as_ref()]))
}

/// Returns the commands that mount the tree on `root`.
fn mount_commands(state: &State, root: &Path) -> Vec<OsString> {
    let paths = state.paths();
    if state.layer == Layer::Snapshot {
        return vec![mount("none", "bind", paths.snapshot().as_os_str(), root)];
    }
    let image = paths.image_mount();
    let (mut commands, lower) = mount_layers(&state.image_layers, &image);
    let is_stack = lower.len() > 1;
    if state.layer_size.is_some() {
        let disk = paths.disk();
        commands.push(mount("auto", "loop", disk.as_os_str(), &paths.disk_mount()));
    }
    let upper = state.layer_root().join("upper");
    let mut overlay = OsString::from("redirect_dir=follow,lowerdir=");
    let directories: Vec<&Path> = std::iter::once(&upper)
        .chain(&lower)
        .map(PathBuf::as_path)
        .collect();
    overlay.push(nspawn::joined(&directories));
    let mut overlay = mount("overlay", overlay, "overlay".as_ref(), root);
    if is_stack {
        // mount(8) would give each option to fsconfig(2), which takes 255 bytes.
        let mut words = OsString::from("LIBMOUNT_FORCE_MOUNT2=always ");
        words.push(overlay);
        overlay = words;
        commands.push(shell::join([OsStr::new("cd"), image.as_ref()]));
    }
    commands.push(overlay);
    commands
}

/// Returns the commands that mount the layers of an image, and the directories of the overlay, the
/// highest one first. A single layer is mounted on `target`. Others are mounted below it, where the
/// names of the directories begin, since mount(2) takes at most a page of options.
fn mount_layers(layers: &[PathBuf], target: &Path) -> (Vec<OsString>, Vec<PathBuf>) {
    if let [only] = layers {
        return (vec![mount_image(only, target)], vec![target.to_owned()]);
    }
    let words = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=1m,nodev,nosuid,noexec",
        "none",
    ]
    .map(OsStr::new);
    let mut commands = vec![shell::join(words.into_iter().chain([target.as_ref()]))];
    let mut lower = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let name = number.to_string();
        let point = target.join(&name);
        commands.push(shell::join([OsStr::new("mkdir"), point.as_ref()]));
        commands.push(mount_image(layer, &point));
        lower.insert(0, PathBuf::from(name));
    }
    (commands, lower)
}

fn mount_image(image: &Path, target: &Path) -> OsString {
    if !image.is_file() {
        return mount("none", "bind", image.as_os_str(), target);
    }
    let words = ["systemd-dissect", "--mount", "--read-only"].map(OsStr::new);
    shell::join(
        words
            .into_iter()
            .chain([image.as_os_str(), target.as_ref()]),
    )
}

/// Returns a command that mounts `source`, so that none of its files has an effect on the host.
fn mount(kind: &str, options: impl AsRef<OsStr>, source: &OsStr, target: &Path) -> OsString {
    let options = [options.as_ref(), HARMLESS.as_ref()].join(OsStr::new(","));
    let words = ["mount", "-t", kind, "-o"].map(OsStr::new);
    shell::join(
        words
            .into_iter()
            .chain([&*options, source, target.as_ref()]),
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
