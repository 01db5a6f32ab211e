//! Options from argument files, environment variables and the command line, in this order.
//!
//! The last value of an option wins. An option that is a list collects all values.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::shell;
use crate::sys::fs::if_present;

/// Heading of options that no environment variable sets, since their meaning differs between
/// programs.
pub const COMMAND_LINE_ONLY: &str = "Options for the command line only";

/// Parses the options of `command` from argument files, from the environment and from `argv`.
///
/// `argv` does not contain the program's name. If an option requests the help or the version, prints
/// it and returns `None`.
pub fn parse(command: &Command, files: &[&Path], argv: &[OsString]) -> Result<Option<ArgMatches>> {
    match try_parse(command, files, argv)? {
        Ok(matches) => Ok(Some(matches)),
        Err(error) if !error.use_stderr() => {
            error.print().context("can't print the help")?;
            Ok(None)
        }
        Err(error) => Err(anyhow!("{}; see --help", first_paragraph(&error))),
    }
}

/// Parses options like [`parse`], but prints nothing.
///
/// The inner error is clap's, even if an option requests the help or the version.
pub fn try_parse(
    command: &Command,
    files: &[&Path],
    argv: &[OsString],
) -> Result<clap::error::Result<ArgMatches>> {
    let mut words = vec![OsString::from(command.get_name())];
    for file in files {
        words.extend(words_of_file(file)?);
    }
    for arg in command.get_arguments() {
        words.extend(words_of_variable(arg)?);
    }
    words.extend(argv.iter().cloned());
    Ok(with_variables_in_help(command).try_get_matches_from(words))
}

/// Returns `command` with the name of the environment variable in the help of each option.
pub fn with_variables_in_help(command: &Command) -> Command {
    command.clone().args_override_self(true).mut_args(|arg| {
        match (variable_name(&arg), arg.get_help().cloned()) {
            (Some(variable), Some(help)) => arg.help(format!("{help} [env: {variable}]")),
            _ => arg,
        }
    })
}

// Returns the words of an argument file, or none if the file is missing.
fn words_of_file(path: &Path) -> Result<Vec<OsString>> {
    let text =
        if_present(fs::read(path)).with_context(|| format!("can't read {}", path.display()))?;
    let text = OsString::from_vec(text.unwrap_or_default());
    shell::split(&text).with_context(|| format!("can't split {} into options", path.display()))
}

// Returns the words for an option whose environment variable is set. An empty variable counts as
// unset, because CI configurations often can't unset a variable.
fn words_of_variable(arg: &Arg) -> Result<Vec<OsString>> {
    let (Some(variable), Some(long)) = (variable_name(arg), arg.get_long()) else {
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
            let values = shell::split(&value)
                .with_context(|| format!("can't split ${variable} into values"))?;
            Ok(values.iter().map(|value| option(value)).collect())
        }
        _ => Ok(vec![option(&value)]),
    }
}

// Returns the environment variable of an option: NSPAWN_LAYER_SIZE for `--layer-size`. Hidden
// options have no variable.
fn variable_name(arg: &Arg) -> Option<String> {
    if arg.is_hide_set() || arg.get_help_heading() == Some(COMMAND_LINE_ONLY) {
        return None;
    }
    let long = arg.get_long()?;
    Some(format!("NSPAWN_{}", long.to_uppercase().replace('-', "_")))
}

// Returns clap's message without the advice below it, on one line.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<_> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values;

    #[test]
    fn later_sources_override_values_and_extend_lists() {
        let file = std::env::temp_dir().join(format!("nspawn-args-{}", std::process::id()));
        fs::write(&file, "--bind /a # cache\n--name=file\n").unwrap();
        let command = Command::new("test")
            .arg(
                Arg::new("bind")
                    .long("bind")
                    .action(ArgAction::Append)
                    .value_parser(clap::value_parser!(OsString)),
            )
            .arg(Arg::new("name").long("name"));
        let argv = ["--bind", "/b", "--name", "line"].map(OsString::from);
        let matches = parse(&command, &[&file, Path::new("/nonexistent")], &argv)
            .unwrap()
            .unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(values::list(&matches, "bind"), ["/a", "/b"]);
        assert_eq!(matches.get_one::<String>("name").unwrap(), "line");
    }

    #[test]
    fn unknown_option_is_one_line() {
        let error = parse(&Command::new("test"), &[], &["--no-such".into()]).unwrap_err();
        let message = error.to_string();
        assert!(message.ends_with("; see --help"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}
