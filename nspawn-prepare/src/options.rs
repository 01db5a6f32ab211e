//! What can be asked for.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::EnumValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nspawn_common::cli::sources;
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

use crate::gitlab::cache;
use crate::layer;
use crate::layer::LayerSize;
use crate::network::destination::Destination;

/// The options, taken apart.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: bool,
    /// How many machines of each image are to stand by.
    pub standby: Option<usize>,
    pub name: Option<OsString>,
    /// The images that are named as arguments.
    pub images: Vec<String>,
    /// The image by `--image` or as the argument: it wins over the job's.
    pub image: Option<String>,
    pub default_image: Option<String>,
    pub binds: Vec<Bind>,
    /// The program for artifacts and caches, or `no`.
    pub gitlab_runner: Option<OsString>,
    pub environment: Vec<OsString>,
    pub properties: Vec<OsString>,
    /// What jobs get that ask for an image whose name matches: a pattern, and an image.
    pub image_map: Vec<(OsString, String)>,
    /// What a job's image may be called; any name if there are none.
    pub allowed_images: Vec<OsString>,
    /// The same for the images of its services.
    pub allowed_services: Vec<OsString>,
    /// How long a service may take until it is ready.
    pub service_timeout: Duration,
    /// What a service of this image is run by, runs, and listens on, where the job does not say.
    pub service_entrypoint: Vec<OsString>,
    pub service_command: Vec<OsString>,
    pub service_user: Option<String>,
    pub service_directory: Option<OsString>,
    pub service_port: Option<u16>,
    /// How many services a job may have.
    pub max_services: u8,
    /// How large the cache of a project may become, in bytes; `None` for no caches.
    pub cache_size: Option<u64>,
    pub private_users: PrivateUsers,
    /// Options of systemd-nspawn, as they are.
    pub privileges: Vec<OsString>,
    /// Options for the limits of its processes, of which each limit has one.
    pub rlimits: Vec<OsString>,
    /// Whether the machine runs containers of its own.
    pub nesting: bool,
    pub network: Network,
    /// What of the host the machine may connect to.
    pub allowed_destinations: Vec<Destination>,
    pub init: Init,
    /// More words for the machine's systemd.
    pub boot_words: Vec<String>,
    /// The process that the machine is for.
    pub owner: Option<ProcessId>,
    pub layer: Layer,
    pub layer_size: LayerSize,
    pub timeout: Duration,
    pub max_machines: Option<u32>,
    pub keep: Retention,
    pub keep_for: Duration,
    pub dry_run: bool,
    pub json: bool,
    pub verbose: bool,
}

impl Options {
    /// How long a service may take in all: until it is there, as any machine, and until it is ready.
    pub fn service_limit(&self) -> Duration {
        self.timeout.saturating_mul(2) + self.service_timeout + SERVICE_MARGIN
    }
}

/// How much longer a service may take than its parts: it waits for other services, and is removed if it fails.
const SERVICE_MARGIN: Duration = Duration::from_secs(120);

/// Lists that go to systemd-nspawn under the same names.
const PRIVILEGES: [(&str, &str, &str); 3] = [
    (
        "capability",
        "CAP,…",
        "Capabilities that the machine has beside the usual ones; as in systemd-nspawn(1)",
    ),
    ("drop-capability", "CAP,…", "Capabilities that it has not"),
    (
        "system-call-filter",
        "LIST|~LIST",
        "System calls that it may use, or ~ may not, beside the usual ones",
    ),
];

/// What containers in a machine need beside the usual (the kernel's keyrings and BPF know of user namespaces).
const NESTING: [&str; 1] = ["--system-call-filter=add_key keyctl bpf"];

/// The command line's definition.
pub fn command() -> Command {
    let value =
        |name: &'static str, shape: &'static str| Arg::new(name).long(name).value_name(shape);
    let bytes = |name: &'static str, shape: &'static str| {
        value(name, shape).value_parser(value_parser!(OsString))
    };
    let list =
        |name: &'static str, shape: &'static str| bytes(name, shape).action(ArgAction::Append);
    Command::new(super::PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Makes a fresh machine from an image, and prints its name when it takes commands")
        .after_help(
            "Options are read from /etc/nspawn-ci/prepare.args and /etc/nspawn-ci/images/IMAGE.args, \
             then from the environment, then from the command line; the last wins, lists add up.\n\n\
             Example:\n  m=$(nspawn-prepare bookworm) && nspawn-run \"$m\" make test; nspawn-cleanup \"$m\"",
        )
        .arg(
            Arg::new("IMAGE").num_args(0..).help(
                "The image: a name that machinectl list-images shows, or a docker-style one; several for --standby",
            ),
        )
        .arg(
            bytes("name", "NAME")
                .visible_alias("machine")
                .short('M')
                .help("The machine's name; a machine of ours that has it is replaced"),
        )
        .arg(value("image", "IMAGE").help("The image, whatever a GitLab job asks for"))
        .arg(value("default-image", "IMAGE").help("The image where nothing else names one"))
        .arg(
            list("allow-image", "GLOB")
                .help("Let GitLab jobs have only images whose names match one of these, such as debian-*"),
        )
        .arg(
            list("map-image", "GLOB=IMAGE")
                .help("Give GitLab jobs this image that ask for one whose name matches, such as 'ruby:3.*=ruby'"),
        )
        .arg(list("allow-service", "GLOB").help("Let their services have only images whose names match one of these"))
        .arg(
            value("service-timeout", "TIME")
                .default_value("30s")
                .value_parser(sources::duration)
                .help("How long a GitLab job waits for a service to listen; then it goes on all the same"),
        )
        .arg(
            value("service-command", "COMMAND")
                .help("What a service of the image runs, in shell quoting, where the job names nothing"),
        )
        .arg(value("service-entrypoint", "COMMAND").help("What that command, or the job's, is run by"))
        .arg(value("service-user", "USER").help("Whom it runs as, where the job names nobody; root by default"))
        .arg(bytes("service-working-directory", "DIR").help("Where it runs; the user's home by default"))
        .arg(
            value("max-services", "N")
                .default_value("16")
                .value_parser(value_parser!(u8).range(..=253))
                .help("How many services a GitLab job may have"),
        )
        .arg(
            value("service-port", "PORT")
                .value_parser(value_parser!(u16).range(1..))
                .help("The TCP port that a service of the image is ready on [default: any]"),
        )
        .arg(
            value("cache-size", "SIZE|no")
                .default_value("10G")
                .value_parser(|text: &str| cache::parse_size(text).map_err(|error| format!("{error:#}")))
                .help("How large the cache of each GitLab project may become, or that none is kept"),
        )
        .arg(
            list("bind", "SOURCE[:DESTINATION[:OPTIONS]]")
                .help("Show a file or directory of the host in the machine; as in systemd-nspawn(1)"),
        )
        .arg(list("bind-ro", "SOURCE[:DESTINATION[:OPTIONS]]").help("The same, read-only"))
        .arg(bytes("gitlab-runner", "PATH|no").help(
            "The program to show for artifacts and caches [default: in GitLab jobs the one that called, or on PATH]",
        ))
        .arg(list("setenv", "NAME[=VALUE]").short('E').help("Set a variable for every command in the machine"))
        .arg(
            list("property", "NAME=VALUE")
                .short('p')
                .help("Set a property of the machine's unit; as in systemd-run(1)"),
        )
        .arg(
            value("private-users", "pick|no|BASE")
                .default_value("pick")
                .value_parser(|text: &str| PrivateUsers::parse(text).map_err(|error| format!("{error:#}")))
                .help("Whose users the machine's are: a range of their own, the host's, or the range from BASE on"),
        )
        .args(PRIVILEGES.map(|(name, shape, help)| list(name, shape).help(help)))
        .arg(list("rlimit", "LIMIT=SOFT[:HARD]").help(
            "A limit of the machine's processes, as in systemd-nspawn(1); CORE=1, the default, forbids core dumps, \
                 and CORE=0:infinity allows them",
        ))
        .arg(
            sources::flag("no-new-privileges").help("Let no process gain privileges by executing a program, as sudo does"),
        )
        .arg(sources::flag("nesting").help("Let the machine run containers of its own"))
        .arg(
            value("network", "NETWORK")
                .default_value("nat")
                .value_parser(|text: &str| Network::parse(text).map_err(|error| format!("{error:#}")))
                .help("nat, none, host, veth, bridge=NAME, zone=NAME or namespace=PATH"),
        )
        .arg(list("allow-host", "ADDRESS[/PREFIX][:PORT]").help(
            "Let the machine connect to this address of the host, or port of it; for --network=nat, which keeps the \
                 machine from all of the host's own addresses",
        ))
        .arg(
            value("init", "INIT")
                .value_parser(EnumValueParser::<Init>::new())
                .default_value("systemd")
                .help("What runs as the machine's PID 1: the image's systemd, a stub, or nothing between commands"),
        )
        .arg(list("mask", "UNIT").help("Don't let the machine start this unit; for --init=systemd"))
        .arg(value("boot-target", "UNIT").help("Boot it to this unit instead of the image's default"))
        .arg(
            value("layer", "LAYER")
                .default_value("disk")
                .help("Where its writes go: disk, tmpfs[:SIZE], snapshot (btrfs, xfs), or none: it is read-only"),
        )
        .arg(
            value("layer-size", "SIZE")
                .value_parser(|text: &str| LayerSize::parse(text).map_err(|error| format!("{error:#}")))
                .help(
                    "How much it may write: 10G, infinity, or a part of the free disk or of the memory [default: 50%]",
                ),
        )
        .arg(
            value("timeout", "TIME")
                .default_value("90s")
                .value_parser(sources::duration)
                .help("How long the boot may take, and waiting for --max-machines: 90, 90s, 5min"),
        )
        .arg(
            value("max-machines", "N")
                .value_parser(value_parser!(u32).range(1..))
                .help("Wait until there are fewer machines than this on the host, for as long as --timeout"),
        )
        .arg(
            value("standby", "N")
                .value_parser(value_parser!(u16))
                .help_heading(sources::COMMAND_LINE_ONLY)
                .help("Keep N machines of each IMAGE started, for those who will ask for one with the same options"),
        )
        .arg(
            value("keep", "WHEN")
                .value_parser(EnumValueParser::<Retention>::new())
                .default_value(Retention::Never.keyword())
                .help("Keep a machine that did not boot, or a GitLab job's after its end, for a look"),
        )
        .arg(
            value("keep-for", "TIME")
                .default_value("1h")
                .value_parser(sources::duration)
                .help("For how long then; nspawn-cleanup --stale takes it after that"),
        )
        .arg(sources::flag("dry-run").help("Print the commands that would run, and run none"))
        .arg(sources::flag("json").help("Print the machine's description as JSON instead of its name"))
        .arg(sources::flag("verbose").short('v').help("Print the commands as they run, on stderr"))
        .arg(
            value("owner", "PID")
                .value_parser(|text: &str| {
                    let owner = text.parse().map_err(anyhow::Error::from).and_then(ProcessId::from_pid);
                    owner.map_err(|error| format!("{error:#}"))
                })
                .help("A process with which the machine becomes nobody's, for nspawn-cleanup --stale to remove it"),
        )
        .arg(sources::flag("config").hide(true).help("Print the configuration for GitLab Runner's config stage"))
}

/// Reads the options. `image_of` tells which image they ask for, since that image may have an
/// argument file of its own. `None`: help was asked for and printed.
pub fn parse(
    argv: &[OsString],
    image_of: impl Fn(&Options) -> Result<String>,
) -> Result<Option<(Options, String)>> {
    let common = Path::new(CONFIG_ROOT).join("prepare.args");
    let Some(matches) = sources::parse(&command(), &[&common], argv)? else {
        return Ok(None);
    };
    let options = from_matches(&matches)?;
    if options.config {
        return Ok(Some((options, String::new())));
    }
    let image = image_of(&options)?;
    let own = Path::new(CONFIG_ROOT)
        .join("images")
        .join(format!("{image}.args"));
    let matches = sources::parse(&command(), &[&common, &own], argv)?;
    matches
        .map(|matches| Ok((from_matches(&matches)?, image)))
        .transpose()
}

fn from_matches(matches: &ArgMatches) -> Result<Options> {
    let text = |id: &str| matches.get_one::<String>(id).cloned();
    let mut binds = Vec::new();
    for spec in sources::list(matches, "bind") {
        binds.push(Bind::Writable(absolute(sources::as_text("bind", spec)?)?));
    }
    for spec in sources::list(matches, "bind-ro") {
        binds.push(Bind::ReadOnly(absolute(sources::as_text(
            "bind-ro", spec,
        )?)?));
    }
    let environment = sources::list(matches, "setenv")
        .into_iter()
        .map(sources::with_value)
        .collect::<Result<_>>()?;
    let private_users = matches
        .get_one("private-users")
        .copied()
        .context("no users")?;
    let layer = text("layer").unwrap_or_default();
    let (layer, layer_size) = layer::choose(
        &layer,
        matches.get_one("layer-size").copied(),
        private_users,
    )?;
    let init = matches.get_one("init").copied().unwrap_or_default();
    let images: Vec<String> = matches
        .get_many("IMAGE")
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    let standby = matches.get_one::<u16>("standby").copied().map(usize::from);
    if images.len() > 1 && standby.is_none() {
        bail!(
            "one image makes a machine, not {}; several are for --standby",
            images.join(" ")
        );
    }
    Ok(Options {
        config: sources::is_set(matches, "config"),
        standby,
        name: matches.get_one::<OsString>("name").cloned(),
        image: images.first().cloned().or_else(|| text("image")),
        images,
        default_image: text("default-image"),
        binds,
        gitlab_runner: matches.get_one("gitlab-runner").cloned(),
        environment,
        properties: sources::list(matches, "property")
            .into_iter()
            .map(checked_property)
            .collect::<Result<_>>()?,
        image_map: sources::list(matches, "map-image")
            .into_iter()
            .map(mapping)
            .collect::<Result<_>>()?,
        allowed_images: sources::list(matches, "allow-image"),
        allowed_services: sources::list(matches, "allow-service"),
        service_timeout: matches
            .get_one("service-timeout")
            .copied()
            .context("no time-out of services")?,
        service_entrypoint: command_words(matches, "service-entrypoint")?,
        service_command: command_words(matches, "service-command")?,
        service_user: text("service-user"),
        service_directory: matches.get_one("service-working-directory").cloned(),
        service_port: matches.get_one("service-port").copied(),
        max_services: matches
            .get_one("max-services")
            .copied()
            .context("no number of services")?,
        cache_size: matches.get_one("cache-size").copied().flatten(),
        private_users,
        privileges: privileges(matches)?,
        rlimits: rlimits(sources::list(matches, "rlimit"))?,
        nesting: sources::is_set(matches, "nesting"),
        network: matches.get_one("network").cloned().context("no network")?,
        allowed_destinations: sources::list(matches, "allow-host")
            .into_iter()
            .map(destination)
            .collect::<Result<_>>()?,
        init,
        boot_words: boot_words(matches, init)?,
        owner: matches.get_one("owner").copied(),
        layer,
        layer_size,
        timeout: matches.get_one("timeout").copied().context("no time-out")?,
        max_machines: matches.get_one("max-machines").copied(),
        keep: matches.get_one("keep").copied().unwrap_or_default(),
        keep_for: matches
            .get_one("keep-for")
            .copied()
            .context("no time to keep")?,
        dry_run: sources::is_set(matches, "dry-run"),
        json: sources::is_set(matches, "json"),
        verbose: sources::is_set(matches, "verbose"),
    })
}

fn privileges(matches: &ArgMatches) -> Result<Vec<OsString>> {
    let mut options = Vec::new();
    for (name, ..) in PRIVILEGES {
        for value in sources::list(matches, name) {
            options.push(nspawn::assign(
                &format!("--{name}"),
                &sources::as_text(name, value)?,
            ));
        }
    }
    if sources::is_set(matches, "no-new-privileges") {
        options.push("--no-new-privileges=yes".into());
    }
    if sources::is_set(matches, "nesting") {
        options.extend(NESTING.map(OsString::from));
    }
    Ok(options)
}

// The last one of each limit wins.
fn rlimits(given: Vec<OsString>) -> Result<Vec<OsString>> {
    let mut limits = BTreeMap::from([("CORE".to_owned(), NO_CORES.into())]);
    for entry in given {
        let entry = sources::as_text("rlimit", entry)?;
        let limit =
            entry
                .to_str()
                .and_then(|text| text.split_once('='))
                .filter(|(limit, value)| {
                    !value.is_empty()
                        && !limit.is_empty()
                        && limit.bytes().all(|byte| byte.is_ascii_uppercase())
                });
        let Some((limit, _)) = limit else {
            bail!(
                "can't use --rlimit={entry:?}: it needs LIMIT=SOFT[:HARD], such as NOFILE=1024:4096"
            )
        };
        limits.insert(limit.to_owned(), nspawn::assign("--rlimit", &entry));
    }
    Ok(limits.into_values().collect())
}

// As systemd takes them from a kernel's command line, and a container's from its own (kernel-command-line(7)).
fn boot_words(matches: &ArgMatches, init: Init) -> Result<Vec<String>> {
    let units = sources::list(matches, "mask")
        .into_iter()
        .map(|unit| ("mask", unit));
    let target = matches
        .get_one::<String>("boot-target")
        .map(|unit| ("boot-target", unit.into()));
    let word = |(option, unit): (&str, OsString)| match unit.to_str() {
        _ if init != Init::Systemd => {
            bail!("--{option}={unit:?} needs a systemd to tell, but --init={init} has none")
        }
        Some(unit) if is_unit(unit) => Ok(format!(
            "systemd.{}={unit}",
            if option == "mask" { "mask" } else { "unit" }
        )),
        _ => bail!("--{option}={unit:?} is no unit's name, such as cron.service"),
    };
    units.chain(target).map(word).collect()
}

fn command_words(matches: &ArgMatches, option: &str) -> Result<Vec<OsString>> {
    let Some(text) = matches.get_one::<String>(option) else {
        return Ok(Vec::new());
    };
    shell::split(text.as_ref()).with_context(|| format!("--{option}={text}"))
}

// systemd.unit(5)
fn is_unit(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() < 256
        && name.bytes().all(is_allowed)
        && name
            .split_once('.')
            .is_some_and(|(name, _)| !name.is_empty())
}

// systemd-nspawn is started in another working directory than ours.
fn absolute(spec: OsString) -> Result<OsString> {
    if matches!(spec.as_bytes().first(), Some(b'/' | b'+' | b':')) {
        return Ok(spec);
    }
    let here = env::current_dir().context("can't tell the current directory")?;
    Ok([nspawn::joined(&[&here]), "/".into(), spec]
        .into_iter()
        .collect())
}

fn destination(word: OsString) -> Result<Destination> {
    Destination::parse(&word.to_string_lossy()).context("--allow-host")
}

// The pattern may have a '=' in it, an image's name has none.
fn mapping(entry: OsString) -> Result<(OsString, String)> {
    match entry.to_str().and_then(|text| text.rsplit_once('=')) {
        Some((glob, image)) if !glob.is_empty() && !image.is_empty() => {
            Ok((glob.into(), image.to_owned()))
        }
        _ => bail!("--map-image={entry:?} is no GLOB=IMAGE"),
    }
}

fn checked_property(property: OsString) -> Result<OsString> {
    if property.as_bytes().starts_with(b"Slice=") {
        bail!(
            "--property={property:?}: all machines are in machine-ci.slice; set limits of all together there"
        );
    }
    if property.as_bytes().contains(&b'=') {
        return sources::as_text("property", property);
    }
    bail!("--property={property:?} has no value: NAME=VALUE")
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
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn the_argument_and_the_option_name_the_image() {
        assert_eq!(parsed(&["bookworm"]).unwrap().image.unwrap(), "bookworm");
        assert_eq!(
            parsed(&["--image=trixie"]).unwrap().image.unwrap(),
            "trixie"
        );
        assert_eq!(parsed(&[]).unwrap().timeout, Duration::from_secs(90));
    }

    #[test]
    fn relative_binds_are_made_absolute() {
        let here = env::current_dir().unwrap();
        let options = parsed(&["x", "--bind", "a:/b", "--bind-ro=/c"]).unwrap();
        assert_eq!(
            options.binds,
            [
                Bind::Writable(here.join("a:/b").into()),
                Bind::ReadOnly("/c".into())
            ]
        );
    }

    #[test]
    fn units_become_words_for_systemd() {
        let words = parsed(&[
            "x",
            "--mask=a@b.service",
            "--mask",
            "c.timer",
            "--boot-target=rescue.target",
        ])
        .unwrap();
        assert_eq!(
            words.boot_words,
            [
                "systemd.mask=a@b.service",
                "systemd.mask=c.timer",
                "systemd.unit=rescue.target"
            ]
        );
    }

    #[test]
    fn last_rlimit_of_a_name_wins() {
        assert_eq!(parsed(&["x"]).unwrap().rlimits, [NO_CORES]);
        let limits = parsed(&[
            "x",
            "--rlimit=NOFILE=5",
            "--rlimit=CORE=0:infinity",
            "--rlimit=NOFILE=6:7",
        ])
        .unwrap()
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
