//! The limit that prevents a machine from starting another process.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};
use nspawn_common::error::Failure;
use nspawn_common::machine::paths;
use nspawn_common::machine::paths::{MachinePaths, SLICE, SLICE_CGROUP};

/// Returns the error of a command for which the machine has no process left.
///
/// `reason` is the agent's description of the failure.
pub fn exhausted(paths: &MachinePaths, reason: &str) -> Error {
    let unit = format!("its unit {}", paths.unit());
    let mut levels = vec![(paths.cgroup(), unit)];
    if let Some(job) = paths.slice_of() {
        let slice = format!("{}, which the job and its services share", paths.slice());
        levels.push((paths::slice_cgroup_of_job(job), slice));
    }
    explain(&levels, Path::new(SLICE_CGROUP), reason)
}

/// `levels` are the cgroups with limits of the job itself, with their descriptions.
fn explain(levels: &[(PathBuf, String)], slice: &Path, reason: &str) -> Error {
    let job_limit = levels
        .iter()
        .find_map(|(cgroup, level)| Some((reached_limit(cgroup)?, level)));
    // The job is not at fault if other machines have used up the limit of all machines.
    if let (None, Some(limit)) = (job_limit, reached_limit(slice)) {
        return anyhow!(
            "it can't start another process: all machines together have reached TasksMax={limit} of {SLICE}"
        );
    }
    let cause = match job_limit {
        Some((limit, level)) => format!("TasksMax={limit} of {level} is reached"),
        None => format!("a limit inside the machine is reached ({reason})"),
    };
    Failure::job(format!(
        "it can't start another process: {cause}; end the processes that earlier commands left running, or \
         raise the limit with --property=TasksMax="
    ))
    .into()
}

// Returns the limit of a cgroup if no other process fits into the cgroup (cgroup.rst, "PID"). The
// agent's process for the command may have taken the last place, and may have ended by now.
fn reached_limit(cgroup: &Path) -> Option<u64> {
    let read = |file: &str| {
        let text = fs::read_to_string(cgroup.join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (current, limit) = (read("pids.current")?, read("pids.max")?);
    (current + 1 >= limit).then_some(limit)
}

#[cfg(test)]
mod tests {
    use nspawn_common::error;

    use super::*;

    #[test]
    fn reached_limit_is_named() {
        let root = std::env::temp_dir().join(format!("nspawn-tasks-{}", std::process::id()));
        let [unit, slice] = ["unit", "slice"].map(|level| root.join(level));
        let write = |level: &Path, current: &str, limit: &str| {
            fs::create_dir_all(level).unwrap();
            fs::write(level.join("pids.current"), current).unwrap();
            fs::write(level.join("pids.max"), limit).unwrap();
        };
        for (of_unit, of_slice, is_job_fault, message) in [
            (
                ("80\n", "80\n"),
                ("90\n", "max\n"),
                true,
                "TasksMax=80 of its unit x.service is reached; end",
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
                "all machines together have reached TasksMax=90 of machine-ci.slice",
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
            let levels = [(unit.clone(), "its unit x.service".to_owned())];
            let error = explain(&levels, &slice, "no fork");
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(error::is_job_fault(&error), is_job_fault, "{error}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
