//! Name servers for programs that expect them from systemd-resolved(8).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use nspawn_common::sys::fs::read_regular_file;

/// The machine's name servers (resolv.conf(5)), which the host has written.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Directory of the files to which packages of systemd-resolved link /etc/resolv.conf.
const DIRECTORY: &str = "/run/systemd/resolve";
/// Number of bytes that are copied at most.
const MAX_SIZE: u64 = 64 << 10;
/// Names of the files there.
const FILES: [&str; 2] = ["resolv.conf", "stub-resolv.conf"];

/// Writes the machine's name servers to the files of systemd-resolved.
///
/// A job that installs its package gets a link to these files, and the package of Debian 12 does not
/// write them. A systemd-resolved that runs replaces them. A machine in which they can't be written
/// works without them.
pub fn publish() {
    let is_file = fs::symlink_metadata(RESOLV_CONF).is_ok_and(|metadata| metadata.is_file());
    if is_file {
        let _ = write_files();
    }
}

fn write_files() -> io::Result<()> {
    let content = read_regular_file(RESOLV_CONF, MAX_SIZE)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIRECTORY)?;
    for name in FILES {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(format!("{DIRECTORY}/{name}"))?
            .write_all(&content)?;
    }
    Ok(())
}
