//! Units of the host that have the names of a machine's units, and belong to other programs.
//!
//! The services of these programs are examples: the unit of a machine `ci-update` would be
//! `nspawn-ci-update.service`.

use std::fs;
use std::path::Path;

use crate::machine::paths;
use crate::machine::paths::{MachinePaths, SLICE};

/// Directories of units (systemd.unit(5), "Unit File Load Path").
const DIRECTORIES: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
    TRANSIENT,
];
/// Directory of transient units.
const TRANSIENT: &str = "/run/systemd/transient";
/// Types of units that by default start the service of the same name (systemd.timer(5),
/// systemd.path(5), systemd.socket(5)).
const STARTING_TYPES: [&str; 3] = ["timer", "path", "socket"];

/// Returns a unit of another program that has the name of one of the machine's units, or starts a
/// unit of that name.
#[must_use]
pub fn find_foreign(paths: &MachinePaths) -> Option<String> {
    let unit = paths.unit();
    let stem = unit.trim_end_matches("service");
    let starting = STARTING_TYPES
        .iter()
        .map(|kind| format!("{stem}{kind}"))
        .find(|unit| has_file(unit));
    starting.or_else(|| {
        [unit.clone(), paths.network_unit(), paths.command_unit()]
            .into_iter()
            .find(|unit| is_foreign(unit))
    })
}

/// Returns whether a unit with the name of a machine's unit belongs to another program.
#[must_use]
pub fn is_foreign(unit: &str) -> bool {
    match fs::read_to_string(Path::new(TRANSIENT).join(unit)) {
        Ok(text) => !is_of_machine(&text),
        Err(_) => has_file(unit),
    }
}

fn has_file(unit: &str) -> bool {
    let path = |directory| Path::new(directory).join(unit);
    DIRECTORIES
        .iter()
        .any(|directory| fs::symlink_metadata(path(directory)).is_ok())
}

/// Returns whether this is the text of a transient unit in the slice of machines, or of a job.
///
/// systemd writes the slice before the command. A unit that is just being created has no command
/// yet, and may be a machine's.
fn is_of_machine(text: &str) -> bool {
    let slice = text.lines().find_map(|line| line.strip_prefix("Slice="));
    match slice {
        Some(slice) => slice == SLICE || paths::job_of_slice(slice.as_ref()).is_some(),
        None => !text.lines().any(|line| line.starts_with("ExecStart=")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transient_unit_of_a_machine_is_known_by_its_slice() {
        let unit = "[Service]\nSlice=machine-ci.slice\nExecStart=\nExecStart=\"x\"\n";
        assert!(is_of_machine(unit));
        assert!(is_of_machine(&unit.replace("ci.slice", "ci-x.slice")));
        assert!(is_of_machine("[Service]\nType=notify\n"));
        assert!(!is_of_machine("[Service]\nExecStart=\"/bin/sleep\"\n"));
        assert!(!is_of_machine("[Service]\nSlice=x.slice\nExecStart=x\n"));
    }
}
