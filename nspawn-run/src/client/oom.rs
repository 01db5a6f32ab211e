//! Detection of the kernel's OOM killer, and of the memory limit that it enforced.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};
use nspawn_common::error::Failure;
use nspawn_common::machine::paths;
use nspawn_common::machine::paths::{MachinePaths, PAYLOAD_CGROUP, SLICE, SLICE_CGROUP};
use nspawn_common::sys::cgroup;

/// Remedy for a job that has used up its memory. Files in memory stay when their writer is killed.
const REMEDY: &str = "let the job use less memory, to which files in /dev/shm count, or raise the limit with \
    --property=MemoryMax=";

/// Event counters of a cgroup (cgroup.rst, `memory.events`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// Number of times that the cgroup's own limit left no memory to reclaim.
    limit_reached: u64,
    /// The same for the limits of the cgroup and all below it.
    any_limit_reached: u64,
    /// Number of processes in the cgroup or below it that were killed.
    kills: u64,
}

/// Cgroup that may have a memory limit, with its counters at the start of the watch.
#[derive(Debug)]
struct Level {
    limit: String,
    cgroup: PathBuf,
    /// Set if only the machines of the job use the memory of the cgroup.
    is_of_job: bool,
    before: Counters,
}

impl Level {
    fn new(limit: String, cgroup: PathBuf, is_of_job: bool) -> Self {
        let before = read_counters(&cgroup);
        Self {
            limit,
            cgroup,
            is_of_job,
            before,
        }
    }
}

/// Kills of the OOM killer.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    kills: u64,
    cause: String,
    /// Set if the job has used up its own memory.
    is_fault_of_job: bool,
}

impl Report {
    /// Returns the error of a command that has no result because of the kills.
    pub fn into_error(self) -> Error {
        if self.is_fault_of_job {
            Failure::job(format!("{self}; {REMEDY}")).into()
        } else {
            anyhow!("{self}")
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, cause, .. } = self;
        write!(
            out,
            "the kernel's OOM killer killed {kills} of the machine's processes: {cause}"
        )
    }
}

/// Watch over the cgroups of a machine and those above them. The first is that of the machine's
/// unit.
#[derive(Debug)]
pub struct Watch {
    levels: Vec<Level>,
}

impl Watch {
    /// Reads the counters. On a kernel without the memory controller they stay at zero.
    pub fn start(paths: &MachinePaths) -> Self {
        let limit_of_unit = format!("MemoryMax= of its unit {}", paths.unit());
        let mut levels = vec![
            Level::new(limit_of_unit.clone(), paths.cgroup(), true),
            // The payload has the limit of the unit too, so that programs in the machine see it.
            Level::new(limit_of_unit, paths.cgroup().join(PAYLOAD_CGROUP), true),
        ];
        if let Some(job) = paths.slice_of() {
            let limit = format!(
                "MemoryMax= of {}, which the job and its services share,",
                paths.slice()
            );
            levels.push(Level::new(limit, paths::slice_cgroup_of_job(job), true));
        }
        levels.extend([
            Level::new(format!("MemoryMax= of {SLICE}"), SLICE_CGROUP.into(), false),
            Level::new(
                "MemoryMax= of machine.slice".to_owned(),
                Path::new(SLICE_CGROUP).with_file_name(""),
                false,
            ),
        ]);
        Self { levels }
    }

    /// Returns the kills in the machine since the start of the watch, if there were any.
    ///
    /// The counters vanish with the machine's unit.
    pub fn report(&self) -> Option<Report> {
        let unit = self.levels.first()?;
        let now = read_counters(&unit.cgroup);
        let kills = now.kills.saturating_sub(unit.before.kills);
        if kills == 0 {
            return None;
        }
        let reached = self
            .levels
            .iter()
            .find(|level| read_counters(&level.cgroup).limit_reached > level.before.limit_reached);
        let (cause, is_fault_of_job) = match reached {
            Some(level) => (format!("{} is reached", level.limit), level.is_of_job),
            None if now.any_limit_reached > unit.before.any_limit_reached => {
                ("a limit inside the machine is reached".to_owned(), true)
            }
            None => ("the host's memory is used up".to_owned(), false),
        };
        Some(Report {
            kills,
            cause,
            is_fault_of_job,
        })
    }
}

fn read_counters(cgroup: &Path) -> Counters {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let all = read("memory.events");
    Counters {
        limit_reached: cgroup::value(&read("memory.events.local"), "oom").unwrap_or(0),
        any_limit_reached: cgroup::value(&all, "oom").unwrap_or(0),
        kills: cgroup::value(&all, "oom_kill").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use nspawn_common::error;

    use super::*;

    /// Directory with files like those of two cgroups, which are removed on drop.
    struct FakeCgroups(PathBuf);

    impl FakeCgroups {
        fn new(name: &str) -> (Self, Watch) {
            let root =
                std::env::temp_dir().join(format!("nspawn-memory-{name}-{}", std::process::id()));
            for level in ["unit", "slice"] {
                fs::create_dir_all(root.join(level)).unwrap();
            }
            let levels = ["unit", "slice"]
                .map(|level| Level::new(level.to_owned(), root.join(level), level == "unit"))
                .into();
            (Self(root), Watch { levels })
        }

        fn write(&self, level: &str, oom: u32, all: u32, kills: u32) {
            let own = format!("low 0\noom {oom}\noom_kill 0\n");
            let total = format!("oom {all}\noom_kill {kills}\n");
            fs::write(self.0.join(level).join("memory.events.local"), own).unwrap();
            fs::write(self.0.join(level).join("memory.events"), total).unwrap();
        }
    }

    impl Drop for FakeCgroups {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn reached_limit_is_named() {
        let (cgroups, watch) = FakeCgroups::new("level");
        assert_eq!(watch.report(), None);
        cgroups.write("unit", 1, 1, 0);
        assert_eq!(watch.report(), None, "no process was killed");
        let report = || {
            let report = watch.report().unwrap();
            (
                report.to_string(),
                error::is_job_fault(&report.into_error()),
            )
        };
        for (unit, all, slice, cause, is_job_fault) in [
            (1, 1, 0, "unit is reached", true),
            (0, 0, 1, "slice is reached", false),
            (0, 1, 0, "a limit inside the machine is reached", true),
            (0, 0, 0, "the host's memory is used up", false),
        ] {
            cgroups.write("unit", unit, all, 2);
            cgroups.write("slice", slice, slice, 2);
            let (message, fault) = report();
            assert!(
                message.contains("killed 2 of") && message.ends_with(cause),
                "{message}"
            );
            assert_eq!(fault, is_job_fault, "{message}");
        }
    }
}
