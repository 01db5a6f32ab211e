//! Limits that a GitLab job sets by `NSPAWN_JOB_…` variables: a job can lower limits, but not raise
//! them.

use std::ffi::{OsStr, OsString};

use anyhow::{Result, bail};
use nspawn_common::error::Failure;
use nspawn_common::lifecycle::limits;

/// Limits that a job can lower: variable, property of the unit, and smallest value on which a
/// system still runs.
const VARIABLES: [(&str, &str, u64); 3] = [
    ("NSPAWN_JOB_MEMORY_MAX", "MemoryMax", 64 << 20),
    ("NSPAWN_JOB_TASKS_MAX", "TasksMax", 64),
    ("NSPAWN_JOB_CPU_QUOTA", "CPUQuota", 5),
];

/// Returns the properties that the variables of a job ask for. The machine's other properties are
/// `properties`.
pub fn properties(
    properties: &[OsString],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<OsString>> {
    let mut lowered = Vec::new();
    for (name, property, min) in VARIABLES {
        let Some(value) = variable(name) else {
            continue;
        };
        let number = check(property, &value, min, properties);
        let number = number.map_err(|error| {
            Failure::job(format!("can't use the job's {name}={value}: {error}"))
        })?;
        let unit = if property == "CPUQuota" { "%" } else { "" };
        lowered.push(format!("{property}={number}{unit}").into());
    }
    Ok(lowered)
}

fn check(property: &str, value: &str, min: u64, properties: &[OsString]) -> Result<u64> {
    let number = limits::amount(property, OsStr::new(value)).filter(|number| *number >= min);
    let Some(number) = number else {
        bail!("{property}= needs {min} or more");
    };
    let Some(max) = limits::configured_value(property, properties) else {
        return Ok(number);
    };
    match limits::amount(property, &max) {
        None => bail!("it can't be compared with this runner's {property}="),
        Some(max) if number > max => bail!("this runner allows {max} at most"),
        Some(_) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use nspawn_common::error;

    use super::*;

    fn lowered(given: &[&str], name: &str, value: &str) -> Result<Vec<OsString>> {
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        super::properties(&given, |wanted| (wanted == name).then(|| value.to_owned()))
    }

    #[test]
    fn job_can_lower_a_limit_but_not_raise_it() {
        let memory = |given: &[&str], value| lowered(given, "NSPAWN_JOB_MEMORY_MAX", value);
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
    }

    #[test]
    fn values_that_cannot_be_compared_are_errors() {
        assert_eq!(
            lowered(&["CPUQuota=200%"], "NSPAWN_JOB_CPU_QUOTA", "150%").unwrap(),
            ["CPUQuota=150%"]
        );
        assert!(lowered(&["CPUQuota=200%"], "NSPAWN_JOB_CPU_QUOTA", "250%").is_err());
        assert!(lowered(&["CPUQuota=50.5%"], "NSPAWN_JOB_CPU_QUOTA", "9000%").is_err());
        let error = lowered(&["MemoryMax=1.5G"], "NSPAWN_JOB_MEMORY_MAX", "1G").unwrap_err();
        assert!(error::is_job_fault(&error));
        assert!(lowered(&[], "NSPAWN_JOB_TASKS_MAX", "0").is_err());
        assert_eq!(
            lowered(&[], "NSPAWN_JOB_DEVICE_ALLOW", "x").unwrap(),
            [] as [&str; 0]
        );
    }
}
