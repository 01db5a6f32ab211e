//! Detection of the kernel's OOM killer, and of the memory limit that it enforced.

use std::fs;
use std::path::{Path, PathBuf};

use nspawn_common::machine::paths::{MachinePaths, PAYLOAD_CGROUP, SLICE, SLICE_CGROUP};
use nspawn_common::sys::cgroup;

/// Event counters of a cgroup (cgroup.rst, `memory.events`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// Number of times that the cgroup's own limit left no memory to reclaim.
    limit_reached: u64,
    /// Number of processes in the cgroup or below it that were killed.
    kills: u64,
}

/// Cgroup that may have a memory limit, with its counters at the start of the watch.
#[derive(Debug)]
struct Level {
    limit: String,
    cgroup: PathBuf,
    before: Counters,
}

impl Level {
    fn new(limit: String, cgroup: PathBuf) -> Self {
        let before = read_counters(&cgroup);
        Self {
            limit,
            cgroup,
            before,
        }
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
        let levels = vec![
            Level::new(limit_of_unit.clone(), paths.cgroup()),
            // The payload has the limit of the unit too, so that programs in the machine see it.
            Level::new(limit_of_unit, paths.cgroup().join(PAYLOAD_CGROUP)),
            Level::new(format!("MemoryMax= of {SLICE}"), SLICE_CGROUP.into()),
            Level::new(
                "MemoryMax= of machine.slice".to_owned(),
                Path::new(SLICE_CGROUP).with_file_name(""),
            ),
        ];
        Self { levels }
    }

    /// Returns a message if the OOM killer was active since the start of the watch.
    pub fn report(&self) -> Option<String> {
        let now: Vec<Counters> = self
            .levels
            .iter()
            .map(|level| read_counters(&level.cgroup))
            .collect();
        let kills = now
            .first()?
            .kills
            .saturating_sub(self.levels.first()?.before.kills);
        if kills == 0 {
            return None;
        }
        let reached = self
            .levels
            .iter()
            .zip(now)
            .find(|(level, now)| now.limit_reached > level.before.limit_reached);
        let cause = match reached {
            Some((level, _)) => format!("{} is reached", level.limit),
            None => {
                "the host's memory is used up, or a limit inside the machine is reached".to_owned()
            }
        };
        Some(format!(
            "the kernel's OOM killer killed {kills} of the machine's processes: {cause}"
        ))
    }
}

fn read_counters(cgroup: &Path) -> Counters {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    Counters {
        limit_reached: cgroup::value(&read("memory.events.local"), "oom").unwrap_or(0),
        kills: cgroup::value(&read("memory.events"), "oom_kill").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
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
                .map(|level| Level::new(level.to_owned(), root.join(level)))
                .into();
            (Self(root), Watch { levels })
        }

        fn write(&self, level: &str, oom: u32, kills: u32) {
            let own = format!("low 0\noom {oom}\noom_kill 0\n");
            let total = format!("oom 9\noom_kill {kills}\n");
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
        cgroups.write("unit", 1, 0);
        assert_eq!(watch.report(), None, "no process was killed");
        cgroups.write("unit", 1, 2);
        let report = watch.report().unwrap();
        assert!(
            report.contains("killed 2 of") && report.ends_with(": unit is reached"),
            "{report}"
        );
        cgroups.write("unit", 0, 2);
        cgroups.write("slice", 1, 2);
        assert!(watch.report().unwrap().ends_with(": slice is reached"));
        cgroups.write("slice", 0, 2);
        assert!(watch.report().unwrap().contains("the host's memory"));
    }
}
