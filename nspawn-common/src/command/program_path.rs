//! Paths of external programs and of this workspace's programs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Directories that are searched after those on PATH. cron(8) and su(1) set a PATH without the
/// directory of mkfs.ext4(8).
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// Directories that replace a missing PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the end of a message that says how to get `program`, or an empty text.
pub(super) fn package_hint(program: &str) -> &'static str {
    match program {
        "systemd-nspawn" | "systemd-dissect" | "machinectl" => {
            "; install the package systemd-container"
        }
        "systemd-run" | "systemctl" | "journalctl" => "; this host must run systemd",
        "mkfs.ext4" | "e2fsck" => "; install the package e2fsprogs",
        "ip" => "; install the package iproute2",
        "btrfs" => "; install the package btrfs-progs",
        "flock" | "mount" | "nsenter" => "; install the package util-linux",
        _ => "",
    }
}

/// Returns the path of the program that this process runs, to start another process of it.
///
/// If an upgrade has replaced the program, this is the path of the newer one.
pub fn current_program() -> Result<PathBuf> {
    let reported = std::env::current_exe().context("can't get the path of this program")?;
    find_installed(&reported, |path| path.is_file()).with_context(|| {
        format!(
            "this program has been removed: {}; install it again",
            reported.display()
        )
    })
}

// Returns the path of the installed program. The kernel appends a mark to the path that it reports
// if the file was replaced or removed (proc_pid_exe(5)).
fn find_installed(reported: &Path, exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let bytes = reported.as_os_str().as_bytes();
    let unmarked = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    [reported, Path::new(OsStr::from_bytes(unmarked))]
        .into_iter()
        .find(|path| exists(path))
        .map(Path::to_owned)
}

/// Returns the path of `program`, another program of this workspace.
///
/// It is searched in the directory of this program first, and then on PATH.
pub fn find_sibling(program: &str) -> Result<PathBuf> {
    let beside = current_program()?.with_file_name(program);
    if beside.is_file() {
        return Ok(beside);
    }
    find_program(program).with_context(|| {
        format!("can't find {program} beside this program or on PATH; install it there")
    })
}

/// Returns the path of `program` on PATH or in a directory of system administration programs.
pub fn find_program(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Returns the directories in which programs are searched, in the format of PATH.
pub(super) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    path.push(":");
    path.push(SYSTEM_DIRECTORIES);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_program_is_found_at_its_path() {
        let find = |reported: &str, existing: &[&str]| {
            let exists = |path: &Path| existing.iter().any(|file| Path::new(file) == path);
            find_installed(Path::new(reported), exists)
                .map(|path| path.to_str().unwrap().to_owned())
        };
        assert_eq!(find("/bin/a", &["/bin/a"]).unwrap(), "/bin/a");
        assert_eq!(find("/bin/a (deleted)", &["/bin/a"]).unwrap(), "/bin/a");
        assert_eq!(
            find("/bin/a (deleted)", &["/bin/a", "/bin/a (deleted)"]).unwrap(),
            "/bin/a (deleted)"
        );
        assert_eq!(find("/bin/a (deleted)", &["/bin/b"]), None);
    }
}
