//! Limits of all machines together: the slice that the units of machines are in.

use std::ffi::OsString;
use std::path::Path;

use nspawn_common::machine::paths::SLICE;

/// Limits of the slice if the administrator has configured nothing for it.
const DEFAULTS: [&str; 2] = ["MemoryMax=90%", "TasksMax=60%"];

/// Directories of the administrator's unit files and drop-ins (systemd.unit(5));
/// `systemctl set-property` writes to the last two.
const UNIT_DIRECTORIES: [&str; 6] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
];

/// Returns the command that sets the default limits of the slice; `None` if the slice is already
/// configured.
pub fn limit_command() -> Option<Vec<OsString>> {
    if is_configured() {
        return None;
    }
    let words = ["systemctl", "set-property", "--runtime", SLICE];
    Some(
        words
            .into_iter()
            .chain(DEFAULTS)
            .map(OsString::from)
            .collect(),
    )
}

fn is_configured() -> bool {
    let files = [SLICE.to_owned(), format!("{SLICE}.d")];
    UNIT_DIRECTORIES.iter().any(|directory| {
        files
            .iter()
            .any(|file| Path::new(directory).join(file).exists())
    })
}
