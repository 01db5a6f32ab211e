//! Limits of a machine: what it has where nobody says otherwise, what a job may ask for, and whether the kernel
//! holds them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Result, bail};
use nspawn_common::cli::sources;
use nspawn_common::error::Failure;
use nspawn_common::machine::paths::{MachinePaths, SLICE};

/// What every machine has, relative to its host. Users override by `--property`, which comes later.
pub const DEFAULTS: [&str; 3] = [
    "MemoryMax=80%",
    "MemorySwapMax=0", // what is swapped out for one slows all
    "TasksMax=15%",    // as systemd has it for services
];

/// What all machines have together, where the administrator has no settings for their slice.
const OF_ALL: [&str; 2] = ["MemoryMax=90%", "TasksMax=60%"];

/// Where those settings would be (systemd.unit(5); the last two, `systemctl set-property`).
const SETTINGS: [&str; 6] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
];

/// A property of a unit (systemd.resource-control(5)), and the file of its cgroup that shows it (cgroup.rst).
struct Limit {
    property: &'static str,
    file: &'static str,
    /// What a share of 100 % is a share of.
    whole: Option<fn() -> Option<u64>>,
}

const LIMITS: [Limit; 16] = [
    Limit {
        property: "MemoryMax",
        file: "memory.max",
        whole: Some(memory),
    },
    Limit {
        property: "MemoryHigh",
        file: "memory.high",
        whole: Some(memory),
    },
    Limit {
        property: "MemoryMin",
        file: "memory.min",
        whole: Some(memory),
    },
    Limit {
        property: "MemoryLow",
        file: "memory.low",
        whole: Some(memory),
    },
    Limit {
        property: "MemorySwapMax",
        file: "memory.swap.max",
        whole: Some(memory),
    },
    Limit {
        property: "TasksMax",
        file: "pids.max",
        whole: Some(tasks),
    },
    Limit {
        property: "CPUQuota",
        file: "cpu.max",
        whole: None,
    },
    Limit {
        property: "CPUWeight",
        file: "cpu.weight",
        whole: None,
    },
    Limit {
        property: "IOWeight",
        file: "io.weight",
        whole: None,
    },
    Limit {
        property: "AllowedCPUs",
        file: "cpuset.cpus",
        whole: None,
    },
    Limit {
        property: "AllowedMemoryNodes",
        file: "cpuset.mems",
        whole: None,
    },
    Limit {
        property: "MemoryZSwapMax",
        file: "memory.zswap.max",
        whole: Some(memory),
    },
    Limit {
        property: "IOReadBandwidthMax",
        file: "io.max",
        whole: None,
    },
    Limit {
        property: "IOWriteBandwidthMax",
        file: "io.max",
        whole: None,
    },
    Limit {
        property: "IOReadIOPSMax",
        file: "io.max",
        whole: None,
    },
    Limit {
        property: "IOWriteIOPSMax",
        file: "io.max",
        whole: None,
    },
];

/// What a job may ask for by `NSPAWN_JOB_…`: no more than it would have, and no less than a system needs.
const JOBS: [(&str, &str, u64); 3] = [
    ("NSPAWN_JOB_MEMORY_MAX", "MemoryMax", 64 << 20),
    ("NSPAWN_JOB_TASKS_MAX", "TasksMax", 64),
    ("NSPAWN_JOB_CPU_QUOTA", "CPUQuota", 5),
];

/// The command that bounds all machines together, if nothing does yet.
pub fn slice_command() -> Option<Vec<OsString>> {
    let names = [SLICE.to_owned(), format!("{SLICE}.d")];
    if SETTINGS.iter().any(|directory| {
        names
            .iter()
            .any(|name| Path::new(directory).join(name).exists())
    }) {
        return None;
    }
    let command = ["systemctl", "set-property", "--runtime", SLICE]
        .into_iter()
        .chain(OF_ALL);
    Some(command.map(OsString::from).collect())
}

/// The properties for what the variables of a job ask for, beside the `given` ones.
pub fn of_job(
    given: &[OsString],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<OsString>> {
    let mut properties = Vec::new();
    for (name, property, least) in JOBS {
        let Some(asked) = variable(name) else {
            continue;
        };
        let Some(limit) = LIMITS.iter().find(|limit| limit.property == property) else {
            continue;
        };
        let refuse = |why: String| Failure::job(format!("the job's {name}={asked} {why}"));
        let Some(number) = amount(limit, OsStr::new(&asked)).filter(|number| *number >= least)
        else {
            bail!(refuse(format!("is no {property}= that a machine can have")));
        };
        match value_of(property, given).map(|most| amount(limit, &most)) {
            Some(None) => bail!(refuse(format!(
                "can't be compared with this runner's own {property}="
            ))),
            Some(Some(most)) if number > most => {
                bail!(refuse(format!("is more than this runner gives, {most}")))
            }
            _ => {}
        }
        let unit = if property == "CPUQuota" { "%" } else { "" };
        properties.push(format!("{property}={number}{unit}").into());
    }
    Ok(properties)
}

// The last one wins; one that takes the limit away is none.
fn value_of(property: &str, given: &[OsString]) -> Option<OsString> {
    let given = given.iter().map(OsString::as_os_str);
    let all: Vec<_> = DEFAULTS.iter().map(OsStr::new).chain(given).collect();
    let value = |entry: &&OsStr| {
        entry
            .as_bytes()
            .strip_prefix(property.as_bytes())?
            .strip_prefix(b"=")
            .map(<[u8]>::to_vec)
    };
    let last = all
        .iter()
        .rev()
        .find_map(value)
        .map(|bytes| OsStr::from_bytes(&bytes).to_owned());
    last.filter(|value| !["", "infinity"].map(OsStr::new).contains(&&**value))
}

// As a number, if it is one; what has no limit is none.
fn amount(limit: &Limit, value: &OsStr) -> Option<u64> {
    let value = value.to_str()?;
    match (value.strip_suffix('%'), limit.whole) {
        (Some(share), Some(whole)) => {
            Some(whole()? / 100 * share.parse::<u64>().ok().filter(|share| *share <= 100)?)
        }
        (Some(share), None) => share.parse().ok(),
        (None, Some(_)) => sources::parse_size(value).ok(),
        (None, None) => None,
    }
}

/// The host's memory, in bytes.
pub fn memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let total: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(total << 10)
}

fn tasks() -> Option<u64> {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/kernel/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    read("pid_max").into_iter().chain(read("threads-max")).min()
}

/// Refuses a machine that a `given` limit does not hold. Returns what else nothing bounds.
pub fn check(paths: &MachinePaths, given: &[OsString]) -> Result<Vec<&'static str>> {
    missing(given, |limit| is_held(&paths.cgroup(), limit))
}

/// As [`check`], of a machine that does not run yet: by what the host's kernel can bound.
pub fn foresee(given: &[OsString]) -> Result<Vec<&'static str>> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = |file: &str| {
        controllers
            .split_whitespace()
            .any(|name| Some(name) == file.split('.').next())
    };
    missing(given, |limit| has(limit.file))
}

fn missing(given: &[OsString], is_held: impl Fn(&Limit) -> bool) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for limit in &LIMITS {
        let asked = value_of(limit.property, given).filter(|value| binds(limit, value));
        let Some(value) = asked.filter(|_| !is_held(limit)) else {
            continue;
        };
        let is_given = given.iter().any(|entry| {
            entry
                .as_bytes()
                .starts_with(format!("{}=", limit.property).as_bytes())
        });
        if is_given {
            bail!(
                "its limit {}={} did not take: {} in its cgroup does not show it, so this host's kernel does not hold \
                 it{}",
                limit.property,
                value.to_string_lossy(),
                limit.file,
                if key_of(limit).is_some() {
                    "; name a path on a file system that is on one disk"
                } else {
                    ""
                },
            );
        }
        missing.push(limit.property);
    }
    // Where there is nothing to swap to, nothing need be forbidden.
    missing.retain(|property| *property != "MemorySwapMax" || has_swap());
    Ok(missing)
}

fn is_held(cgroup: &Path, limit: &Limit) -> bool {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).ok();
    let shown =
        read(limit.file).or_else(|| read("io.bfq.weight").filter(|_| limit.property == "IOWeight"));
    shown.is_some_and(|shown| shows(limit, &shown))
}

// Whether a value of the property bounds or reserves anything: 0 reserves nothing.
fn binds(limit: &Limit, value: &OsStr) -> bool {
    match limit.property {
        "MemoryMin" | "MemoryLow" => amount(limit, value) != Some(0),
        _ => !value.as_bytes().ends_with(b" infinity"),
    }
}

// The key of a limit on disk traffic in its file, which has a line for each disk with any (cgroup.rst, `io.max`).
fn key_of(limit: &Limit) -> Option<&'static str> {
    let keys = [
        ("IOReadBandwidthMax", "rbps"),
        ("IOWriteBandwidthMax", "wbps"),
        ("IOReadIOPSMax", "riops"),
        ("IOWriteIOPSMax", "wiops"),
    ];
    keys.into_iter()
        .find(|(property, _)| *property == limit.property)
        .map(|(_, key)| key)
}

// Whether a file of a cgroup shows that the limit took.
fn shows(limit: &Limit, shown: &str) -> bool {
    if let Some(key) = key_of(limit) {
        let mut pairs = shown
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        return pairs.any(|(name, value)| name == key && value != "max");
    }
    match limit.property {
        "MemoryMin" | "MemoryLow" => shown.trim() != "0",
        _ => !shown.starts_with("max"),
    }
}

fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use nspawn_common::error;

    use super::*;

    fn asked(given: &[&str], name: &str, value: &str) -> Result<Vec<OsString>> {
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        of_job(&given, |wanted| (wanted == name).then(|| value.to_owned()))
    }

    #[test]
    fn a_job_gets_less_and_never_more() {
        let memory = |given: &[&str], value| asked(given, "NSPAWN_JOB_MEMORY_MAX", value);
        assert_eq!(memory(&[], "64M").unwrap(), ["MemoryMax=67108864"]);
        assert_eq!(
            memory(&["MemoryMax=1G", "MemoryMax=2G"], "2G").unwrap(),
            ["MemoryMax=2147483648"]
        );
        assert_eq!(
            memory(&["MemoryMax=infinity"], "1T").unwrap(),
            ["MemoryMax=1099511627776"]
        );
        for (given, value) in [
            (&["MemoryMax=2G"][..], "3G"),
            (&[], "81%"),
            (&[], "infinity"),
            (&[], ""),
            (&[], "1G\nDelegate=no"),
        ] {
            assert!(
                error::is_job_fault(&memory(given, value).unwrap_err()),
                "{given:?} {value}"
            );
        }
        assert_eq!(
            asked(&["CPUQuota=200%"], "NSPAWN_JOB_CPU_QUOTA", "150%").unwrap(),
            ["CPUQuota=150%"]
        );
        assert!(asked(&["CPUQuota=200%"], "NSPAWN_JOB_CPU_QUOTA", "250%").is_err());
        assert!(asked(&["CPUQuota=50.5%"], "NSPAWN_JOB_CPU_QUOTA", "9000%").is_err());
        assert!(error::is_job_fault(
            &memory(&["MemoryMax=1.5G"], "1G").unwrap_err()
        ));
        assert!(asked(&[], "NSPAWN_JOB_TASKS_MAX", "0").is_err());
        assert_eq!(
            asked(&[], "NSPAWN_JOB_DEVICE_ALLOW", "x").unwrap(),
            [] as [&str; 0]
        );
    }

    #[test]
    fn a_limit_holds_where_its_file_shows_it() {
        let limit = |property: &str| {
            LIMITS
                .iter()
                .find(|limit| limit.property == property)
                .unwrap()
        };
        for (property, shown, held) in [
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
            assert_eq!(shows(limit(property), shown), held, "{property}: {shown}");
        }
    }

    #[test]
    fn a_limit_that_does_not_show_is_refused() {
        let refused = |given: &str| {
            missing(&[given.into()], |limit| shows(limit, ""))
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused("IOWriteBandwidthMax=/proc 1M")
                .ends_with("name a path on a file system that is on one disk")
        );
        assert!(missing(&["MemoryMin=1G".into()], |limit| shows(limit, "0\n")).is_err());
        for nothing in [
            "MemoryMin=0",
            "MemoryLow=0%",
            "IOReadIOPSMax=/dev/sda infinity",
            "IOReadIOPSMax=",
        ] {
            assert!(
                missing(&[nothing.into()], |_| nothing.is_empty()).is_ok(),
                "{nothing}"
            );
        }
    }

    #[test]
    fn shares_are_of_the_host() {
        assert_eq!(
            amount(&LIMITS[0], "50%".as_ref()).unwrap(),
            memory().unwrap() / 100 * 50
        );
        assert_eq!(amount(&LIMITS[5], "100".as_ref()), Some(100));
        assert_eq!(amount(&LIMITS[0], "infinity".as_ref()), None);
    }
}
