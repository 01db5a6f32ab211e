//! Resource limits of machines: their names, defaults and values.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::cli::values;

/// Default limits of a machine, relative to its host. `--property` overrides them, because it comes
/// later.
pub const DEFAULTS: [&str; 3] = [
    "MemoryMax=80%",
    "MemorySwapMax=0", // one machine that swaps slows down all the others
    "TasksMax=15%",    // systemd's default for services
];

/// A limit, as a property of a unit (systemd.resource-control(5)) and as a file of its cgroup (cgroup-v2.rst).
pub(super) struct Limit {
    /// Name of the property.
    pub property: &'static str,
    /// Name of the file.
    pub file: &'static str,
    /// Total that a percentage refers to, for example the host's memory; `None` if percentages are absolute.
    percent_base: Option<fn() -> Option<u64>>,
}

pub(super) const LIMITS: [Limit; 16] = [
    of_memory("MemoryMax", "memory.max"),
    of_memory("MemoryHigh", "memory.high"),
    of_memory("MemoryMin", "memory.min"),
    of_memory("MemoryLow", "memory.low"),
    of_memory("MemorySwapMax", "memory.swap.max"),
    of_tasks("TasksMax", "pids.max"),
    absolute("CPUQuota", "cpu.max"),
    absolute("CPUWeight", "cpu.weight"),
    absolute("IOWeight", "io.weight"),
    absolute("AllowedCPUs", "cpuset.cpus"),
    absolute("AllowedMemoryNodes", "cpuset.mems"),
    of_memory("MemoryZSwapMax", "memory.zswap.max"),
    absolute("IOReadBandwidthMax", "io.max"),
    absolute("IOWriteBandwidthMax", "io.max"),
    absolute("IOReadIOPSMax", "io.max"),
    absolute("IOWriteIOPSMax", "io.max"),
];

const fn absolute(property: &'static str, file: &'static str) -> Limit {
    Limit {
        property,
        file,
        percent_base: None,
    }
}

const fn of_memory(property: &'static str, file: &'static str) -> Limit {
    Limit {
        property,
        file,
        percent_base: Some(memory),
    }
}

const fn of_tasks(property: &'static str, file: &'static str) -> Limit {
    Limit {
        property,
        file,
        percent_base: Some(max_tasks),
    }
}

/// Returns the limits among `properties`, after the defaults, for a unit without other properties.
pub fn only_limits(properties: &[OsString]) -> Vec<OsString> {
    let is_limit = |property: &&OsString| {
        let (name, _) = property.to_str()?.split_once('=')?;
        LIMITS.iter().find(|limit| limit.property == name)
    };
    let given = properties.iter().filter(|entry| is_limit(entry).is_some());
    let defaults = DEFAULTS.iter().map(OsString::from);
    defaults.chain(given.cloned()).collect()
}

/// Returns the value of a property: the last one in `properties`, or the default.
///
/// Returns `None` if there is no value, or if the last one removes the limit.
pub fn configured_value(property: &str, properties: &[OsString]) -> Option<OsString> {
    let prefix = format!("{property}=");
    let properties = properties.iter().map(OsString::as_os_str);
    let last = DEFAULTS
        .iter()
        .map(OsStr::new)
        .chain(properties)
        .filter_map(|entry| entry.as_bytes().strip_prefix(prefix.as_bytes()))
        .next_back()?;
    let removes_limit = last.is_empty() || last == b"infinity";
    (!removes_limit).then(|| OsStr::from_bytes(last).to_owned())
}

/// Returns the value of a property as a number; `None` if it is no number or no limit.
pub fn amount(property: &str, value: &OsStr) -> Option<u64> {
    let limit = LIMITS.iter().find(|limit| limit.property == property)?;
    let value = value.to_str()?;
    match (value.strip_suffix('%'), limit.percent_base) {
        (Some(percent), Some(base)) => {
            let percent: u64 = percent.parse().ok().filter(|percent| *percent <= 100)?;
            Some(base()? / 100 * percent)
        }
        (Some(percent), None) => percent.parse().ok(),
        (None, Some(_)) => values::parse_size(value).ok(),
        (None, None) => None,
    }
}

/// Returns the size of the host's memory, in bytes.
pub fn memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

fn max_tasks() -> Option<u64> {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
        text.trim().parse().ok()
    };
    read("pid_max").into_iter().chain(read("threads-max")).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_are_set_on_a_slice() {
        let given = ["DevicePolicy=auto", "TasksMax=5", "CPUQuota=", "x"].map(OsString::from);
        let limits = only_limits(&given);
        assert_eq!(limits[DEFAULTS.len()..], ["TasksMax=5", "CPUQuota="]);
        assert_eq!(limits[..DEFAULTS.len()], DEFAULTS);
    }

    #[test]
    fn percentages_refer_to_the_host() {
        assert_eq!(
            amount("MemoryMax", "50%".as_ref()).unwrap(),
            memory().unwrap() / 100 * 50
        );
        assert_eq!(amount("TasksMax", "100".as_ref()), Some(100));
        assert_eq!(amount("MemoryMax", "infinity".as_ref()), None);
    }
}
