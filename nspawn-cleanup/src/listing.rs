//! The list of machines with their images, for scripts that need to know which images are in use.

use std::ffi::{OsStr, OsString};

use anyhow::Result;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::state::State;
use nspawn_common::report;

/// Prints a line for each machine: its name, a tab, and the path of its image, or `-` if the path
/// is unknown.
pub fn print() -> Result<()> {
    for name in list::all()? {
        let mut line = OsString::from(format!("{name}\t"));
        match State::image_path_of(&name) {
            Some(path) => line.push(path),
            None => line.push(OsStr::new("-")),
        }
        report::print_line(&line)?;
    }
    Ok(())
}
