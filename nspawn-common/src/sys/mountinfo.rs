//! Mount tables of processes (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Returns the mount points at or below any of `paths` in the mount namespace of this process.
pub fn mounts_below(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    read("self", paths)
}

/// Returns the mount points at or below any of `paths` in the host's mount namespace.
pub fn host_mounts_below(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    read("1", paths)
}

fn read(process: &str, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let file = format!("/proc/{process}/mountinfo");
    let table = fs::read(&file).with_context(|| format!("can't read {file}"))?;
    Ok(mount_points(&table)
        .filter(|point| paths.iter().any(|path| point.starts_with(path)))
        .collect())
}

// Returns the fifth field of each line.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(|line| Some(unescape(line.split(|byte| *byte == b' ').nth(4)?)))
}

// The kernel writes blanks, tabs, newlines and backslashes as a backslash and three octal digits.
fn unescape(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let Some((first, rest)) = field.split_first() {
        match escaped_byte(*first, rest) {
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

fn escaped_byte(first: u8, rest: &[u8]) -> Option<u8> {
    if first != b'\\' {
        return None;
    }
    let digits = std::str::from_utf8(rest.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn escaped_mount_points_are_decoded() {
        let table =
            b"22 1 8:1 / / rw - ext4 /dev/x rw\n23 22 0:5 /a /mnt/a\\040b\\134c rw shared:1 - tmpfs none rw\n\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/"), Path::new("/mnt/a b\\c")]);
        assert_eq!(unescape(b"a\\9x\\04"), Path::new("a\\9x\\04"));
    }

    #[test]
    fn only_whole_path_components_match() {
        assert!(mounts_below(&["/pro".into()]).unwrap().is_empty());
        assert!(
            mounts_below(&["/proc".into()])
                .unwrap()
                .contains(&"/proc".into())
        );
    }
}
