//! Options that describe a machine.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use nspawn_common::cli::values;
use nspawn_common::config::address_family::AddressFamily;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::config::retention::Retention;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::systemd::nspawn;
use nspawn_common::systemd::nspawn::{Bind, NO_CORES, PERSONALITY};

use crate::cli;
use crate::device::Device;
use crate::layer;
use crate::layer::size::LayerSize;
use crate::network::destination::Destination;
use crate::options::clap_matches::{optional, parsed_list, required};

/// System call that containers in a machine need besides those of the kernel's keyrings. BPF is
/// aware of user namespaces.
const NESTING: &str = "--system-call-filter=bpf";

/// Options that describe a machine.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    pub binds: Vec<Bind>,
    pub devices: Vec<Device>,
    /// Variables of every command in the machine, as `NAME=VALUE`.
    pub environment: Vec<OsString>,
    /// Properties of the machine's unit.
    pub properties: Vec<OsString>,
    pub private_users: PrivateUsers,
    /// Options of systemd-nspawn for capabilities, system calls and the personality.
    pub privileges: Vec<OsString>,
    /// Options of systemd-nspawn for resource limits of processes, one for each limit.
    pub rlimits: Vec<OsString>,
    /// Permission to run containers in the machine.
    pub nesting: bool,
    /// Address families that the machine may use besides the usual ones.
    pub allowed_families: Vec<AddressFamily>,
    pub network: Network,
    /// Destinations on the host that the machine may connect to.
    pub allowed_destinations: Vec<Destination>,
    pub init: Init,
    /// Additional arguments for the machine's systemd.
    pub boot_arguments: Vec<String>,
    /// Process whose end makes the machine stale.
    pub owner: Option<ProcessId>,
    pub layer: Layer,
    pub layer_size: LayerSize,
    pub timeout: Duration,
    pub max_machines: Option<u32>,
    pub keep: Retention,
    pub keep_for: Duration,
}

impl MachineOptions {
    /// Reads the options.
    pub fn from_matches(matches: &ArgMatches) -> Result<Self> {
        let private_users = required(matches, "private-users")?;
        let layer: String = required(matches, "layer")?;
        let (layer, layer_size) =
            layer::parse(&layer, optional(matches, "layer-size"), private_users)?;
        let init = required(matches, "init")?;
        Ok(Self {
            binds: binds(matches)?,
            devices: devices(matches)?,
            environment: parsed_list(matches, "setenv", values::complete_variable)?,
            properties: parsed_list(matches, "property", check_property)?,
            private_users,
            privileges: privileges(matches)?,
            rlimits: rlimits(values::list(matches, "rlimit"))?,
            nesting: values::is_set(matches, "nesting"),
            allowed_families: parsed_list(matches, "allow-address-family", parse_family)?,
            network: required(matches, "network")?,
            allowed_destinations: parsed_list(matches, "allow-host", parse_destination)?,
            init,
            boot_arguments: boot_arguments(matches, init)?,
            owner: optional(matches, "owner"),
            layer,
            layer_size,
            timeout: required(matches, "timeout")?,
            max_machines: optional(matches, "max-machines"),
            keep: required(matches, "keep")?,
            keep_for: required(matches, "keep-for")?,
        })
    }
}

fn binds(matches: &ArgMatches) -> Result<Vec<Bind>> {
    let mut binds = Vec::new();
    for spec in values::list(matches, "bind") {
        binds.push(Bind::Writable(absolute(values::require_utf8(
            "bind", spec,
        )?)?));
    }
    for spec in values::list(matches, "bind-ro") {
        let spec = values::require_utf8("bind-ro", spec)?;
        binds.push(Bind::ReadOnly(absolute(spec)?));
    }
    Ok(binds)
}

fn devices(matches: &ArgMatches) -> Result<Vec<Device>> {
    let mut devices = parsed_list(matches, "device", |word| {
        Device::parse(&word.to_string_lossy())
    })?;
    if values::is_set(matches, "nesting") {
        devices.extend(Device::for_nesting());
    }
    Ok(devices)
}

// systemd-nspawn runs in another working directory than this process.
fn absolute(spec: OsString) -> Result<OsString> {
    if matches!(spec.as_bytes().first(), Some(b'/' | b'+' | b':')) {
        return Ok(spec);
    }
    let directory = env::current_dir().context("can't determine the current directory")?;
    let mut path = nspawn::joined(&[&directory]);
    path.push("/");
    path.push(spec);
    Ok(path)
}

fn privileges(matches: &ArgMatches) -> Result<Vec<OsString>> {
    let mut options = Vec::new();
    for (name, ..) in cli::PRIVILEGES {
        for value in values::list(matches, name) {
            let value = values::require_utf8(name, value)?;
            options.push(nspawn::assign(&format!("--{name}"), &value));
        }
    }
    if let Some(architecture) = optional::<&str>(matches, "personality") {
        options.push(format!("{PERSONALITY}{architecture}").into());
    }
    if values::is_set(matches, "no-new-privileges") {
        options.push("--no-new-privileges=yes".into());
    }
    if values::is_set(matches, "nesting") {
        options.push(NESTING.into());
    }
    Ok(options)
}

// The last entry for each limit wins.
fn rlimits(entries: Vec<OsString>) -> Result<Vec<OsString>> {
    let mut limits = BTreeMap::from([("CORE".to_owned(), NO_CORES.into())]);
    for entry in entries {
        let entry = values::require_utf8("rlimit", entry)?;
        let Some(limit) = entry.to_str().and_then(limit_name) else {
            bail!(
                "can't use --rlimit={entry:?}: it needs LIMIT=SOFT[:HARD], such as NOFILE=1024:4096"
            )
        };
        limits.insert(limit.to_owned(), nspawn::assign("--rlimit", &entry));
    }
    Ok(limits.into_values().collect())
}

fn limit_name(entry: &str) -> Option<&str> {
    let (name, value) = entry.split_once('=')?;
    let is_valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase());
    (is_valid && !value.is_empty()).then_some(name)
}

// systemd in a container reads its own arguments like the kernel's command line
// (kernel-command-line(7)).
fn boot_arguments(matches: &ArgMatches, init: Init) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for unit in values::list(matches, "mask") {
        let unit = check_unit("mask", unit, init)?;
        arguments.push(format!("systemd.mask={unit}"));
    }
    if let Some(unit) = optional::<String>(matches, "boot-target") {
        let unit = check_unit("boot-target", unit.into(), init)?;
        arguments.push(format!("systemd.unit={unit}"));
    }
    Ok(arguments)
}

fn check_unit(option: &str, unit: OsString, init: Init) -> Result<String> {
    if init != Init::Systemd {
        bail!("can't use --{option}={unit:?} with --init={init}: it needs systemd in the machine")
    }
    match unit.to_str() {
        Some(name) if is_unit_name(name) => Ok(name.to_owned()),
        _ => bail!(
            "can't use --{option}={unit:?}: it needs the name of a unit, such as cron.service"
        ),
    }
}

// systemd.unit(5)
fn is_unit_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let has_prefix = name
        .split_once('.')
        .is_some_and(|(prefix, _)| !prefix.is_empty());
    name.len() < 256 && name.bytes().all(is_allowed) && has_prefix
}

fn parse_destination(word: OsString) -> Result<Destination> {
    Destination::parse(&word.to_string_lossy()).context("--allow-host")
}

fn parse_family(word: OsString) -> Result<AddressFamily> {
    AddressFamily::parse(&word.to_string_lossy()).context("--allow-address-family")
}

fn check_property(property: OsString) -> Result<OsString> {
    if property.as_bytes().starts_with(b"Slice=") {
        bail!(
            "can't use --property={property:?}: all machines are in machine-ci.slice; set their common limits on that slice"
        );
    }
    if !property.as_bytes().contains(&b'=') {
        bail!("can't use --property={property:?}: it needs NAME=VALUE");
    }
    values::require_utf8("property", property)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> MachineOptions {
        let words = ["nspawn-prepare"].iter().chain(words);
        let matches = cli::command().get_matches_from(words);
        MachineOptions::from_matches(&matches).unwrap()
    }

    #[test]
    fn relative_binds_become_absolute() {
        let here = env::current_dir().unwrap();
        let options = parsed(&["x", "--bind", "a:/b", "--bind-ro=/c"]);
        assert_eq!(
            options.binds,
            [
                Bind::Writable(here.join("a:/b").into()),
                Bind::ReadOnly("/c".into())
            ]
        );
    }

    #[test]
    fn units_become_arguments_of_systemd() {
        let options = parsed(&[
            "x",
            "--mask=a@b.service",
            "--mask",
            "c.timer",
            "--boot-target=rescue.target",
        ]);
        assert_eq!(
            options.boot_arguments,
            [
                "systemd.mask=a@b.service",
                "systemd.mask=c.timer",
                "systemd.unit=rescue.target"
            ]
        );
    }

    #[test]
    fn last_rlimit_of_a_name_wins() {
        assert_eq!(parsed(&["x"]).rlimits, [NO_CORES]);
        let limits = parsed(&[
            "x",
            "--rlimit=NOFILE=5",
            "--rlimit=CORE=0:infinity",
            "--rlimit=NOFILE=6:7",
        ])
        .rlimits;
        assert_eq!(limits, ["--rlimit=CORE=0:infinity", "--rlimit=NOFILE=6:7"]);
    }
}
