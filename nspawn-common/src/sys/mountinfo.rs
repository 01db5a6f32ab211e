//! What is mounted in this process's view of the host.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::command;
use crate::lifecycle::caller;

/// How long the host's systemd may take to unmount something.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);

/// The mount points at or below any of `paths`.
///
/// # Errors
/// The kernel's table can't be read.
pub fn below(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    below_in("self", paths)
}

// In the view of a process.
fn below_in(process: &str, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let table =
        fs::read(format!("/proc/{process}/mountinfo")).context("can't tell what is mounted")?;
    Ok(points(&table)
        .filter(|point| paths.iter().any(|path| point.starts_with(path)))
        .collect())
}

/// Takes away what is mounted on the directory `point`, if anything is. What still uses it keeps it until its
/// own end.
///
/// # Errors
/// The kernel's.
pub fn detach(point: &Path) -> Result<()> {
    // First on the host, which most other views follow.
    if caller::has_own_mounts()
        && below_in("1", &[point.to_owned()])?
            .iter()
            .any(|mount| mount == point)
    {
        let command = ["umount", "--lazy"]
            .map(OsStr::new)
            .into_iter()
            .chain([point.as_os_str()])
            .map(OsString::from);
        command::run_ok(&caller::on_host(command.collect()), UNMOUNT_LIMIT)?;
    }
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    while below(&[point.to_owned()])?
        .iter()
        .any(|mount| mount == point)
    {
        umount2(point, flags).with_context(|| format!("can't unmount {}", point.display()))?;
    }
    Ok(())
}

// The fifth field of each line (proc_pid_mountinfo(5)).
fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(|line| Some(unescaped(line.split(|byte| *byte == b' ').nth(4)?)))
}

// A blank, a tab, a newline and a backslash are written as three octal digits.
fn unescaped(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let Some((first, rest)) = field.split_first() {
        let code = rest
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                field = &rest[3..];
            }
            None => {
                path.push(*first);
                field = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_as_they_are() {
        let table =
            b"22 1 8:1 / / rw - ext4 /dev/x rw\n23 22 0:5 /a /mnt/a\\040b\\134c rw shared:1 - tmpfs none rw\n\n";
        let read: Vec<_> = points(table).collect();
        assert_eq!(read, [Path::new("/"), Path::new("/mnt/a b\\c")]);
        assert_eq!(unescaped(b"a\\9x\\04"), Path::new("a\\9x\\04"));
    }

    #[test]
    fn only_whole_names_are_below() {
        assert!(below(&["/pro".into()]).unwrap().is_empty());
        assert!(below(&["/proc".into()]).unwrap().contains(&"/proc".into()));
    }
}
