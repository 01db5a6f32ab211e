//! Definitions of the scripts' command lines, read from their help texts and tables of options.

use std::process;

use clap::{Arg, ArgAction, Command, ValueHint};

use crate::repository;

/// Returns the definition of program `name`, which is `scripts/bin/SCRIPT` in the repository.
pub fn definition(name: &'static str, script: &str) -> Command {
    Command::new(name).args(options(&help(script)))
}

/// Returns the definition of a script with commands. `scripts/bin/SCRIPT.d/options` lists their
/// options.
pub fn with_commands(script: &'static str) -> Command {
    let help = help(script);
    let all = options(&help);
    let subcommands = table(script).into_iter().filter_map(|line| {
        let mut words = line.split_whitespace();
        let command = words.next()?.to_owned();
        let about = about(&help, script, &command)?;
        let options = words.filter_map(|word| {
            all.iter()
                .find(|arg| arg.get_long() == word.strip_prefix("--"))
        });
        Some(
            Command::new(command)
                .about(about)
                .args(options)
                .arg(Arg::new("NAME").num_args(0..)),
        )
    });
    Command::new(script)
        .subcommands(subcommands)
        .disable_help_subcommand(true)
}

fn help(script: &str) -> String {
    output(process::Command::new(repository().join("scripts/bin").join(script)).arg("--help"))
}

/// Returns a line for each command, with its name and its options.
fn table(script: &str) -> Vec<String> {
    let line =
        r#". "$0" && for each in "${!options_of[@]}"; do echo $each ${options_of[$each]}; done"#;
    let parts = repository()
        .join("scripts/bin")
        .join(format!("{script}.d/options"));
    let mut lines: Vec<_> = output(process::Command::new("bash").args(["-c", line]).arg(parts))
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

fn output(command: &mut process::Command) -> String {
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}

/// Returns the description at the end of the usage line of a command.
fn about(help: &str, script: &str, command: &str) -> Option<String> {
    let start = format!("{script} {command} ");
    let line = help.lines().find(|line| {
        line.trim_start_matches("Usage: ")
            .trim_start()
            .starts_with(&start)
    })?;
    line.rsplit_once("  ").map(|(_, about)| about.to_owned())
}

fn options(help: &str) -> Vec<Arg> {
    let paragraphs = help
        .split("\n\n")
        .filter(|text| text.lines().any(is_option));
    paragraphs
        .flat_map(|text| paragraph_options(text).into_iter())
        .collect()
}

fn paragraph_options(text: &str) -> Vec<Arg> {
    let lines: Vec<_> = text.lines().collect();
    let first = lines.iter().position(|line| is_option(line)).unwrap();
    let heading = lines[..first]
        .first()
        .and_then(|line| line.split([';', ':']).next())
        .map(str::to_owned);
    let starts = (first..lines.len()).filter(|place| is_option(lines[*place]));
    let defined = starts.map(|start| {
        let rest = lines[start + 1..]
            .iter()
            .take_while(|line| !is_option(line));
        option(lines[start], rest.map(|line| line.trim()))
    });
    // clap adds the option for help itself.
    let options = defined.filter(|arg| arg.get_long() != Some("help"));
    options
        .map(|arg| match &heading {
            Some(heading) => arg.help_heading(heading),
            None => arg,
        })
        .collect()
}

fn is_option(line: &str) -> bool {
    line.starts_with("  -")
}

fn option<'a>(line: &'a str, more: impl Iterator<Item = &'a str>) -> Arg {
    let (shape, help) = line.trim().split_once("  ").unwrap_or((line.trim(), ""));
    let help: Vec<_> = std::iter::once(help.trim())
        .chain(more)
        .filter(|part| !part.is_empty())
        .collect();
    let shape = shape.strip_prefix("-h, ").unwrap_or(shape);
    let (name, value) = shape.split_once(' ').unwrap_or((shape, ""));
    let name = name.trim_start_matches('-').to_owned();
    let arg = Arg::new(name.clone()).long(name).help(help.join(" "));
    match value {
        "" => arg.action(ArgAction::SetTrue),
        "FILE" => arg
            .value_name(value.to_owned())
            .value_hint(ValueHint::FilePath),
        "DIR" => arg
            .value_name(value.to_owned())
            .value_hint(ValueHint::DirPath),
        _ => arg.value_name(value.to_owned()),
    }
}
