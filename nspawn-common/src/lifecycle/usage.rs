//! Describes the resource usage of a machine in one line.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::machine::name::MachineName;
use crate::machine::state::State;
use crate::sys::cgroup;

/// Returns the machine's age, CPU time, peak of memory, and the disk space of its layer.
///
/// Values that the host's kernel does not count are left out (cgroup.rst: `memory.peak` exists
/// since kernel 5.19).
#[must_use]
pub fn describe(name: &MachineName) -> String {
    let paths = State::paths_of(name);
    let read = |file: &str| fs::read_to_string(paths.cgroup().join(file)).ok();
    let age = State::read(name).ok().and_then(|state| state.age());
    let cpu = read("cpu.stat")
        .and_then(|stat| cgroup::value(&stat, "usage_usec"))
        .map(Duration::from_micros);
    let memory = read("memory.peak").and_then(|peak| peak.trim().parse().ok());
    // Blocks of 512 bytes (stat(2)).
    let disk = fs::metadata(paths.disk())
        .ok()
        .map(|disk| disk.blocks() * 512);
    let parts = [
        age.map(|age| format!("{:.1} s", age.as_secs_f64())),
        cpu.map(|cpu| format!("{:.1} s of CPU", cpu.as_secs_f64())),
        memory.map(|bytes| format!("{} of memory at most", size(bytes))),
        disk.map(|bytes| format!("{} of disk", size(bytes))),
    ];
    format!(
        "machine {name} has used {}",
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    )
}

fn size(bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    if mib < 10_240 {
        format!("{mib} MiB")
    } else {
        format!("{} GiB", mib >> 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mib_or_gib() {
        assert_eq!(size(1), "1 MiB");
        assert_eq!(size(10_239 << 20), "10239 MiB");
        assert_eq!(size(20 << 30), "20 GiB");
    }
}
