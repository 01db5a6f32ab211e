//! Checks that the kernel enforces the limits of a machine.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::lifecycle::limits::{LIMITS, Limit, amount, configured_value};
use crate::machine::paths::MachinePaths;

/// Keys in `io.max`, which has a line for each disk with a limit (cgroup-v2.rst).
const DISK_KEYS: [(&str, &str); 4] = [
    ("IOReadBandwidthMax", "rbps"),
    ("IOWriteBandwidthMax", "wbps"),
    ("IOReadIOPSMax", "riops"),
    ("IOWriteIOPSMax", "wiops"),
];

/// Checks in the machine's cgroup that the kernel enforces the limits in `properties`.
///
/// Returns the default limits that it does not enforce.
pub fn check(paths: &MachinePaths, properties: &[OsString]) -> Result<Vec<&'static str>> {
    check_cgroup(&paths.cgroup(), properties)
}

/// Checks a cgroup like [`check`].
pub fn check_cgroup(cgroup: &Path, properties: &[OsString]) -> Result<Vec<&'static str>> {
    unenforced(properties, |limit| is_enforced(cgroup, limit))
}

/// Checks a machine that does not run yet: the kernel must have the controllers for the limits in `properties`.
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
}
