//! Registration of machines with systemd-machined (org.freedesktop.machine1(5)).
//!
//! systemd-machined keeps a file for each registered machine in /run/systemd/machines, as
//! sd-login(3) expects it. This module only checks whether that file exists, since its content is
//! private to systemd. A query by D-Bus takes milliseconds, so neither starting nor removing a
//! machine depends on one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::AddWatchFlags;

use crate::command;
use crate::command::argv;
use crate::machine::name::MachineName;
use crate::machine::paths::MachinePaths;
use crate::machine::processes;
use crate::sys::inotify;

/// Bus name of systemd-machined.
const SERVICE: &str = "org.freedesktop.machine1";
/// D-Bus interface of a machine.
const MACHINE_INTERFACE: &str = "org.freedesktop.machine1.Machine";

/// Time in which systemd-machined usually notices the end of a machine.
const NOTICE_TIME: Duration = Duration::from_secs(1);
/// Time limit for systemd-machined to forget a machine after a request.
const UNREGISTER_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for a call to systemd-machined.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two queries whether systemd-machined has forgotten a machine.
const PAUSE: Duration = Duration::from_millis(2);

/// Returns whether systemd-machined has a machine of this name that is not one of ours.
#[must_use]
pub fn is_foreign(paths: &MachinePaths) -> bool {
    let is_registered = || paths.registration_file().exists();
    if !is_registered() {
        return false;
    }
    match unit(paths.name()) {
        Ok(unit) => unit != paths.unit(),
        // The query may have made systemd-machined notice that the machine has ended.
        Err(_) => is_registered(),
    }
}

/// Waits, for `limit` at most, until the machine is registered, and thus has all its namespaces.
/// Returns the process ID of its leader.
pub fn wait_for_leader(paths: &MachinePaths, limit: Duration) -> Result<u32> {
    let registration = paths.registration_file();
    let is_registered = inotify::wait_until(
        &registration,
        AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE,
        limit,
        || registration.exists(),
    )?;
    let leader = processes::leader(paths).filter(|_| is_registered);
    leader.with_context(|| not_registered(paths.name()))
}

fn not_registered(name: &MachineName) -> String {
    format!("machine {name} is not registered with systemd-machined")
}

/// Registration of a machine, which can be given another name.
#[derive(Debug, PartialEq, Eq)]
pub struct Registration {
    /// Process ID of the machine's leader.
    pub leader: u32,
    properties: Properties,
}

/// Properties that systemd-nspawn has registered, in the form that busctl(1) prints and takes.
#[derive(Debug, PartialEq, Eq)]
struct Properties {
    /// Machine ID, as the number of bytes and the bytes.
    id: Vec<String>,
    /// Program that has registered the machine.
    service: String,
    /// Network interfaces on the host, as their number and their indices.
    interfaces: Vec<String>,
}

impl Properties {
    /// Names of the properties, in the order of the lines that [`Properties::parse`] takes.
    const NAMES: [&'static str; 3] = ["Id", "Service", "NetworkInterfaces"];

    /// Parses what `busctl get-property` prints: a line for each property, which begins with its
    /// type.
    fn parse(text: &str) -> Option<Self> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        let mut lines = text.lines();
        let id = words(lines.next()?.strip_prefix("ay ")?);
        let service = unquoted(lines.next()?)?.to_owned();
        let interfaces = words(lines.next()?.strip_prefix("ai ")?);
        Some(Self {
            id,
            service,
            interfaces,
        })
    }
}

impl Registration {
    /// Records the registration of a standby machine, so that its takeover needs no query.
    pub fn record(paths: &MachinePaths) -> Result<()> {
        let text = properties(paths.name(), &Properties::NAMES)?;
        let path = paths.registration_record();
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Unregisters a standby machine, so that it can be registered under another name.
    ///
    /// One unit can't be two machines. systemd-machined refuses the second, and systemd-nspawn
    /// would then be stopped.
    ///
    /// # Errors
    /// Fails if the machine is not registered, or if systemd-machined does not forget it in time.
    pub fn unregister(paths: &MachinePaths) -> Result<Self> {
        let name = paths.name();
        let record = fs::read_to_string(paths.registration_record()).unwrap_or_default();
        let registration = Self {
            leader: wait_for_leader(paths, Duration::ZERO)?,
            properties: Properties::parse(&record).with_context(|| {
                format!("machine {name} has no valid record of its registration")
            })?,
        };
        call(&["UnregisterMachine", "s", name.as_str()])?;
        wait_until_forgotten(name)?;
        Ok(registration)
    }

    /// Registers the machine under the name that it has now.
    pub fn register(&self, paths: &MachinePaths) -> Result<()> {
        let leader = self.leader.to_string();
        let root = paths.root_mount().display().to_string();
        let properties = &self.properties;
        let mut words = vec![
            "RegisterMachineWithNetwork",
            "sayssusai",
            paths.name().as_str(),
        ];
        words.extend(properties.id.iter().map(String::as_str));
        words.extend([&properties.service, "container", &leader, &root]);
        words.extend(properties.interfaces.iter().map(String::as_str));
        let mut before = invocation();
        while let Err(error) = call(&words) {
            // A restart of systemd-machined may have lost the answer, or the call itself.
            if is_registered_as(paths.name(), self.leader) {
                return Ok(());
            }
            if !is_restarted(before.as_deref()) {
                return Err(error);
            }
            before = invocation();
        }
        Ok(())
    }
}

/// Returns an identifier of the current run of systemd-machined, or `None` while it does not run.
#[must_use]
pub fn invocation() -> Option<PathBuf> {
    fs::read_link("/run/systemd/units/invocation:systemd-machined.service").ok()
}

/// Returns whether systemd-machined was restarted since its [`invocation`] was `before`.
#[must_use]
pub fn is_restarted(before: Option<&Path>) -> bool {
    before.is_some_and(|before| invocation().as_deref() != Some(before))
}

/// Waits until a machine that has ended is no longer registered.
///
/// # Errors
/// Fails if systemd-machined still lists the machine after a query.
pub fn wait_until_gone(paths: &MachinePaths) -> Result<()> {
    let registration = paths.registration_file();
    let is_gone = |limit| {
        inotify::wait_until(
            &registration,
            AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM,
            limit,
            || !registration.exists(),
        )
    };
    if is_gone(NOTICE_TIME)? {
        return Ok(());
    }
    // A systemd-machined that was just started may have missed the end, but checks its machines
    // when it is queried. If it can't be started, it lists no machine.
    let Ok(unit) = unit(paths.name()) else {
        return Ok(());
    };
    let is_ours = unit == paths.unit();
    if is_ours && !is_gone(UNREGISTER_LIMIT)? {
        bail!(
            "systemd-machined still lists machine {}, which has ended; see systemctl status systemd-machined",
            paths.name()
        );
    }
    Ok(())
}

/// Waits until systemd-machined has forgotten a machine that is no longer registered. Until then it
/// refuses another machine of that name.
///
/// systemd-machined forgets the machine when it is idle, and sends no signal at that time.
///
/// # Errors
/// Fails if it does not forget the machine within ten seconds.
pub fn wait_until_forgotten(name: &MachineName) -> Result<()> {
    let deadline = Instant::now() + UNREGISTER_LIMIT;
    while call(&["GetMachine", "s", name.as_str()]).is_ok() {
        if Instant::now() > deadline {
            bail!("systemd-machined does not unregister machine {name}");
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Returns the unit of the machine that systemd-machined has under this name.
fn unit(name: &MachineName) -> Result<String> {
    let line = properties(name, &["Unit"])?;
    let unit = unquoted(&line).with_context(|| not_registered(name))?;
    Ok(unit.to_owned())
}

fn is_registered_as(name: &MachineName, leader: u32) -> bool {
    properties(name, &["Leader"]).is_ok_and(|line| line == format!("u {leader}"))
}

/// Returns the properties of a registered machine, a line for each, as busctl(1) prints them.
fn properties(name: &MachineName, properties: &[&str]) -> Result<String> {
    let object = object_path(name);
    let mut command = argv([
        "busctl",
        "get-property",
        SERVICE,
        &object,
        MACHINE_INTERFACE,
    ]);
    command.extend(properties.iter().map(OsString::from));
    command::run_checked(&command, CALL_LIMIT).with_context(|| not_registered(name))
}

/// Returns the D-Bus object path of a machine, whose name is encoded as by `sd_bus_path_encode(3)`.
fn object_path(name: &MachineName) -> String {
    let mut path = "/org/freedesktop/machine1/machine/".to_owned();
    for (place, byte) in name.as_str().bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (place > 0 && byte.is_ascii_digit()) {
            path.push(byte.into());
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

/// Returns the value of a string property, as busctl(1) prints it. Names of units and programs need
/// no escapes.
fn unquoted(line: &str) -> Option<&str> {
    line.strip_prefix("s \"")?.strip_suffix('"')
}

fn call(words: &[&str]) -> Result<()> {
    let mut command = argv([
        "busctl",
        "--quiet",
        "call",
        SERVICE,
        "/org/freedesktop/machine1",
        "org.freedesktop.machine1.Manager",
    ]);
    command.extend(words.iter().map(OsString::from));
    command::run_checked(&command, CALL_LIMIT)
        .map(drop)
        .context("can't call systemd-machined")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_paths_are_encoded_as_by_systemd() {
        let path = |name: &str| object_path(&MachineName::new(name).unwrap());
        assert!(path("ci-1.x").ends_with("/machine/ci_2d1_2ex"));
        assert!(path("1a1").ends_with("/machine/_31a1"));
    }

    #[test]
    fn properties_are_parsed_as_busctl_prints_them() {
        let text = "ay 3 1 20 255\ns \"systemd-nspawn\"\nai 1 7";
        let properties = Properties::parse(text).unwrap();
        assert_eq!(properties.id, ["3", "1", "20", "255"]);
        assert_eq!(properties.service, "systemd-nspawn");
        assert_eq!(properties.interfaces, ["1", "7"]);
        for bad in ["", "ay 0", "ay 0\ns \"a\"", "ay 0\ns a\nai 0"] {
            assert_eq!(Properties::parse(bad), None, "{bad:?}");
        }
    }
}
