//! The names that a job and its services reach each other by: lines of hosts(5), added inside their machines, whose
//! file it is.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::libc::O_NONBLOCK;
use nix::mount::{MsFlags, mount};
use nspawn_common::sys::fs::remove_file_if_present;

/// The file, in a machine.
const HOSTS: &str = "/etc/hosts";
/// What is shown in its place where it can't be written to.
const COPY: &str = "/run/nspawn-hosts";
/// It is read up to this size, in bytes.
const MOST: u64 = 1 << 20;
/// What is in one that is not there, or empty.
const LOCALHOST: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Adds the lines that are not there. For [`nspawn_common::machine::namespaces::run_inside`].
pub fn add(lines: &[String]) -> Result<()> {
    let there = read().with_context(|| format!("can't read {HOSTS}"))?;
    let missing = lines
        .iter()
        .filter(|line| !there.lines().any(|old| old == **line));
    let missing: String = missing.map(|line| format!("{line}\n")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let gap = match &*there {
        "" => LOCALHOST,
        there if there.ends_with('\n') => "",
        _ => "\n",
    };
    match append(&format!("{gap}{missing}")) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            show(&format!("{there}{gap}{missing}"))
                .with_context(|| format!("can't show another {HOSTS}"))
        }
        done => done.with_context(|| format!("can't write to {HOSTS}")),
    }
}

fn read() -> Result<String> {
    // What is no file must not keep this waiting.
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(HOSTS)
    {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        bail!("it is no file");
    }
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn append(text: &str) -> io::Result<()> {
    let is_new = !fs::exists(HOSTS)?;
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(HOSTS)?
        .write_all(text.as_bytes())?;
    if is_new {
        fs::set_permissions(HOSTS, Permissions::from_mode(0o644))
    } else {
        Ok(())
    }
}

fn show(text: &str) -> Result<()> {
    remove_file_if_present(Path::new(COPY))?;
    File::create_new(COPY)?.write_all(text.as_bytes())?;
    fs::set_permissions(COPY, Permissions::from_mode(0o644))?;
    Ok(mount(
        Some(COPY),
        HOSTS,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?)
}
