//! Resource limits of machines: the defaults, and whether the kernel enforces a limit.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::cli::values;
use crate::machine::paths::MachinePaths;

/// Default limits of a machine, relative to its host. `--property` overrides them, because it comes
/// later.
pub const DEFAULTS: [&str; 3] = [
    "MemoryMax=80%",
    "MemorySwapMax=0", // one machine that swaps slows down all the others
    "TasksMax=15%",    // systemd's default for services
];

/// A limit, as a property of a unit (systemd.resource-control(5)) and as a file of its cgroup
/// (cgroup-v2.rst).
struct Limit {
    property: &'static str,
    file: &'static str,
    /// Total that a percentage refers to, for example the host's memory; `None` if percentages are
    /// absolute.
    percent_base: Option<fn() -> Option<u64>>,
}

const LIMITS: [Limit; 16] = [
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

/// Keys in `io.max`, which has a line for each disk with a limit (cgroup-v2.rst).
const DISK_KEYS: [(&str, &str); 4] = [
    ("IOReadBandwidthMax", "rbps"),
    ("IOWriteBandwidthMax", "wbps"),
    ("IOReadIOPSMax", "riops"),
    ("IOWriteIOPSMax", "wiops"),
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

/// Checks in the machine's cgroup that the kernel enforces the limits in `properties`.
///
/// Returns the default limits that it does not enforce.
pub fn check(paths: &MachinePaths, properties: &[OsString]) -> Result<Vec<&'static str>> {
    unenforced(properties, |limit| is_enforced(&paths.cgroup(), limit))
}

/// Checks a machine that does not run yet: the kernel must have the controllers for the limits in
/// `properties`.
///
/// Returns the default limits for which it has none.
pub fn check_controllers(properties: &[OsString]) -> Result<Vec<&'static str>> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    unenforced(properties, |limit| {
        let controller = limit.file.split('.').next();
        controllers
            .split_whitespace()
            .any(|name| Some(name) == controller)
    })
}

fn unenforced(
    properties: &[OsString],
    is_enforced: impl Fn(&Limit) -> bool,
) -> Result<Vec<&'static str>> {
    let mut unenforced = Vec::new();
    for limit in &LIMITS {
        let Some(value) = configured_value(limit.property, properties) else {
            continue;
        };
        if !has_effect(limit, &value) || is_enforced(limit) {
            continue;
        }
        if is_in(limit, properties) {
            return refuse(limit, &value);
        }
        unenforced.push(limit.property);
    }
    // A host without swap space needs no limit on swap space.
    unenforced.retain(|property| *property != "MemorySwapMax" || has_swap());
    Ok(unenforced)
}

fn is_in(limit: &Limit, properties: &[OsString]) -> bool {
    let prefix = format!("{}=", limit.property);
    properties
        .iter()
        .any(|entry| entry.as_bytes().starts_with(prefix.as_bytes()))
}

fn refuse<T>(limit: &Limit, value: &OsStr) -> Result<T> {
    let remedy = match disk_key(limit) {
        Some(_) => "; name a path whose file system is on a single disk",
        None => "",
    };
    bail!(
        "its limit {}={} has no effect: {} in its cgroup does not show it, so this host's kernel does not enforce it{}",
        limit.property,
        value.to_string_lossy(),
        limit.file,
        remedy
    )
}

fn is_enforced(cgroup: &Path, limit: &Limit) -> bool {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).ok();
    // The BFQ scheduler has a file of its own for the weight.
    let content =
        read(limit.file).or_else(|| read("io.bfq.weight").filter(|_| limit.property == "IOWeight"));
    content.is_some_and(|content| shows_limit(limit, &content))
}

// MemoryMin=0 and MemoryLow=0 reserve nothing, so no file needs to show them.
fn has_effect(limit: &Limit, value: &OsStr) -> bool {
    match limit.property {
        "MemoryMin" | "MemoryLow" => amount(limit.property, value) != Some(0),
        _ => !value.as_bytes().ends_with(b" infinity"),
    }
}

fn disk_key(limit: &Limit) -> Option<&'static str> {
    DISK_KEYS
        .into_iter()
        .find(|(property, _)| *property == limit.property)
        .map(|(_, key)| key)
}

// `content` is that of the limit's cgroup file.
fn shows_limit(limit: &Limit, content: &str) -> bool {
    if let Some(key) = disk_key(limit) {
        let mut pairs = content
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        return pairs.any(|(name, value)| name == key && value != "max");
    }
    match limit.property {
        "MemoryMin" | "MemoryLow" => content.trim() != "0",
        _ => !content.starts_with("max"),
    }
}

fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_enforced_if_its_file_shows_it() {
        let limit = |property: &str| {
            LIMITS
                .iter()
                .find(|limit| limit.property == property)
                .unwrap()
        };
        for (property, content, is_enforced) in [
            ("MemoryMax", "1073741824\n", true),
            ("MemoryMax", "max\n", false),
            ("MemoryMin", "0\n", false),
            ("MemoryLow", "4096\n", true),
            ("CPUQuota", "50000 100000\n", true),
            ("IOWriteBandwidthMax", "", false),
            (
                "IOWriteBandwidthMax",
                "8:0 rbps=max wbps=1048576 riops=max wiops=max\n",
                true,
            ),
            (
                "IOReadBandwidthMax",
                "8:0 rbps=max wbps=1048576 riops=max wiops=max\n",
                false,
            ),
            (
                "IOReadIOPSMax",
                "7:1 rbps=max wbps=max riops=max wiops=9\n8:0 rbps=max wbps=max riops=5 wiops=max\n",
                true,
            ),
        ] {
            assert_eq!(
                shows_limit(limit(property), content),
                is_enforced,
                "{property}: {content}"
            );
        }
    }

    #[test]
    fn limit_that_was_asked_for_and_is_not_enforced_is_an_error() {
        let refused = |given: &str| {
            unenforced(&[given.into()], |limit| shows_limit(limit, ""))
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused("IOWriteBandwidthMax=/proc 1M")
                .ends_with("name a path whose file system is on a single disk")
        );
        assert!(unenforced(&["MemoryMin=1G".into()], |limit| shows_limit(limit, "0\n")).is_err());
        for nothing in [
            "MemoryMin=0",
            "MemoryLow=0%",
            "IOReadIOPSMax=/dev/sda infinity",
            "IOReadIOPSMax=",
        ] {
            assert!(
                unenforced(&[nothing.into()], |_| nothing.is_empty()).is_ok(),
                "{nothing}"
            );
        }
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
