//! Keeps the host's AppArmor profiles from applying to the machine's programs.
//!
//! AppArmor attaches profiles to paths, and makes no difference between a path in a machine and the
//! same path on the host: the host's profile for the DNS server `named` would confine
//! `/usr/sbin/named` of every machine. So machines run in an AppArmor policy namespace of their
//! own, which has no profiles (apparmor(7), aa_change_onexec(2)).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const NAMESPACES: &str = "/sys/kernel/security/apparmor/policy/namespaces";
/// Feature of the kernel with which dbus-daemon asks AppArmor about its clients.
const DBUS_FEATURE: &str = "/sys/kernel/security/apparmor/features/dbus/mask";
/// Policy namespace of all machines.
const NAMESPACE: &str = "nspawn-ci";

/// Arranges that the next program that this process executes runs in the policy namespace.
///
/// Does nothing if the kernel does not use AppArmor.
pub fn leave_profiles() -> Result<()> {
    let is_enabled = fs::read_to_string(ENABLED).is_ok_and(|value| value.starts_with('Y'));
    if !is_enabled || !Path::new(NAMESPACES).exists() {
        return Ok(());
    }
    // With this feature, dbus-daemon would refuse systemd-nspawn's connection, because it can't
    // parse the name of a label in another namespace (observed on forky, Linux 7.2).
    if Path::new(DBUS_FEATURE).exists() {
        return Ok(());
    }
    create_namespace()?;
    fs::write(
        "/proc/self/attr/apparmor/exec",
        format!("exec :{NAMESPACE}:unconfined"),
    )
    .with_context(|| format!("can't enter the AppArmor namespace {NAMESPACE}"))
}

fn create_namespace() -> Result<()> {
    let namespace = Path::new(NAMESPACES).join(NAMESPACE);
    match fs::create_dir(&namespace) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.with_context(|| {
            format!(
                "can't create the AppArmor namespace {}",
                namespace.display()
            )
        }),
    }
}
