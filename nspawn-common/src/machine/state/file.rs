//! The file of the state.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine::name::MachineName;
use crate::machine::paths::{MachinePaths, SLICE_CGROUP, job_of_slice, slice_cgroup_of_job};
use crate::machine::state::{State, json};

/// Maximum size of a state file, in bytes.
const MAX_SIZE: u64 = 4 << 20;

impl State {
    /// Reads the state of the machine `name`.
    ///
    /// # Errors
    /// Fails with [`OtherVersion`](json::OtherVersion) if another version of these programs made the machine.
    pub fn read(name: &MachineName) -> Result<Self> {
        let path = MachinePaths::named(name).state_file();
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is no machine {name}; create it: nspawn-prepare --name={name} IMAGE")
            }
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", path.display()));
            }
        };
        Self::parse(name, &text).with_context(|| {
            format!(
                "can't use {} (nspawn-cleanup {name} removes the machine)",
                path.display()
            )
        })
    }

    /// Returns the paths of the image of the machine `name` and of its layers, also if another version of these programs
    /// made the machine; `None` if its state has no such path.
    #[must_use]
    pub fn image_paths_of(name: &MachineName) -> Option<Vec<PathBuf>> {
        Self::parse_image_paths(&read_bounded(&MachinePaths::named(name).state_file()).ok()?)
    }

    /// Returns the paths of the machine `name`, of which anything or nothing may exist.
    ///
    /// The name of the unit is read from the state, also from one of another version. A machine without a readable state
    /// has its own name's unit, if any, in any slice.
    #[must_use]
    pub fn paths_of(name: &MachineName) -> MachinePaths {
        let paths = MachinePaths::named(name);
        let text = read_bounded(&paths.state_file()).unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        match json::started_as(&value) {
            Some(started_as) => {
                MachinePaths::started_as(name, &started_as).in_slice_of(json::slice_of(&value))
            }
            None => in_any_slice(paths),
        }
    }
}

/// Returns the paths of a machine without a readable state, whose unit may be in the slice of a job.
fn in_any_slice(paths: MachinePaths) -> MachinePaths {
    let slices = fs::read_dir(SLICE_CGROUP).into_iter().flatten().flatten();
    let mut jobs = slices.filter_map(|slice| job_of_slice(&slice.file_name()));
    let job = jobs.find(|job| slice_cgroup_of_job(job).join(paths.unit()).exists());
    paths.in_slice_of(job)
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?
        .take(MAX_SIZE)
        .read_to_end(&mut text)?;
    Ok(text)
}
