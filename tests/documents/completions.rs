//! Completions for shells.

use std::path::Path;

use clap::{Arg, ArgAction, Command};
use clap_complete::{Shell, generate};

/// Returns the completions of `command` for `shell`.
pub fn generate_for(command: &Command, shell: Shell) -> String {
    let mut bytes = Vec::new();
    generate(
        shell,
        &mut without_hidden(command),
        command.get_name(),
        &mut bytes,
    );
    let text = String::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Returns `command` without hidden options, which clap_complete would offer.
fn without_hidden(command: &Command) -> Command {
    let shown = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .map(|arg| simplified(arg.clone()));
    let mut named = Command::new(command.get_name().to_owned()).disable_help_subcommand(true);
    if let Some(version) = command.get_version() {
        named = named.version(version.to_owned());
    }
    if let Some(about) = command.get_about() {
        named = named.about(about.clone());
    }
    named
        .args(shown)
        .subcommands(command.get_subcommands().map(without_hidden))
}

/// Returns an option without the value `yes` of a flag, which is for argument files, and without
/// its variable, which is for the man page.
fn simplified(arg: Arg) -> Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.split(" [env: ").next().unwrap_or_default().to_owned();
    if !arg.is_require_equals_set() {
        return arg.help(help);
    }
    let flag = Arg::new(arg.get_id().clone())
        .action(ArgAction::SetTrue)
        .help(help);
    flag.long(arg.get_long().unwrap().to_owned())
        .short(arg.get_short())
}

/// Returns the file name that a shell expects.
pub fn file_name(program: &str, shell: Shell) -> String {
    match shell {
        Shell::Zsh => format!("_{program}"),
        _ => format!("{program}.{shell}"),
    }
}

/// Returns options of a shell that ignore its start-up files.
pub fn without_start_up_files(shell: Shell) -> &'static [&'static str] {
    match shell {
        Shell::Zsh => &["--no-rcs"],
        Shell::Fish => &["--no-config"],
        _ => &["--norc", "--noprofile"],
    }
}

/// Returns a shell line that prints the completions of `PROGRAM --`. For zsh, which completes only
/// on a terminal, it prints the loaded function.
pub fn proof(program: &str, shell: Shell, file: &Path) -> String {
    let file = file.display();
    match shell {
        Shell::Zsh => {
            let directory = format!("$(dirname {file})");
            format!(
                "fpath=({directory} $fpath); autoload -U compinit; compinit -D -u; \
                     [[ $_comps[{program}] == _{program} ]] && autoload +X _{program} && which _{program}"
            )
        }
        Shell::Fish => format!("source {file}; complete --do-complete '{program} --'"),
        _ => format!(
            "source {file}; COMP_WORDS=({program} --) COMP_CWORD=1; \
             $(complete -p {program} | sed 's/.* -F \\([^ ]*\\) .*/\\1/') {program} -- {program}; echo \"${{COMPREPLY[@]}}\""
        ),
    }
}
