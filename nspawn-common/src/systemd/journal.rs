//! Reads the entries of a machine from the host's journal.

use std::time::Duration;

use anyhow::Result;

use crate::command;
use crate::command::argv;
use crate::machine::paths::MachinePaths;
use crate::sys::clock::Moment;
use crate::text;

/// Time limit for a query.
const QUERY_LIMIT: Duration = Duration::from_secs(10);

/// Returns the last lines of the machine's console and its units since that moment.
pub fn last_words(paths: &MachinePaths, since: Moment) -> Result<String> {
    let mut command = argv([
        "journalctl",
        "--quiet",
        "--no-pager",
        "--output=cat",
        "--lines=20",
        "--reverse",
    ]);
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
