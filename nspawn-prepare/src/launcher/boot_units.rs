//! What the machine's systemd is given before the image's own units: the agent, and what makes its boot short without
//! taking anything from it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nspawn_common::sys::fs::open_in_root;

use crate::create::spec::AGENT_UNIT_NAME;

/// Links to this mask a unit, one unit's wish for another (systemd.unit(5)), or a generator (systemd.generator(7)).
const NOTHING: &str = "/dev/null";

const FILES: [(&str, &str); 3] = [
    (
        AGENT_UNIT_NAME,
        include_str!("boot_units/nspawn-agent.service"),
    ),
    (
        "systemd-tmpfiles-setup.service.d/00-nspawn.conf",
        include_str!("boot_units/tmpfiles.conf"),
    ),
    (
        "systemd-journald.service.d/00-nspawn.conf",
        include_str!("boot_units/journald.conf"),
    ),
];

/// What has nothing to do in a machine, what another does as well, or what starts when it is first used.
const MASKS: [&str; 13] = [
    // These look for what no container has, and are as many programs to start.
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
    // Nobody is kept from logging in while it boots: see tmpfiles.conf.
    "multi-user.target.wants/systemd-user-sessions.service",
];

/// Starts when it is first used too, but begins with the sessions of users that linger.
const LOGIND: &str = "multi-user.target.wants/systemd-logind.service";
/// Who does (systemd-logind.service(8)).
const LINGERING: &str = "var/lib/systemd/linger";

/// What all services have, where the machine is one to a job.
const ENVIRONMENT: &str = "service.d/00-nspawn.conf";

/// Writes it to the directory `units`, for the machine whose tree is `root`, with `owner` as its owner. Its services are
/// given the `environment`.
pub fn write(units: &Path, root: &Path, owner: u32, environment: &[OsString]) -> Result<()> {
    let place = Place { units, owner };
    let write = || -> io::Result<()> {
        place.directory("")?;
        FILES
            .iter()
            .try_for_each(|(name, content)| place.file(name, content))?;
        MASKS.iter().try_for_each(|name| place.mask(name))?;
        if !environment.is_empty() {
            place.file(ENVIRONMENT, &settings(environment))?;
        }
        if has_lingering_users(root) {
            Ok(())
        } else {
            place.mask(LOGIND)
        }
    };
    write().with_context(|| format!("can't write to {}", units.display()))
}

struct Place<'a> {
    units: &'a Path,
    owner: u32,
}

impl Place<'_> {
    fn directory(&self, name: &str) -> io::Result<()> {
        let path = self.units.join(name);
        if path.exists() {
            return Ok(());
        }
        DirBuilder::new().mode(0o755).create(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        self.own(&path)
    }

    fn file(&self, name: &str, content: &str) -> io::Result<()> {
        let path = self.units.join(name);
        self.parent(name)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        self.own(&path)
    }

    fn mask(&self, name: &str) -> io::Result<()> {
        let path = self.units.join(name);
        self.parent(name)?;
        symlink(NOTHING, &path)?;
        self.own(&path)
    }

    fn parent(&self, name: &str) -> io::Result<()> {
        name.split_once('/')
            .map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.owner), Some(self.owner))
    }
}

// systemd.exec(5), Environment=; systemd.syntax(7), quoting. It takes text only.
fn settings(environment: &[OsString]) -> String {
    let is_name = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let entries = environment.iter().filter_map(|entry| entry.to_str());
    let entries =
        entries.filter(|entry| entry.split_once('=').is_some_and(|(name, _)| is_name(name)));
    let escaped = |letter: char| match letter {
        '\\' | '"' => format!("\\{letter}"),
        '%' => "%%".to_owned(),
        // Some of them end a line.
        control if control.is_ascii_control() => format!("\\x{:02x}", control as u32),
        other => other.to_string(),
    };
    let quoted = |entry: &str| {
        format!(
            "Environment=\"{}\"\n",
            entry.chars().map(escaped).collect::<String>()
        )
    };
    ["[Service]\n".to_owned()]
        .into_iter()
        .chain(entries.map(quoted))
        .collect()
}

fn has_lingering_users(root: &Path) -> bool {
    let there =
        File::open(root).and_then(|root| Ok(open_in_root(root, LINGERING, OFlag::O_DIRECTORY)?));
    let users =
        there.and_then(|there| fs::read_dir(format!("/proc/self/fd/{}", there.as_raw_fd())));
    users.is_ok_and(|mut users| users.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_variables_as_they_are() {
        let environment = ["A=1 2", "B=\"x\\\n\r%h$Y\u{e4}", "C-D=no"].map(OsString::from);
        assert_eq!(
            settings(&environment),
            "[Service]\nEnvironment=\"A=1 2\"\nEnvironment=\"B=\\\"x\\\\\\x0a\\x0d%%h$Y\u{e4}\"\n"
        );
    }
}
