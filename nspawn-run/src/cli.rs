//! The command line.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nspawn_common::cli::sources;
use nspawn_common::cli::values;
use nspawn_common::machine::paths::CONFIG_ROOT;

/// The program's name in messages.
pub const PROGRAM: &str = "nspawn-run";

/// Parsed options.
#[derive(Debug)]
pub struct Options {
    /// Name of the machine, or path of the script that GitLab Runner passes. It is empty if `image`
    /// is set.
    pub machine: OsString,
    /// Image of the machine that exists for this command only.
    pub image: Option<String>,
    /// Command with its arguments, or the name of the stage that GitLab Runner passes.
    pub command: Vec<OsString>,
    pub user: Option<OsString>,
    pub directory: Option<OsString>,
    pub environment: Vec<OsString>,
    pub terminal: bool,
    /// Start the systemd of the user first.
    pub user_manager: bool,
    pub kill_remaining: bool,
    /// Grace period between SIGTERM and SIGKILL.
    pub stop_timeout: Duration,
}

/// Returns the definition of the command line.
///
/// The argument `MACHINE` is left out for `--image`.
pub fn command(has_machine: bool) -> Command {
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs a command in a machine, with the stdin, stdout, stderr and exit status of nspawn-run")
        .after_help(
            "Without a command, nspawn-run starts a login shell if stdin and stdout are terminals, and \
             otherwise a shell that reads a script from stdin.\n\
             The exit status is the command's, or 128+n if signal n ended the command. It is 125 if \
             nspawn-run itself failed, 126 if the command can't be executed, and 127 if it was not found.\n\n\
             Examples:\n  nspawn-run \"$m\" make test\n  git archive HEAD | nspawn-run \"$m\" tar -xC /src\n  \
             nspawn-run --image=bookworm uname -a",
        )
        .override_usage(
            "nspawn-run [OPTIONS] MACHINE [COMMAND [ARG]...]\n       nspawn-run [OPTIONS] --image=IMAGE [COMMAND [ARG]...]",
        )
        .args(has_machine.then(machine_argument))
        .arg(
            Arg::new("COMMAND")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(value_parser!(OsString))
                .help("Command and its arguments"),
        )
        .args(command_options())
        .arg(
            Arg::new("image")
                .long("image")
                .value_name("IMAGE")
                .help_heading(sources::COMMAND_LINE_ONLY)
                .help("Create a read-only machine of this image for the command, and remove it afterwards"),
        )
}

fn machine_argument() -> Arg {
    Arg::new("MACHINE")
        .required(true)
        .value_parser(value_parser!(OsString))
        .help("Name of a machine that nspawn-prepare created")
}

fn command_options() -> [Arg; 7] {
    [
        os_string_option("uid", "USER")
            .help("Run as this user of the machine, by name or number; root by default"),
        os_string_option("working-directory", "DIR")
            .help("Run in this directory; the user's home by default"),
        os_string_option("setenv", "NAME[=VALUE]")
            .short('E')
            .action(ArgAction::Append)
            .help("Set a variable for the command"),
        values::flag("pty")
            .short('t')
            .help("Run on a new terminal in the machine"),
        values::flag("user-manager").help("Start the user's systemd first, for systemctl --user"),
        Arg::new("stop-timeout")
            .long("stop-timeout")
            .value_name("TIME")
            .default_value("10s")
            .value_parser(values::duration)
            .help("Grace period between SIGTERM and SIGKILL when nspawn-run ends the command"),
        values::flag("kill-remaining")
            .help("Kill the processes that the command leaves running in the background"),
    ]
}

fn os_string_option(name: &'static str, value_name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value_name)
        .value_parser(value_parser!(OsString))
}

/// Parses the command line. Returns `None` after it has printed the help or the version.
pub fn parse(argv: &[OsString]) -> Result<Option<Options>> {
    let Some(matches) = find_matches(argv)? else {
        return Ok(None);
    };
    // `MACHINE` is not defined for `--image`.
    let value = |id: &str| matches.try_get_one::<OsString>(id).ok().flatten().cloned();
    Ok(Some(Options {
        machine: value("MACHINE").unwrap_or_default(),
        image: matches.get_one::<String>("image").cloned(),
        command: values::list(&matches, "COMMAND"),
        user: value("uid"),
        directory: value("working-directory"),
        environment: values::list(&matches, "setenv")
            .into_iter()
            .map(values::complete_variable)
            .collect::<Result<_>>()?,
        terminal: values::is_set(&matches, "pty"),
        user_manager: values::is_set(&matches, "user-manager"),
        kill_remaining: values::is_set(&matches, "kill-remaining"),
        stop_timeout: matches
            .get_one("stop-timeout")
            .copied()
            .context("--stop-timeout has no value")?,
    }))
}

// The first positional argument belongs to the command if there is `--image`, so the command line
// is parsed without `MACHINE` at first.
fn find_matches(argv: &[OsString]) -> Result<Option<ArgMatches>> {
    let file = Path::new(CONFIG_ROOT).join("run.args");
    let without_machine = sources::try_parse(&command(false), &[&file], argv)?;
    match without_machine {
        Ok(matches) if matches.contains_id("image") => Ok(Some(matches)),
        _ => sources::parse(&command(true), &[&file], argv),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Options {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words).unwrap().unwrap()
    }

    #[test]
    fn definition_is_consistent() {
        command(true).debug_assert();
        command(false).debug_assert();
    }

    #[test]
    fn words_after_the_machine_belong_to_the_command() {
        assert_eq!(
            parse_words(&["m", "ls", "-l", "--uid=x"]).command,
            ["ls", "-l", "--uid=x"]
        );
        assert_eq!(parse_words(&["m", "--", "-odd"]).command, ["-odd"]);
        assert_eq!(
            parse_words(&["m", "sh", "--", "x"]).command,
            ["sh", "--", "x"]
        );
        assert_eq!(
            parse_words(&["--uid=u", "--", "m", "", "-t"]).command,
            ["", "-t"]
        );
        assert!(parse_words(&["-t", "m"]).terminal);
    }

    #[test]
    fn image_replaces_the_machine() {
        let options = parse_words(&["--image", "i", "-E", "A=1", "ls", "-t", "--uid=x"]);
        assert_eq!(
            (options.image.unwrap(), options.terminal),
            ("i".to_owned(), false)
        );
        assert_eq!(options.command, ["ls", "-t", "--uid=x"]);
        assert!(parse_words(&["--image=i"]).command.is_empty());
        assert_eq!(parse_words(&["m", "ls", "--image=x"]).image, None);
        let error = format!(
            "{:#}",
            parse(&["--nonsense".into(), "m".into()]).unwrap_err()
        );
        assert!(error.contains("--nonsense"), "{error}");
    }

    #[test]
    fn machine_is_required_without_an_image() {
        assert!(parse(&[]).is_err());
    }
}
