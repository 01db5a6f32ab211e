//! Records the output of a program in a file of limited size: see
//! [`nspawn_common::machine::output`].

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::unistd::pipe2;
use nspawn_common::machine::output::OutputFile;
use nspawn_common::sys::fork;

/// Starts a process that writes to the file at `path` what is written to the returned descriptor.
///
/// The process is in `cgroup`, or else in that of this process. It ends with the last writer.
pub fn start(path: &Path, cgroup: Option<&File>) -> Result<OwnedFd> {
    let mut file =
        OutputFile::create(path).with_context(|| format!("can't make {}", path.display()))?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut writer = Some(writer);
    fork::run_detached(cgroup, || {
        drop(writer.take());
        record(File::from(reader), &mut file);
        0
    })?;
    writer.context("the recorder has taken its own input")
}

fn record(mut reader: File, file: &mut OutputFile) {
    // systemd ends the processes of a unit when its main process has ended, whose last words are
    // yet to be read.
    let _ = SigSet::all().thread_block();
    // The writer can't do without this process.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        // Without free space the output is lost, but the writer must not wait.
        let _ = file.append(&buffer[..length]);
    }
}
