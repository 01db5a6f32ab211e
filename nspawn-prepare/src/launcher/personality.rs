//! The architecture that the machine's programs see.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nspawn_common::image::architecture;
use nspawn_common::systemd::nspawn::PERSONALITY;

/// Returns the option of systemd-nspawn by which uname(2) reports the architecture of the 32-bit
/// system in `root`.
///
/// Without it, `uname -m` is x86_64 in an i386 image, and builds take that for the architecture to
/// build for. Returns `None` for any other system, and if `options` set a personality.
pub fn option(root: &Path, options: &[OsString]) -> Option<OsString> {
    let is_set = options
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word.as_bytes().starts_with(PERSONALITY.as_bytes()));
    if is_set {
        return None;
    }
    let architecture = architecture::secondary(root)?;
    Some(format!("{PERSONALITY}{architecture}").into())
}
