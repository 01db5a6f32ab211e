//! Files by which programs in the machine resolve names: resolv.conf(5) and hosts(5).
//!
//! An image may have anything in their places: nothing, links, directories, FIFOs. The tree is the
//! root directory of the process that looks at them, so no link leads out of the tree.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{setegid, seteuid};
use nspawn_common::config::network::Network;
use nspawn_common::machine::state::State;
use nspawn_common::sys::credentials;
use nspawn_common::sys::fs::{ignore_missing, read_regular_file};

use crate::launcher::mount_points::in_tree;
use crate::network::pasta;
use crate::network::resolvers::{self, RESOLV_CONF};

/// Names and addresses in the machine (hosts(5)).
pub const HOSTS: &str = "/etc/hosts";
/// Lines for an /etc/hosts without this name.
pub const LOCALHOST: &str = "127.0.0.1 localhost\n::1 localhost\n";
/// Address of the machine's own name, the same as in an installation of Debian.
const OWN_ADDRESS: &str = "127.0.1.1";
/// Number of bytes that are read of a file of the image at most.
pub const MAX_SIZE: u64 = 1 << 20;
/// Directories of the C library, and of libraries for one architecture below.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// Writes the files into the tree at `root`, as the host's user `owner`, who is the machine's root.
pub fn write(root: &Path, state: &State, owner: u32) -> Result<()> {
    let resolv_conf = resolv_conf(&state.network)?;
    let work = || {
        credentials::keep_capabilities()?;
        setegid(owner.into())?;
        seteuid(owner.into())?;
        if let Some(content) = &resolv_conf {
            replace_file(RESOLV_CONF, content.as_bytes())?;
        }
        complete_hosts(state.name.as_str())
    };
    in_tree(root, work).context("can't write /etc/resolv.conf and /etc/hosts in the machine")
}

/// Returns the content of the machine's resolv.conf(5), or `None` if the image's own stays.
///
/// systemd-nspawn would copy the host's file, but does not replace a link.
fn resolv_conf(network: &Network) -> Result<Option<String>> {
    match network {
        Network::Nat => pasta::resolv_conf().map(Some),
        Network::Host | Network::Namespace(_) => Ok(Some(resolvers::host_resolv_conf())),
        Network::None | Network::Veth | Network::Bridge(_) | Network::Zone(_) => Ok(None),
    }
}

/// Adds `localhost` and the machine's own name to /etc/hosts, if the image does not resolve them.
///
/// Programs such as sudo(8) look up the machine's own name, and would wait for a DNS server.
fn complete_hosts(name: &str) -> io::Result<()> {
    let content = read_file(HOSTS)?;
    let is_whole = (content.len() as u64) < MAX_SIZE;
    let text = String::from_utf8_lossy(&content);
    match hosts_lines(&text, name, has_nss_myhostname()?) {
        lines if !lines.is_empty() && is_whole => {
            replace_file(HOSTS, &[&content, lines.as_bytes()].concat())
        }
        _ => Ok(()),
    }
}

/// Returns the text to append to /etc/hosts.
fn hosts_lines(content: &str, name: &str, knows_own_name: bool) -> String {
    let mut lines = String::new();
    if !has_name(content, "localhost") {
        lines.push_str(LOCALHOST);
    }
    if !knows_own_name && !has_name(content, name) {
        lines.push_str(&own_line(name));
    }
    if !lines.is_empty() && !content.is_empty() && !content.ends_with('\n') {
        lines.insert(0, '\n');
    }
    lines
}

/// Returns the line of hosts(5) for the machine's own name.
pub fn own_line(name: &str) -> String {
    format!("{OWN_ADDRESS} {name}\n")
}

fn has_name(content: &str, name: &str) -> bool {
    content.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).any(|word| word == name)
    })
}

/// Returns whether the image resolves the machine's own name to its addresses (nss-myhostname(8)).
fn has_nss_myhostname() -> io::Result<bool> {
    let configuration = read_file("/etc/nsswitch.conf")?;
    let is_enabled = String::from_utf8_lossy(&configuration)
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("hosts:"))
        .any(|services| services.split_whitespace().any(|word| word == "myhostname"));
    Ok(is_enabled && has_library("libnss_myhostname.so.2"))
}

fn has_library(name: &str) -> bool {
    LIBRARIES.iter().any(|directory| {
        let directory = Path::new(directory);
        let below = fs::read_dir(directory).into_iter().flatten().flatten();
        let triplets =
            below.filter(|entry| entry.file_name().to_string_lossy().contains("-linux-"));
        let has_below = |directory: &Path| directory.join(name).exists();
        has_below(directory)
            || triplets
                .map(|entry| entry.path())
                .any(|path| has_below(&path))
    })
}

/// Returns the content of a file up to [`MAX_SIZE`], or nothing if it is missing or no regular file.
fn read_file(path: &str) -> io::Result<Vec<u8>> {
    // Opening a device could have an effect. No other process changes the tree meanwhile.
    if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(Vec::new());
    }
    read_regular_file(path, MAX_SIZE)
}

/// Replaces the file, whatever is there. A link's target may be missing, or another program may
/// write to it.
fn replace_file(path: &str, content: &[u8]) -> io::Result<()> {
    let path = Path::new(path);
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::IsADirectory => fs::remove_dir_all(path)?,
        removed => ignore_missing(removed)?,
    }
    let mut file = File::create_new(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unknown_names_are_added_to_hosts() {
        let own = "127.0.1.1 m\n";
        let both = format!("{LOCALHOST}{own}");
        for (content, knows_own_name, expected) in [
            ("", false, &*both),
            ("", true, LOCALHOST),
            ("127.0.0.1 localhost\n", false, own),
            ("127.0.0.1 localhost", false, "\n127.0.1.1 m\n"),
            ("127.0.0.1\tx localhost\n", true, ""),
            ("127.0.0.1 localhost m\n", false, ""),
            ("127.0.0.1 localhost # m\n", false, own),
            ("localhost m\n127.0.0.1 localhost.local\n", true, LOCALHOST),
        ] {
            let lines = hosts_lines(content, "m", knows_own_name);
            assert_eq!(lines, expected, "{content:?}");
        }
    }
}
