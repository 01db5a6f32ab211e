//! Parsed options, in groups.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use nspawn_common::cli::{sources, values};
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::config::retention::Retention;
use nspawn_common::machine::paths::CONFIG_ROOT;
use nspawn_common::shell;
use nspawn_common::sys::process::ProcessId;
use nspawn_common::systemd::nspawn;
use nspawn_common::systemd::nspawn::{Bind, NO_CORES};

use crate::cli;
use crate::layer;
use crate::layer::size::LayerSize;
use crate::network::destination::Destination;

/// Time by which a service may exceed its own time limits: it waits for other services, and is removed if it fails.
const SERVICE_MARGIN: Duration = Duration::from_secs(120);

/// System calls that containers in a machine need (the kernel's keyrings and BPF are aware of user namespaces).
const NESTING: &str = "--system-call-filter=add_key keyctl bpf";

/// All options of a call.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to print the configuration for GitLab Runner's config stage.
    pub config: bool,
    /// Number of standby machines of each image.
    pub standby: Option<usize>,
    /// Name of the machine.
    pub name: Option<OsString>,
    /// Images that are named as arguments.
    pub images: Vec<String>,
    /// Image by `--image` or as the argument, which takes precedence over the job's.
    pub image: Option<String>,
    pub default_image: Option<String>,
    pub machine: MachineOptions,
    pub policy: JobPolicy,
    pub service_defaults: ServiceDefaults,
    pub output: OutputOptions,
}

/// Options that describe a machine.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    pub binds: Vec<Bind>,
    /// Variables of every command in the machine, as `NAME=VALUE`.
    pub environment: Vec<OsString>,
    /// Properties of the machine's unit.
    pub properties: Vec<OsString>,
    pub private_users: PrivateUsers,
    /// Options of systemd-nspawn for capabilities and system calls.
    pub privileges: Vec<OsString>,
    /// Options of systemd-nspawn for resource limits of processes, one for each limit.
    pub rlimits: Vec<OsString>,
    /// Whether the machine runs containers of its own.
    pub nesting: bool,
    pub network: Network,
    /// Destinations on the host that the machine may connect to.
    pub allowed_destinations: Vec<Destination>,
    pub init: Init,
    /// Additional arguments for the machine's systemd.
    pub boot_arguments: Vec<String>,
    /// Process with whose end the machine becomes stale.
    pub owner: Option<ProcessId>,
    pub layer: Layer,
    pub layer_size: LayerSize,
    pub timeout: Duration,
    pub max_machines: Option<u32>,
    pub keep: Retention,
    pub keep_for: Duration,
}

/// Policy of the administrator for GitLab jobs.
#[derive(Clone, Debug)]
pub struct JobPolicy {
    /// Patterns for names of images of jobs, with the image to use instead.
    pub image_map: Vec<(OsString, String)>,
    /// Patterns for names of allowed images; if there are none, all images are allowed.
    pub allowed_images: Vec<OsString>,
    /// Patterns for names of allowed images of services; if there are none, all are allowed.
    pub allowed_services: Vec<OsString>,
    /// Time limit for a service to become ready.
    pub service_timeout: Duration,
    /// Maximum number of services of a job.
    pub max_services: u8,
    /// Maximum size of a project's cache, in bytes; `None` for no caches.
    pub cache_size: Option<u64>,
    /// Path of the program for artifacts and caches, or `no`.
    pub gitlab_runner: Option<OsString>,
}

/// Defaults for services of the image, for what a job does not specify.
#[derive(Clone, Debug)]
pub struct ServiceDefaults {
    pub entrypoint: Vec<OsString>,
    pub command: Vec<OsString>,
    pub user: Option<String>,
    pub directory: Option<OsString>,
    /// TCP port on which a service is ready.
    pub port: Option<u16>,
}

/// Options for what is printed.
#[derive(Clone, Debug)]
pub struct OutputOptions {
    pub dry_run: bool,
    pub json: bool,
    pub verbose: bool,
}

impl Options {
    /// Returns the time limit for a service to be created, as any machine, and to become ready.
    pub fn service_limit(&self) -> Duration {
        self.machine.timeout.saturating_mul(2) + self.policy.service_timeout + SERVICE_MARGIN
    }
}

/// Parses the options, and returns them with the name of their image.
///
/// The image may have an argument file of its own, so `image_of` finds the name from the other options. Returns `None`
/// if help was asked for and printed.
pub fn parse(
    arguments: &[OsString],
    image_of: impl Fn(&Options) -> Result<String>,
) -> Result<Option<(Options, String)>> {
    let common_file = Path::new(CONFIG_ROOT).join("prepare.args");
    let Some(matches) = sources::parse(&cli::command(), &[&common_file], arguments)? else {
        return Ok(None);
    };
    let options = Options::from_matches(&matches)?;
    if options.config {
        return Ok(Some((options, String::new())));
    }
    let image = image_of(&options)?;
    let directory = Path::new(CONFIG_ROOT).join("images");
    let image_file = directory.join(format!("{image}.args"));
    let files = [&*common_file, &*image_file];
    let Some(matches) = sources::parse(&cli::command(), &files, arguments)? else {
        return Ok(None);
    };
    Ok(Some((Options::from_matches(&matches)?, image)))
}

impl Options {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        let images: Vec<String> = matches
            .get_many("IMAGE")
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let standby: Option<u16> = optional(matches, "standby");
        if images.len() > 1 && standby.is_none() {
            bail!(
                "can't make one machine of several images: {}; only --standby takes several",
                images.join(" ")
            );
        }
        Ok(Self {
            config: values::is_set(matches, "config"),
            standby: standby.map(usize::from),
            name: optional(matches, "name"),
            image: images.first().cloned().or(optional(matches, "image")),
            images,
            default_image: optional(matches, "default-image"),
            machine: MachineOptions::from_matches(matches)?,
            policy: JobPolicy::from_matches(matches)?,
            service_defaults: ServiceDefaults::from_matches(matches)?,
            output: OutputOptions::from_matches(matches),
        })
    }
}

impl MachineOptions {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        let private_users = required(matches, "private-users")?;
        let layer: String = required(matches, "layer")?;
        let (layer, layer_size) =
            layer::parse(&layer, optional(matches, "layer-size"), private_users)?;
        let init = required(matches, "init")?;
        Ok(Self {
            binds: binds(matches)?,
            environment: parsed_list(matches, "setenv", values::complete_variable)?,
            properties: parsed_list(matches, "property", check_property)?,
            private_users,
            privileges: privileges(matches)?,
            rlimits: rlimits(values::list(matches, "rlimit"))?,
            nesting: values::is_set(matches, "nesting"),
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

impl JobPolicy {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        Ok(Self {
            image_map: parsed_list(matches, "map-image", parse_mapping)?,
            allowed_images: values::list(matches, "allow-image"),
            allowed_services: values::list(matches, "allow-service"),
            service_timeout: required(matches, "service-timeout")?,
            max_services: required(matches, "max-services")?,
            cache_size: required(matches, "cache-size")?,
            gitlab_runner: optional(matches, "gitlab-runner"),
        })
    }
}

impl ServiceDefaults {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        Ok(Self {
            entrypoint: shell_words(matches, "service-entrypoint")?,
            command: shell_words(matches, "service-command")?,
            user: optional(matches, "service-user"),
            directory: optional(matches, "service-working-directory"),
            port: optional(matches, "service-port"),
        })
    }
}

impl OutputOptions {
    fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            dry_run: values::is_set(matches, "dry-run"),
            json: values::is_set(matches, "json"),
            verbose: values::is_set(matches, "verbose"),
        }
    }
}

fn optional<T>(matches: &ArgMatches, id: &str) -> Option<T>
where
    T: Clone + Send + Sync + 'static,
{
    matches.get_one(id).cloned()
}

fn required<T>(matches: &ArgMatches, id: &str) -> Result<T>
where
    T: Clone + Send + Sync + 'static,
{
    optional(matches, id).with_context(|| format!("--{id} has no value"))
}

fn parsed_list<T>(
    matches: &ArgMatches,
    id: &str,
    parse: fn(OsString) -> Result<T>,
) -> Result<Vec<T>> {
    values::list(matches, id).into_iter().map(parse).collect()
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

// systemd in a container reads its own arguments like the kernel's command line (kernel-command-line(7)).
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
        bail!("--{option}={unit:?} needs systemd in the machine, but --init={init} starts none")
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

fn shell_words(matches: &ArgMatches, option: &str) -> Result<Vec<OsString>> {
    let Some(text) = optional::<String>(matches, option) else {
        return Ok(Vec::new());
    };
    shell::split(text.as_ref()).with_context(|| format!("--{option}={text}"))
}

fn parse_destination(word: OsString) -> Result<Destination> {
    Destination::parse(&word.to_string_lossy()).context("--allow-host")
}

// A pattern may contain a '=', but the name of an image does not.
fn parse_mapping(entry: OsString) -> Result<(OsString, String)> {
    match entry.to_str().and_then(|text| text.rsplit_once('=')) {
        Some((glob, image)) if !glob.is_empty() && !image.is_empty() => {
            Ok((glob.into(), image.to_owned()))
        }
        _ => bail!("can't use --map-image={entry:?}: it needs GLOB=IMAGE"),
    }
}

fn check_property(property: OsString) -> Result<OsString> {
    if property.as_bytes().starts_with(b"Slice=") {
        bail!(
            "--property={property:?}: all machines are in machine-ci.slice; set limits of all together there"
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

    fn parsed(words: &[&str]) -> Result<Options> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words, |options| {
            Ok(options.image.clone().unwrap_or_default())
        })
        .map(|both| both.unwrap().0)
    }

    #[test]
    fn argument_and_option_name_the_image() {
        assert_eq!(parsed(&["bookworm"]).unwrap().image.unwrap(), "bookworm");
        assert_eq!(
            parsed(&["--image=trixie"]).unwrap().image.unwrap(),
            "trixie"
        );
        assert_eq!(
            parsed(&[]).unwrap().machine.timeout,
            Duration::from_secs(90)
        );
    }

    #[test]
    fn relative_binds_become_absolute() {
        let here = env::current_dir().unwrap();
        let options = parsed(&["x", "--bind", "a:/b", "--bind-ro=/c"]).unwrap();
        assert_eq!(
            options.machine.binds,
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
        ])
        .unwrap();
        assert_eq!(
            options.machine.boot_arguments,
            [
                "systemd.mask=a@b.service",
                "systemd.mask=c.timer",
                "systemd.unit=rescue.target"
            ]
        );
    }

    #[test]
    fn last_rlimit_of_a_name_wins() {
        assert_eq!(parsed(&["x"]).unwrap().machine.rlimits, [NO_CORES]);
        let limits = parsed(&[
            "x",
            "--rlimit=NOFILE=5",
            "--rlimit=CORE=0:infinity",
            "--rlimit=NOFILE=6:7",
        ])
        .unwrap()
        .machine
        .rlimits;
        assert_eq!(limits, ["--rlimit=CORE=0:infinity", "--rlimit=NOFILE=6:7"]);
    }

    #[test]
    fn bad_values_are_errors() {
        for words in [
            &["x", "--mask=a b.service"][..],
            &["x", "--mask=cron"],
            &["x", "--boot-target="],
            &["x", "--mask=a.service", "--init=stub"],
            &["x", "--timeout=0"],
            &["x", "-p", "MemoryMax"],
            &["x", "-E", "=1"],
            &["x", "--rlimit=core"],
            &["x", "--rlimit=RLIMIT_CORE=0"],
            &["x", "--rlimit=CORE="],
            &["x", "y"],
            &["--nonsense"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
