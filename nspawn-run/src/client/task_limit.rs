//! Which limit leaves a machine without a process for another command.

use std::fs;
use std::path::Path;

use anyhow::{Error, anyhow};
use nspawn_common::error::Failure;
use nspawn_common::machine::paths::{MachinePaths, SLICE, SLICE_CGROUP};

/// Returns the error of a command that the machine has no process for. `reason` is the agent's.
#[must_use]
pub fn exhausted(paths: &MachinePaths, reason: &str) -> Error {
    explain(
        &paths.cgroup(),
        Path::new(SLICE_CGROUP),
        &paths.unit(),
        reason,
    )
}

fn explain(cgroup: &Path, slice: &Path, unit: &str, reason: &str) -> Error {
    // What other machines have used up is not the job's fault.
    if let (None, Some(most)) = (used_up(cgroup), used_up(slice)) {
        return anyhow!(
            "no process is left for it: TasksMax={most} of {SLICE} is used up by all machines together"
        );
    }
    let limit = used_up(cgroup).map_or_else(
        || format!("a limit inside the machine is reached ({reason})"),
        |most| format!("TasksMax={most} of its unit {unit} is used up"),
    );
    let remedy =
        "end what earlier commands have left running, or allow more by --property=TasksMax=";
    Failure::job(format!("no process is left for it: {limit}; {remedy}")).into()
}

// The limit of the cgroup, if no other process fits into it (cgroup.rst, "PID"). The agent's process for the command may
// have taken the last place, and have ended by now.
fn used_up(cgroup: &Path) -> Option<u64> {
    let number = |file: &str| {
        fs::read_to_string(cgroup.join(file))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let (used, most) = (number("pids.current")?, number("pids.max")?);
    (used + 1 >= most).then_some(most)
}

#[cfg(test)]
mod tests {
    use nspawn_common::error;

    use super::*;

    #[test]
    fn the_limit_that_is_used_up_is_named() {
        let root = std::env::temp_dir().join(format!("nspawn-tasks-{}", std::process::id()));
        let [unit, slice] = ["unit", "slice"].map(|level| root.join(level));
        let write = |level: &Path, used: &str, most: &str| {
            fs::create_dir_all(level).unwrap();
            fs::write(level.join("pids.current"), used).unwrap();
            fs::write(level.join("pids.max"), most).unwrap();
        };
        for (of_unit, of_slice, is_of_job, words) in [
            (
                ("80\n", "80\n"),
                ("90\n", "max\n"),
                true,
                "TasksMax=80 of its unit x.service is used up; end",
            ),
            (
                ("79\n", "80\n"),
                ("90\n", "90\n"),
                true,
                "TasksMax=80 of its unit",
            ),
            (
                ("7\n", "80\n"),
                ("90\n", "90\n"),
                false,
                "TasksMax=90 of machine-ci.slice is used up by all",
            ),
            (
                ("7\n", "max\n"),
                ("90\n", "max\n"),
                true,
                "a limit inside the machine is reached (no fork)",
            ),
        ] {
            write(&unit, of_unit.0, of_unit.1);
            write(&slice, of_slice.0, of_slice.1);
            let error = explain(&unit, &slice, "x.service", "no fork");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error::is_job_fault(&error), is_of_job, "{error}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
