//! The machine's programs out of reach of the host's AppArmor profiles.
//!
//! Profiles are attached to paths, and a path in the machine matches as one of the host does: the host's profile for
//! named would confine `/usr/sbin/named` of every machine. So machines run in an AppArmor policy namespace of their
//! own, which has no profiles (apparmor(7), aa_change_onexec(2)).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const NAMESPACES: &str = "/sys/kernel/security/apparmor/policy/namespaces";
/// The feature of kernels for which dbus-daemon asks AppArmor about its clients.
const DBUS_FEATURE: &str = "/sys/kernel/security/apparmor/features/dbus/mask";
/// The policy namespace of all machines.
const NAMESPACE: &str = "nspawn-ci";

/// Makes the next program that this process executes the first one in the namespace, where the kernel has AppArmor.
pub fn leave_profiles() -> Result<()> {
    let is_enabled = fs::read_to_string(ENABLED).is_ok_and(|value| value.starts_with('Y'));
    if !is_enabled || !Path::new(NAMESPACES).exists() {
        return Ok(());
    }
    // dbus-daemon would then refuse systemd-nspawn's connection, since it can't parse the name of a label in another
    // namespace (seen with forky, Linux 7.2).
    if Path::new(DBUS_FEATURE).exists() {
        return Ok(());
    }
    let namespace = Path::new(NAMESPACES).join(NAMESPACE);
    match fs::create_dir(&namespace) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| {
                format!("can't make the AppArmor namespace {}", namespace.display())
            })?;
        }
        _ => {}
    }
    fs::write(
        "/proc/self/attr/apparmor/exec",
        format!("exec :{NAMESPACE}:unconfined"),
    )
    .with_context(|| format!("can't enter the AppArmor namespace {NAMESPACE}"))
}
