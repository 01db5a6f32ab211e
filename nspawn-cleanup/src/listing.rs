//! The list of machines with their images, for scripts that need to know which images are in use.

use std::ffi::OsString;

use anyhow::Result;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::state::State;
use nspawn_common::report;

/// Prints a line for each machine: its name, a tab, and the path of its image, or `-` if the path
/// is unknown. If the image is a stack, more such lines name its layers.
pub fn print() -> Result<()> {
    for name in list::all()? {
        for path in State::image_paths_of(&name).unwrap_or_else(|| vec!["-".into()]) {
            let mut line = OsString::from(format!("{name}\t"));
            line.push(path);
            report::print_line(&line)?;
        }
    }
    Ok(())
}
