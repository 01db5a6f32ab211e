//! Whether the kernel's OOM killer has been at work in a machine, and which limit called it.

use std::fs;
use std::path::{Path, PathBuf};

use nspawn_common::machine::paths::{MachinePaths, PAYLOAD_CGROUP, SLICE, SLICE_CGROUP};
use nspawn_common::sys::cgroup;

/// The counts of one cgroup (cgroup.rst, `memory.events`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// How often its own limit left nothing to reclaim.
    limit: u64,
    /// How many processes in it, or below it, were killed.
    kills: u64,
}

/// The machine's cgroups and those above them that may have a limit, as they were at first. The first is the unit's.
#[derive(Debug)]
pub struct Watch {
    levels: Vec<(String, PathBuf, Counts)>,
}

impl Watch {
    /// Looks at them now. A kernel without the memory controller counts nothing.
    #[must_use]
    pub fn start(paths: &MachinePaths) -> Self {
        let own = format!("MemoryMax= of its unit {}", paths.unit());
        let levels = [
            (own.clone(), paths.cgroup()),
            // It has the unit's limit too, so that the machine sees the limit.
            (own, paths.cgroup().join(PAYLOAD_CGROUP)),
            (format!("MemoryMax= of {SLICE}"), SLICE_CGROUP.into()),
            (
                "MemoryMax= of machine.slice".to_owned(),
                Path::new(SLICE_CGROUP).with_file_name(""),
            ),
        ];
        Self {
            levels: levels
                .map(|(limit, cgroup)| (limit, cgroup.clone(), counts(&cgroup)))
                .into(),
        }
    }

    /// What the OOM killer did since, if anything.
    #[must_use]
    pub fn verdict(&self) -> Option<String> {
        let changes: Vec<_> = self
            .levels
            .iter()
            .map(|(limit, cgroup, before)| (limit, *before, counts(cgroup)))
            .collect();
        let (_, before, after) = changes.first()?;
        let kills = after.kills.saturating_sub(before.kills);
        if kills == 0 {
            return None;
        }
        let reached = changes
            .iter()
            .find(|(_, before, after)| after.limit > before.limit);
        let limit = reached.map_or(
            "the host's own memory, or a limit inside the machine",
            |(limit, ..)| limit,
        );
        Some(format!(
            "the kernel's OOM killer ended {kills} of the machine's processes; what was used up is {limit}"
        ))
    }
}

fn counts(cgroup: &Path) -> Counts {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    Counts {
        limit: cgroup::value(&read("memory.events.local"), "oom").unwrap_or(0),
        kills: cgroup::value(&read("memory.events"), "oom_kill").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cgroups in a directory of their own, and a watch over them.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> (Self, Watch) {
            let root =
                std::env::temp_dir().join(format!("nspawn-memory-{name}-{}", std::process::id()));
            for level in ["unit", "slice"] {
                fs::create_dir_all(root.join(level)).unwrap();
            }
            let levels = ["unit", "slice"]
                .map(|level| (level.to_owned(), root.join(level), Counts::default()));
            (
                Self(root),
                Watch {
                    levels: levels.into(),
                },
            )
        }

        fn write(&self, level: &str, oom: u32, kills: u32) {
            let (own, all) = (
                format!("low 0\noom {oom}\noom_kill 0\n"),
                format!("oom 9\noom_kill {kills}\n"),
            );
            fs::write(self.0.join(level).join("memory.events.local"), own).unwrap();
            fs::write(self.0.join(level).join("memory.events"), all).unwrap();
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_level_whose_limit_was_reached_is_named() {
        let (fake, watch) = Fake::new("level");
        assert_eq!(watch.verdict(), None);
        fake.write("unit", 1, 0);
        assert_eq!(watch.verdict(), None, "nothing was killed");
        fake.write("unit", 1, 2);
        let verdict = watch.verdict().unwrap();
        assert!(
            verdict.contains("ended 2 of") && verdict.ends_with("used up is unit"),
            "{verdict}"
        );
        fake.write("unit", 0, 2);
        fake.write("slice", 1, 2);
        assert!(watch.verdict().unwrap().ends_with("used up is slice"));
        fake.write("slice", 0, 2);
        assert!(watch.verdict().unwrap().contains("the host's own memory"));
    }
}
