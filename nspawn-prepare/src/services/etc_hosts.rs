//! Adds names to a machine's /etc/hosts (hosts(5)).
//!
//! This code runs inside the machine, to which the file belongs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Error, Result};
use nspawn_common::sys::fs::{bind_mount, if_present, read_regular_file, remove_file_if_present};

use crate::launcher::names::{HOSTS, LOCALHOST, MAX_SIZE, own_line};

/// File that is mounted over a read-only /etc/hosts.
const COPY: &str = "/run/nspawn-hosts";

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

/// Replaces the name `from` of the machine itself by `to`, if the file has it as the launcher writes
/// it.
///
/// Run this by [`nspawn_common::machine::namespaces::run_inside`].
pub fn rename(from: &str, to: &str) -> Result<()> {
    // Another file of the image has no such line.
    let Ok(content) = read() else {
        return Ok(());
    };
    let renamed = content.replace(&own_line(from), &own_line(to));
    if renamed == content {
        return Ok(());
    }
    match fs::write(HOSTS, &renamed) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => replace(&renamed),
        result => result.map_err(Error::from),
    }
    .with_context(|| format!("can't write to {HOSTS}"))
}

fn read() -> Result<String> {
    let text = if_present(read_regular_file(HOSTS, MAX_SIZE))?.unwrap_or_default();
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
