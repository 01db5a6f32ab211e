//! Units for the machine's systemd that take precedence over those of the image.
//!
//! They start the agent, and they shorten the boot without removing anything that the machine
//! needs.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nspawn_common::sys::fs::open_in_root;

/// The agent as a service of the machine.
pub const AGENT_UNIT: &str = "nspawn-agent.service";

/// Target of symlinks that mask.
///
/// Such a symlink masks a unit, an entry of a `.wants/` directory (systemd.unit(5)), or a generator
/// (systemd.generator(7)).
const MASK_TARGET: &str = "/dev/null";

const FILES: [(&str, &str); 3] = [
    (AGENT_UNIT, include_str!("boot_units/nspawn-agent.service")),
    (
        "systemd-tmpfiles-setup.service.d/00-nspawn.conf",
        include_str!("boot_units/tmpfiles.conf"),
    ),
    (
        "systemd-journald.service.d/00-nspawn.conf",
        include_str!("boot_units/journald.conf"),
    ),
];

/// Generators and units that are not started.
///
/// They have no work in a machine, duplicate another unit, or start on first use.
const MASKS: [&str; 13] = [
    // These generators look for things that containers lack, and each is a process.
    "generators/systemd-bless-boot-generator",
    "generators/systemd-cryptsetup-generator",
    "generators/systemd-factory-reset-generator",
    "generators/systemd-getty-generator",
    "generators/systemd-gpt-auto-generator",
    "generators/systemd-hibernate-resume-generator",
    "generators/systemd-integritysetup-generator",
    "generators/systemd-tpm2-generator",
    "generators/systemd-veritysetup-generator",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "multi-user.target.wants/dbus.service",
    // This unit allows logins after the boot. tmpfiles.conf already allows them during the boot.
    "multi-user.target.wants/systemd-user-sessions.service",
];

/// logind is D-Bus activated, but must start at boot if users linger: it starts their sessions.
const LOGIND: &str = "multi-user.target.wants/systemd-logind.service";
/// Directory with one file for each lingering user (systemd-logind.service(8)).
const LINGERING: &str = "var/lib/systemd/linger";

/// Drop-in for all services of the machine, if the machine is a service of a job.
const ENVIRONMENT: &str = "service.d/00-nspawn.conf";

/// Writes the units to the directory `units`, for the machine whose tree is `root`.
///
/// Their owner is the host's user `owner`. All services of the machine get the `environment`.
pub fn write(units: &Path, root: &Path, owner: u32, environment: &[OsString]) -> Result<()> {
    UnitDirectory { path: units, owner }
        .fill(root, environment)
        .with_context(|| format!("can't write to {}", units.display()))
}

/// A directory of units that belongs to the machine's root.
struct UnitDirectory<'a> {
    path: &'a Path,
    owner: u32,
}

impl UnitDirectory<'_> {
    fn fill(&self, root: &Path, environment: &[OsString]) -> io::Result<()> {
        self.create_directory("")?;
        for (name, content) in FILES {
            self.write_file(name, content)?;
        }
        for name in MASKS {
            self.mask(name)?;
        }
        if !environment.is_empty() {
            self.write_file(ENVIRONMENT, &environment_settings(environment))?;
        }
        if !has_lingering_users(root) {
            self.mask(LOGIND)?;
        }
        Ok(())
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        if path.exists() {
            return Ok(());
        }
        DirBuilder::new().mode(0o755).create(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        self.set_owner(&path)
    }

    fn write_file(&self, name: &str, content: &str) -> io::Result<()> {
        let path = self.path.join(name);
        self.create_parent(name)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        self.set_owner(&path)
    }

    fn mask(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        self.create_parent(name)?;
        symlink(MASK_TARGET, &path)?;
        self.set_owner(&path)
    }

    fn create_parent(&self, name: &str) -> io::Result<()> {
        match name.split_once('/') {
            Some((parent, _)) => self.create_directory(parent),
            None => Ok(()),
        }
    }

    fn set_owner(&self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.owner), Some(self.owner))
    }
}

/// Returns a drop-in with `Environment=` (systemd.exec(5)).
///
/// Entries that are not UTF-8, or whose name is not one of a variable, are left out.
fn environment_settings(environment: &[OsString]) -> String {
    let mut settings = String::from("[Service]\n");
    for entry in environment.iter().filter_map(|entry| entry.to_str()) {
        let is_variable = entry.split_once('=').is_some_and(|(name, _)| is_name(name));
        if is_variable {
            let quoted: String = entry.chars().map(quote).collect();
            settings.push_str(&format!("Environment=\"{quoted}\"\n"));
        }
    }
    settings
}

fn is_name(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Quotes a letter of a quoted word (systemd.syntax(7)), and escapes specifiers.
fn quote(letter: char) -> String {
    match letter {
        '\\' | '"' => format!("\\{letter}"),
        '%' => "%%".to_owned(),
        // Some control characters end a line.
        control if control.is_ascii_control() => format!("\\x{:02x}", control as u32),
        other => other.to_string(),
    }
}

fn has_lingering_users(root: &Path) -> bool {
    let read = || -> io::Result<bool> {
        let root = File::open(root)?;
        let directory = open_in_root(root, LINGERING, OFlag::O_DIRECTORY)?;
        let mut users = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        Ok(users.next().is_some())
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_variables_unchanged() {
        let environment = ["A=1 2", "B=\"x\\\n\r%h$Y\u{e4}", "C-D=no"].map(OsString::from);
        assert_eq!(
            environment_settings(&environment),
            "[Service]\nEnvironment=\"A=1 2\"\nEnvironment=\"B=\\\"x\\\\\\x0a\\x0d%%h$Y\u{e4}\"\n"
        );
    }
}
