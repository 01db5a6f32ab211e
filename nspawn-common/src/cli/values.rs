//! Values of options: flags, lists, durations and sizes.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, ArgMatches};

/// Defines an option that is on or off.
///
/// `--NAME` turns it on. `--NAME=no` overrides an argument file that turns it on.
pub fn flag(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .value_name("yes|no")
        .num_args(0..=1)
        .require_equals(true)
        .hide_possible_values(true)
        .default_missing_value("yes")
        .value_parser(BoolishValueParser::new())
}

/// Returns whether the [`flag`] `name` is on.
pub fn is_set(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one(name).copied().unwrap_or(false)
}

/// Returns all values of the list option `id`, in the order given.
pub fn list(matches: &ArgMatches, id: &str) -> Vec<OsString> {
    matches
        .get_many::<OsString>(id)
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

/// Returns `value` of the option `name` if it is UTF-8.
///
/// All strings in D-Bus are UTF-8, so only such values can be sent to the host's systemd.
pub fn require_utf8(name: &str, value: OsString) -> Result<OsString> {
    if value.to_str().is_none() {
        bail!("can't use --{name}={value:?}: it is not UTF-8, as systemd requires");
    }
    Ok(value)
}

/// Returns an entry of `--setenv` as `NAME=VALUE`. A bare name gets the value of this process.
pub fn complete_variable(entry: OsString) -> Result<OsString> {
    match entry.as_bytes().iter().position(|byte| *byte == b'=') {
        Some(0) => bail!("can't use --setenv={entry:?}: it has no name; write NAME=VALUE"),
        Some(_) => Ok(entry),
        None => {
            let value = env::var_os(&entry).with_context(|| {
                format!("can't use --setenv={entry:?}: no such variable is set; write NAME=VALUE")
            })?;
            Ok([&*entry, OsStr::new("="), &*value].into_iter().collect())
        }
    }
}

/// Parses a positive duration: `90`, `90s`, `5min` or `2h`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let (digits, unit) = split_unit(text);
    let factor = match unit {
        "" | "s" => 1,
        "min" => 60,
        "h" => 3600,
        unit => bail!("{unit:?} is not a unit of time; use s, min or h"),
    };
    let number: u32 = digits
        .parse()
        .with_context(|| format!("{digits:?} is not a number of seconds"))?;
    if number == 0 {
        bail!("must be greater than zero");
    }
    Ok(Duration::from_secs(u64::from(number) * factor))
}

/// Parses a duration like [`parse_duration`], as a value parser for clap.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| format!("{error:#}"))
}

/// Parses a number of bytes in the format of systemd: `4096`, `512M` or `10G`.
pub fn parse_size(text: &str) -> Result<u64> {
    let (digits, unit) = split_unit(text);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => bail!("{unit:?} is not a unit of size; use K, M, G or T"),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{digits:?} is not a number"))?;
    number
        .checked_mul(1 << shift)
        .with_context(|| format!("{text} is too large"))
}

// Splits `text` before the letters at its end.
fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    text.split_at(digits.len())
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;
    use crate::cli::sources;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("5min").unwrap(), Duration::from_secs(300));
        assert_eq!(parse_duration("2h").unwrap(), Duration::from_secs(7200));
        for bad in ["", "0", "-1", "5d", "1.5", "99999999999", "min", "5ä"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512M").unwrap(), 512 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for bad in ["", "G", "-1G", "1.5G", "1g", "99999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn later_flag_overrides_an_earlier_one() {
        let is_on = |words: &[&str]| {
            let command = Command::new("test").arg(flag("json")).arg(Arg::new("X"));
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            sources::parse(&command, &[], &words).map(|matches| is_set(&matches.unwrap(), "json"))
        };
        assert!(is_on(&["--json", "x"]).unwrap());
        assert!(is_on(&["--json=no", "--json=yes"]).unwrap());
        assert!(!is_on(&["--json", "--json=off"]).unwrap());
        assert!(!is_on(&["x"]).unwrap());
        assert!(is_on(&["--json=maybe"]).is_err());
    }

    #[test]
    fn values_for_systemd_must_be_utf8() {
        assert!(require_utf8("bind", "/ä".into()).is_ok());
        let bytes = OsStr::from_bytes(b"/\xff").to_owned();
        assert!(require_utf8("bind", bytes).is_err());
    }
}
