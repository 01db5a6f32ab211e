//! The last words of a machine: its recorded output, and its units' entries in the host's journal.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::command;
use crate::command::argv;
use crate::machine::output;
use crate::machine::paths::MachinePaths;
use crate::sys::clock::Moment;
use crate::text;

/// Time limit for a query.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
/// Number of lines that explain a failure, of each source.
const LINES: usize = 20;

/// Returns the last lines of the machine's console and, since that moment, of its units.
///
/// What can't be read is left out.
pub fn last_words(paths: &MachinePaths, since: Moment) -> String {
    let console = recorded(&paths.console_output());
    let lines: Vec<_> = console.lines().collect();
    let console = lines[lines.len().saturating_sub(LINES)..].join("\n");
    join(&[&console, &entries(paths, since).unwrap_or_default()])
}

/// Returns the log of a service: the last words of its machine, and all recorded output of its
/// command.
///
/// For a service without a command, it begins with all recorded output of the console.
pub fn service_log(paths: &MachinePaths, since: Moment) -> String {
    let command = paths.command_output();
    if command.exists() {
        return join(&[&last_words(paths, since), &recorded(&command)]);
    }
    let entries = entries(paths, since).unwrap_or_default();
    join(&[&recorded(&paths.console_output()), &entries])
}

// Returns the output without blank lines and control characters.
fn recorded(path: &Path) -> String {
    let output = output::read(path).unwrap_or_default();
    let lines = output.lines().map(str::trim_end);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    text::printable_lines(&lines.join("\n"))
}

fn join(parts: &[&str]) -> String {
    let parts = parts.iter().copied().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("\n")
}

/// Returns the last entries of the machine's units in the journal since that moment.
///
/// # Errors
/// Fails if the journal can't be read in time.
pub fn entries(paths: &MachinePaths, since: Moment) -> Result<String> {
    let mut command = argv([
        "journalctl",
        "--quiet",
        "--no-pager",
        "--output=cat",
        "--reverse",
    ]);
    command.push(format!("--lines={LINES}").into());
    let units = [paths.unit(), paths.network_unit(), paths.command_unit()];
    command.extend(units.map(|unit| format!("--unit={unit}").into()));
    command.push(since.since_option().into());
    // The journal may not have them yet.
    command::run(&argv(["journalctl", "--sync"]), QUERY_LIMIT)?;
    // systemd 252 shows the first lines since a time, unless it begins at the end.
    let said: Vec<_> = command::run(&command, QUERY_LIMIT)?
        .stdout
        .lines()
        .rev()
        .map(str::to_owned)
        .collect();
    Ok(text::printable_lines(&said.join("\n")))
}
