//! FUSE file systems that a machine provides itself, if it has `/dev/fuse`.
//!
//! A process that waits for such a file system to answer can't be killed, and the file system does
//! not end if the process has its device open. It may wait while it holds the lock of a pipe, as
//! write(2) does with a buffer that is a mapped file. Then all others that use the pipe can't be
//! killed either: the host's nspawn-run, and the process that would answer.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::lifecycle::uid_range;
use crate::machine::paths::MachinePaths;

/// Directory with a directory for each connection to a FUSE file system
/// (Documentation/filesystems/fuse/fuse.rst). Its owner is the user who mounted the file system.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Aborts all connections of the machine, so that all requests fail.
///
/// Only a machine with a user namespace has users of its own. Errors are ignored: they leave
/// processes that don't end, which the caller reports.
pub fn abort_connections(paths: &MachinePaths) {
    let (Some(users), Ok(entries)) = (uid_range::of(paths), fs::read_dir(CONNECTIONS)) else {
        return;
    };
    for connection in entries.flatten() {
        let owner = connection.metadata().map(|metadata| metadata.uid());
        if owner.is_ok_and(|owner| users.contains(owner)) {
            let _ = fs::write(connection.path().join("abort"), "1");
        }
    }
}
