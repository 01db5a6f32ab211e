//! Adds names to a machine's /etc/hosts (hosts(5)).
//!
//! This code runs inside the machine, to which the file belongs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::libc::O_NONBLOCK;
use nspawn_common::sys::fs::{bind_mount, if_present, remove_file_if_present};

/// The file in the machine.
const HOSTS: &str = "/etc/hosts";
/// File that is mounted over a read-only /etc/hosts.
const COPY: &str = "/run/nspawn-hosts";
/// Number of bytes that are read of the file at most.
const MAX_SIZE: u64 = 1 << 20;
/// Initial content if the file is missing or empty.
const LOCALHOST: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Adds the lines that the file lacks.
///
/// Run this by [`nspawn_common::machine::namespaces::run_inside`].
pub fn add(lines: &[String]) -> Result<()> {
    let content = read().with_context(|| format!("can't read {HOSTS}"))?;
    let addition = addition(&content, lines);
    if addition.is_empty() {
        return Ok(());
    }
    match append(&addition) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            replace(&format!("{content}{addition}"))
                .with_context(|| format!("can't mount a file on {HOSTS}"))
        }
        result => result.with_context(|| format!("can't write to {HOSTS}")),
    }
}

fn read() -> Result<String> {
    // O_NONBLOCK keeps a FIFO in the place of the file from blocking this process.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(HOSTS);
    let Some(file) = if_present(file)? else {
        return Ok(String::new());
    };
    if !file.metadata()?.is_file() {
        bail!("it is not a regular file");
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the text to append so that the file has all `lines`.
fn addition(content: &str, lines: &[String]) -> String {
    let missing: String = lines
        .iter()
        .filter(|line| !content.lines().any(|present| present == **line))
        .map(|line| format!("{line}\n"))
        .collect();
    if missing.is_empty() {
        return missing;
    }
    let separator = match content {
        "" => LOCALHOST,
        content if content.ends_with('\n') => "",
        _ => "\n",
    };
    format!("{separator}{missing}")
}

fn append(text: &str) -> io::Result<()> {
    let is_new = !fs::exists(HOSTS)?;
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(HOSTS)?
        .write_all(text.as_bytes())?;
    if is_new {
        fs::set_permissions(HOSTS, Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Mounts a file with this text over /etc/hosts.
fn replace(text: &str) -> Result<()> {
    remove_file_if_present(Path::new(COPY))?;
    File::create_new(COPY)?.write_all(text.as_bytes())?;
    fs::set_permissions(COPY, Permissions::from_mode(0o644))?;
    bind_mount(Path::new(COPY), Path::new(HOSTS))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_lines_are_added() {
        let lines = ["198.18.0.2 db", "198.18.0.3 web"].map(str::to_owned);
        assert_eq!(
            addition("", &lines),
            "127.0.0.1 localhost\n::1 localhost\n198.18.0.2 db\n198.18.0.3 web\n"
        );
        assert_eq!(addition("198.18.0.2 db", &lines), "\n198.18.0.3 web\n");
        assert_eq!(addition("198.18.0.3 web\n198.18.0.2 db\n", &lines), "");
    }
}
