//! What can be asked for.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Command, value_parser};
use nspawn_common::cli::sources;
use nspawn_common::cli::values;
use nspawn_common::machine::paths::CONFIG_ROOT;

/// The options, taken apart.
#[derive(Debug)]
pub struct Options {
    /// The machine, or GitLab's script; empty where the command is for a machine of its own.
    pub machine: OsString,
    /// The image of that machine.
    pub image: Option<String>,
    /// The command, or GitLab's stage.
    pub command: Vec<OsString>,
    pub user: Option<OsString>,
    pub directory: Option<OsString>,
    pub environment: Vec<OsString>,
    pub terminal: bool,
    pub kill_remaining: bool,
    /// How long a command that is asked to end may take.
    pub stop_timeout: Duration,
}

/// The command line's definition: with `MACHINE`, or for `--image` without.
pub fn command(has_machine: bool) -> Command {
    let bytes = |name: &'static str, shape: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(shape)
            .value_parser(value_parser!(OsString))
    };
    Command::new(super::PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs a command in a machine, with its stdin, stdout, stderr and exit status")
        .after_help(
            "Without a command: a login shell on a terminal, else a shell script read from stdin.\n\
             Exit status: the command's; 128+n if signal n ended it; 125 if nspawn-run itself failed, \
             126 if the command can't be executed, 127 if it is not found.\n\n\
             Examples:\n  nspawn-run \"$m\" make test\n  git archive HEAD | nspawn-run \"$m\" tar -xC /src\n  \
             nspawn-run --image=bookworm uname -a",
        )
        .override_usage(
            "nspawn-run [OPTIONS] MACHINE [COMMAND [ARG]...]\n       nspawn-run [OPTIONS] --image=IMAGE [COMMAND [ARG]...]",
        )
        .args(has_machine.then(|| {
            Arg::new("MACHINE")
                .required(true)
                .value_parser(value_parser!(OsString))
                .help("A machine that nspawn-prepare made")
        }))
        .arg(
            Arg::new("COMMAND")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(value_parser!(OsString))
                .help("The command and its arguments"),
        )
        .arg(bytes("uid", "USER").help("Run as this user of the machine, by name or number; root by default"))
        .arg(bytes("working-directory", "DIR").help("Run in this directory; the user's home by default"))
        .arg(
            bytes("setenv", "NAME[=VALUE]").short('E').action(ArgAction::Append).help("Set a variable for the command"),
        )
        .arg(values::flag("pty").short('t').help("Run on a terminal of the machine's own"))
        .arg(
            Arg::new("stop-timeout")
                .long("stop-timeout")
                .value_name("TIME")
                .default_value("10s")
                .value_parser(values::duration)
                .help("How long a command may take to end after SIGTERM, before SIGKILL"),
        )
        .arg(values::flag("kill-remaining").help("End what the command leaves running in the background"))
        .arg(
            Arg::new("image")
                .long("image")
                .value_name("IMAGE")
                .help_heading(sources::COMMAND_LINE_ONLY)
                .help("Run in a machine of this image that is there for the command only, and is read-only"),
        )
}

/// Reads the options; `None` if help was asked for and printed.
pub fn parse(argv: &[OsString]) -> Result<Option<Options>> {
    let file = Path::new(CONFIG_ROOT).join("run.args");
    let without_machine = sources::try_parse(&command(false), &[&file], argv)?.ok();
    let matches = match without_machine.filter(|matches| matches.contains_id("image")) {
        Some(matches) => matches,
        None => match sources::parse(&command(true), &[&file], argv)? {
            Some(matches) => matches,
            None => return Ok(None),
        },
    };
    let one = |id: &str| matches.try_get_one::<OsString>(id).ok().flatten().cloned();
    Ok(Some(Options {
        machine: one("MACHINE").unwrap_or_default(),
        image: matches.get_one::<String>("image").cloned(),
        command: values::list(&matches, "COMMAND"),
        user: one("uid"),
        directory: one("working-directory"),
        environment: values::list(&matches, "setenv")
            .into_iter()
            .map(values::complete_variable)
            .collect::<Result<_>>()?,
        terminal: values::is_set(&matches, "pty"),
        kill_remaining: values::is_set(&matches, "kill-remaining"),
        stop_timeout: matches
            .get_one("stop-timeout")
            .copied()
            .context("no time-out")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Options {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words).unwrap().unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        command(true).debug_assert();
        command(false).debug_assert();
    }

    #[test]
    fn what_follows_the_machine_is_the_commands() {
        assert_eq!(
            parsed(&["m", "ls", "-l", "--uid=x"]).command,
            ["ls", "-l", "--uid=x"]
        );
        assert_eq!(parsed(&["m", "--", "-odd"]).command, ["-odd"]);
        assert_eq!(parsed(&["m", "sh", "--", "x"]).command, ["sh", "--", "x"]);
        assert_eq!(
            parsed(&["--uid=u", "--", "m", "", "-t"]).command,
            ["", "-t"]
        );
        assert!(parsed(&["-t", "m"]).terminal);
    }

    #[test]
    fn an_image_stands_for_a_machine() {
        let options = parsed(&["--image", "i", "-E", "A=1", "ls", "-t", "--uid=x"]);
        assert_eq!(
            (options.image.unwrap(), options.terminal),
            ("i".to_owned(), false)
        );
        assert_eq!(options.command, ["ls", "-t", "--uid=x"]);
        assert!(parsed(&["--image=i"]).command.is_empty());
        assert_eq!(parsed(&["m", "ls", "--image=x"]).image, None);
        let error = format!(
            "{:#}",
            parse(&["--nonsense".into(), "m".into()]).unwrap_err()
        );
        assert!(error.contains("--nonsense"), "{error}");
    }

    #[test]
    fn a_machine_is_needed() {
        assert!(parse(&[]).is_err());
    }
}
