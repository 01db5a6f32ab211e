//! Standby machines: listed, compared and removed.

use std::fs;
use std::path::Path;

use anyhow::Result;
use nspawn_common::lifecycle::lock::Lock;
use nspawn_common::lifecycle::{list, remove};
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;

/// Standby machines of one pool and one image.
#[derive(Default)]
pub struct Members {
    /// Machines that can be taken over now or soon.
    pub usable: Vec<MachinePaths>,
    /// Machines that will not be taken over any more.
    pub obsolete: Vec<MachinePaths>,
}

impl Members {
    /// Finds the machines with this standby mark. Usable machines have this fingerprint.
    pub fn find(mark: &str, fingerprint: &[u8]) -> Result<Self> {
        let mut members = Self::default();
        for paths in all()? {
            // A machine that is being taken over has no mark any more.
            if !has_content(&paths.standby_mark(), mark.as_bytes()) {
                continue;
            }
            let is_usable = Lock::is_held(&paths)
                || (has_content(&paths.fingerprint_file(), fingerprint)
                    && processes::is_running(&paths));
            if is_usable {
                members.usable.push(paths);
            } else {
                members.obsolete.push(paths);
            }
        }
        Ok(members)
    }
}

/// Returns whether the file exists and has this content.
pub fn has_content(path: &Path, content: &[u8]) -> bool {
    fs::read(path).is_ok_and(|found| found == content)
}

/// Removes a standby machine, unless it was taken over meanwhile.
pub fn remove(paths: &MachinePaths) -> Result<()> {
    match Lock::try_acquire_of_existing(paths)? {
        Some(lock) if paths.standby_mark().exists() => remove::remove_machine(paths.name(), lock),
        _ => Ok(()),
    }
}

/// Returns all standby machines of this host.
pub fn all() -> Result<Vec<MachinePaths>> {
    let names = list::all()?;
    let names = names.iter().filter(|name| name.is_for_standby());
    Ok(names.map(MachinePaths::named).collect())
}
