//! Reads values of options from what clap has parsed.

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::ArgMatches;
use nspawn_common::cli::values;

/// Returns the value of the option, if it has one.
pub fn optional<T>(matches: &ArgMatches, id: &str) -> Option<T>
where
    T: Clone + Send + Sync + 'static,
{
    matches.get_one(id).cloned()
}

/// Returns the value of an option that has a default.
pub fn required<T>(matches: &ArgMatches, id: &str) -> Result<T>
where
    T: Clone + Send + Sync + 'static,
{
    optional(matches, id).with_context(|| format!("--{id} has no value"))
}

/// Parses each value of a list option.
pub fn parsed_list<T>(
    matches: &ArgMatches,
    id: &str,
    parse: fn(OsString) -> Result<T>,
) -> Result<Vec<T>> {
    values::list(matches, id).into_iter().map(parse).collect()
}
