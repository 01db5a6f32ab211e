//! Core dumps of the machine's processes.
//!
//! If the host's `core_pattern` is a pipe (systemd-coredump, apport), its program runs on the host.
//! It writes the memory, the environment and the command line of a job's process to the host's disk
//! and journal. The limit of core dumps prevents that, so nothing in the machine may change the
//! limit.

use std::ffi::OsString;

use anyhow::Result;
use nspawn_common::sys::core_limit;
use nspawn_common::systemd::nspawn::NO_CORES;

/// Prevents core dumps, if the options of systemd-nspawn say so.
pub fn forbid(options: &[OsString]) -> Result<()> {
    let mut options = options.iter().take_while(|word| *word != "--");
    if options.any(|word| word == NO_CORES) {
        core_limit::fix_at_one()?;
    }
    Ok(())
}
