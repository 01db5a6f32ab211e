//! The listing of machines with their images, for scripts that need to know which images are in use.

use anyhow::Result;
use nspawn_common::lifecycle::list;
use nspawn_common::machine::state::State;

/// Prints a line for each machine: its name, a tab, and the path of its image or `-` if that is unknown.
pub fn print() -> Result<()> {
    for name in list::all()? {
        let image = State::image_path_of(&name);
        let image = image.map_or_else(|| "-".to_owned(), |path| path.display().to_string());
        crate::print_line(&format!("{name}\t{image}"))?;
    }
    Ok(())
}
