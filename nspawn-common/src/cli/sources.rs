//! Options from argument files, from the environment and from the command line, in this order:
//! the last wins, and an option that is a list adds up.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::shell;

/// The heading of options that no variable sets: what they mean to one program, they do not to the others.
pub const COMMAND_LINE_ONLY: &str = "Options for the command line only";

/// Parses the layers for `command`: argument files, environment, then `argv` (without the
/// program's name). Help and version are printed here; `None` says so.
///
/// # Errors
/// A file that can't be read or split, an option that is not known or has no valid value.
pub fn parse(command: &Command, files: &[&Path], argv: &[OsString]) -> Result<Option<ArgMatches>> {
    match try_parse(command, files, argv)? {
        Ok(matches) => Ok(Some(matches)),
        Err(error) if !error.use_stderr() => {
            error.print().map(|()| None).context("can't print the help")
        }
        Err(error) => Err(anyhow!("{}; see --help", first_lines(&error))),
    }
}

/// As [`parse`], but says nothing.
///
/// # Errors
/// A file that can't be read or split; clap's own, help and version among them.
pub fn try_parse(
    command: &Command,
    files: &[&Path],
    argv: &[OsString],
) -> Result<clap::error::Result<ArgMatches>> {
    let mut words = vec![OsString::from(command.get_name())];
    for file in files {
        words.extend(from_file(file)?);
    }
    for arg in command
        .get_arguments()
        .filter(|arg| variable(arg).is_some())
    {
        words.extend(from_environment(arg)?);
    }
    words.extend(argv.iter().cloned());
    Ok(with_variables_in_help(command).try_get_matches_from(words))
}

/// An option that is on or off: `--NAME`, and `--NAME=no` against one that an argument file has set.
#[must_use]
pub fn flag(name: &'static str) -> Arg {
    let set = Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .value_name("yes|no");
    set.num_args(0..=1)
        .require_equals(true)
        .hide_possible_values(true)
        .default_missing_value("yes")
        .value_parser(BoolishValueParser::new())
}

/// Whether the [`flag`] `name` is on.
#[must_use]
pub fn is_set(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one(name).copied().unwrap_or(false)
}

/// The value of the option `name`, which goes to the host's systemd by D-Bus, in which all strings are
/// UTF-8.
///
/// # Errors
/// It is not.
pub fn as_text(name: &str, value: OsString) -> Result<OsString> {
    match value.to_str() {
        Some(_) => Ok(value),
        None => bail!("--{name}={value:?} is not UTF-8, which systemd needs it to be"),
    }
}

/// A positive span of time: `90`, `90s`, `5min` or `2h`.
///
/// # Errors
/// Anything else.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "min" => 60,
        "h" => 3600,
        unit => bail!("{unit:?} is not a unit of time: s, min or h"),
    };
    let number: u32 = digits
        .parse()
        .with_context(|| format!("{digits:?} is not a number of seconds"))?;
    if number == 0 {
        bail!("it must be longer than nothing");
    }
    Ok(Duration::from_secs(u64::from(number) * factor))
}

/// [`parse_duration`] for clap.
///
/// # Errors
/// As [`parse_duration`], as text.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| format!("{error:#}"))
}

/// A number of bytes, as systemd writes them: `512M`, `10G`.
///
/// # Errors
/// Anything else.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => bail!("{unit:?} is not a unit of size: K, M, G or T"),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{digits:?} is not a number"))?;
    number
        .checked_mul(1 << shift)
        .with_context(|| format!("{text} is too much"))
}

/// All values of the list option `id`, in the order given.
#[must_use]
pub fn list(matches: &ArgMatches, id: &str) -> Vec<OsString> {
    matches
        .get_many::<OsString>(id)
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

/// An entry of `--setenv` as `NAME=VALUE`: a bare name takes this process's value.
///
/// # Errors
/// No name, or no such variable.
pub fn with_value(entry: OsString) -> Result<OsString> {
    match entry.as_bytes().iter().position(|byte| *byte == b'=') {
        Some(0) => bail!("--setenv={entry:?} has no name: NAME=VALUE"),
        Some(_) => Ok(entry),
        None => {
            let value = env::var_os(&entry)
                .with_context(|| format!("--setenv={entry:?}: no such variable is set"))?;
            Ok([&*entry, OsStr::new("="), &*value].into_iter().collect())
        }
    }
}

fn from_file(path: &Path) -> Result<Vec<OsString>> {
    let text = match fs::read(path) {
        Ok(text) => OsString::from_vec(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    shell::split(&text).with_context(|| format!("can't split {} into options", path.display()))
}

// The variable of `--layer-size` is NSPAWN_LAYER_SIZE. Hidden forms have none.
fn variable(arg: &Arg) -> Option<String> {
    let has_one = !arg.is_hide_set() && arg.get_help_heading() != Some(COMMAND_LINE_ONLY);
    let long = arg.get_long().filter(|_| has_one)?;
    Some(format!("NSPAWN_{}", long.to_uppercase().replace('-', "_")))
}

// An empty variable is an unset one: CI configurations often can't unset.
fn from_environment(arg: &Arg) -> Result<Vec<OsString>> {
    let (Some(variable), Some(long)) = (variable(arg), arg.get_long()) else {
        return Ok(Vec::new());
    };
    let Some(value) = env::var_os(&variable).filter(|value| !value.is_empty()) else {
        return Ok(Vec::new());
    };
    let option = |value: &OsStr| {
        [OsStr::new("--"), OsStr::new(long), OsStr::new("="), value]
            .into_iter()
            .collect()
    };
    match arg.get_action() {
        ArgAction::Append => {
            let words = shell::split(&value)
                .with_context(|| format!("can't split ${variable} into values"))?;
            Ok(words.iter().map(|word| option(word)).collect())
        }
        _ => Ok(vec![option(&value)]),
    }
}

/// `command`, whose help names the variables too.
#[must_use]
pub fn with_variables_in_help(command: &Command) -> Command {
    command.clone().args_override_self(true).mut_args(|arg| {
        match (variable(&arg), arg.get_help().cloned()) {
            (Some(variable), Some(help)) => arg.help(format!("{help} [env: {variable}]")),
            _ => arg,
        }
    })
}

// clap's message takes several lines: a sentence, what it is about, and what --help says.
fn first_lines(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim);
    lines
        .collect::<Vec<_>>()
        .join(" ")
        .trim_start_matches("error: ")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("5min").unwrap(), Duration::from_secs(300));
        assert_eq!(parse_duration("2h").unwrap(), Duration::from_secs(7200));
        for bad in ["", "0", "-1", "5d", "1.5", "99999999999", "min", "5ä"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M").unwrap(), 512 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for bad in ["", "G", "-1G", "1.5G", "1g", "99999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_can_be_taken_back() {
        let is_on = |words: &[&str]| {
            let command = Command::new("test").arg(flag("json")).arg(Arg::new("X"));
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            parse(&command, &[], &words).map(|matches| is_set(&matches.unwrap(), "json"))
        };
        assert!(is_on(&["--json", "x"]).unwrap());
        assert!(is_on(&["--json=no", "--json=yes"]).unwrap());
        assert!(!is_on(&["--json", "--json=off"]).unwrap());
        assert!(!is_on(&["x"]).unwrap());
        assert!(is_on(&["--json=maybe"]).is_err());
    }

    #[test]
    fn files_add_to_lists_and_lose_to_the_command_line() {
        let dir = std::env::temp_dir().join(format!("nspawn-args-{}", std::process::id()));
        fs::write(&dir, "--bind /a # cache\n--name=file\n").unwrap();
        let command = Command::new("test")
            .arg(
                Arg::new("bind")
                    .long("bind")
                    .action(ArgAction::Append)
                    .value_parser(clap::value_parser!(OsString)),
            )
            .arg(Arg::new("name").long("name"));
        let argv = ["--bind", "/b", "--name", "line"].map(OsString::from);
        let matches = parse(&command, &[&dir, Path::new("/nonexistent")], &argv)
            .unwrap()
            .unwrap();
        fs::remove_file(&dir).unwrap();
        assert_eq!(list(&matches, "bind"), ["/a", "/b"]);
        assert_eq!(matches.get_one::<String>("name").unwrap(), "line");
    }
}
