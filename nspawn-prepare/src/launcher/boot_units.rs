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
use nspawn_common::config::network::Network;
use nspawn_common::image::architecture;
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

/// Units of systemd-resolved, which are not started in a machine of [`Network::Nat`].
///
/// systemd-resolved takes that network for one that is down, because its addresses are marked as
/// deprecated ([`Uplink::configuration`](crate::network::uplink::Uplink::configuration)). Without it,
/// the machine's C library asks the servers in resolv.conf(5), also through nss-resolve(8).
const RESOLVED: [&str; 3] = [
    "systemd-resolved.service",
    "systemd-resolved-monitor.socket",
    "systemd-resolved-varlink.socket",
];

/// Services that wait until a program of the image has configured the network.
const WAITS: [&str; 4] = [
    "systemd-networkd-wait-online.service",
    "systemd-networkd-wait-online@.service",
    "NetworkManager-wait-online.service",
    "ifupdown-wait-online.service",
];
/// Drop-in of these services. It is the last one by its name, because images have drop-ins that
/// change the command.
const WAIT_DROP_IN: &str = "zz-nspawn.conf";
/// Content of the drop-in if the host connects the machine during the boot.
const WAIT_FOR_HOST: &str = include_str!("boot_units/wait-online.conf");
/// Content of the drop-in if the network does not change.
const NO_WAIT: &str = include_str!("boot_units/no-wait-online.conf");

/// logind is D-Bus activated, but must start at boot if users linger: it starts their sessions.
const LOGIND: &str = "multi-user.target.wants/systemd-logind.service";
/// Directory with one file for each lingering user (systemd-logind.service(8)).
const LINGERING: &str = "var/lib/systemd/linger";

/// Drop-in for all services of the machine, if the machine is a service of a job.
const ENVIRONMENT: &str = "service.d/00-nspawn.conf";

/// Drop-in for all services of a machine whose programs an interpreter runs.
const FOREIGN: (&str, &str) = (
    "service.d/00-nspawn-foreign.conf",
    include_str!("boot_units/foreign.conf"),
);

/// Writes the units to the directory `units`, for the machine whose tree is `root`.
///
/// Their owner is the host's user `owner`. All services of the machine get the `environment`.
pub fn write(
    units: &Path,
    root: &Path,
    owner: u32,
    network: &Network,
    environment: &[OsString],
) -> Result<()> {
    UnitDirectory { path: units, owner }
        .fill(root, network, environment)
        .with_context(|| format!("can't write to {}", units.display()))
}

/// Returns the drop-in of services that wait for the network; `None` if the machine itself
/// configures the network.
fn wait_setting(network: &Network) -> Option<&'static str> {
    match network {
        Network::Nat => Some(WAIT_FOR_HOST),
        Network::None | Network::Host | Network::Namespace(_) => Some(NO_WAIT),
        Network::Veth | Network::Bridge(_) | Network::Zone(_) => None,
    }
}

/// A directory of units that belongs to the machine's root.
struct UnitDirectory<'a> {
    path: &'a Path,
    owner: u32,
}

impl UnitDirectory<'_> {
    fn fill(&self, root: &Path, network: &Network, environment: &[OsString]) -> io::Result<()> {
        self.create_directory("")?;
        for (name, content) in FILES {
            self.write_file(name, content)?;
        }
        for name in MASKS {
            self.mask(name)?;
        }
        if *network == Network::Nat {
            for name in RESOLVED {
                self.mask(name)?;
            }
        }
        if let Some(content) = wait_setting(network) {
            for name in WAITS {
                self.write_file(&format!("{name}.d/{WAIT_DROP_IN}"), content)?;
            }
        }
        if architecture::is_foreign(root) {
            self.write_file(FOREIGN.0, FOREIGN.1)?;
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

    /// Returns whether the units for a system with this beginning of a shell have the file.
    fn has_file(kind: &str, shell: &[u8], network: &Network, file: &str) -> bool {
        let place = std::env::temp_dir().join(format!("nspawn-{kind}-{}", std::process::id()));
        let (root, units) = (place.join("root"), place.join("units"));
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/sh"), shell).unwrap();
        let owner = nix::unistd::getuid().as_raw();
        write(&units, &root, owner, network, &[]).unwrap();
        let exists = units.join(file).exists();
        fs::remove_dir_all(&place).unwrap();
        exists
    }

    #[test]
    fn services_of_foreign_systems_have_no_sandbox() {
        let shell = b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0\0\x02\0\x16";
        let has = |shell: &[u8]| has_file("foreign", shell, &Network::Nat, FOREIGN.0);
        assert!(has(shell));
        assert!(!has(b"#!"));
    }

    #[test]
    fn services_wait_for_networks_of_the_machine_only() {
        let drop_in = format!("{}/{WAIT_DROP_IN}", WAITS[0].to_owned() + ".d");
        let has = |network| has_file("wait", b"", &network, &drop_in);
        assert!(has(Network::Nat) && has(Network::None) && has(Network::Host));
        assert!(!has(Network::Veth) && !has(Network::Zone("z".to_owned())));
    }
}
