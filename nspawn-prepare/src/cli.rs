//! Definition of the command line, in groups of options.

use std::ffi::OsString;

use anyhow::{Error, Result};
use clap::builder::{EnumValueParser, ValueParser};
use clap::{Arg, ArgAction, Command, value_parser};
use nspawn_common::cli::{sources, values};
use nspawn_common::config::init::Init;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::config::retention::Retention;
use nspawn_common::image::architecture;
use nspawn_common::sys::process::ProcessId;

use crate::diagnostics::PROGRAM;
use crate::layer::size::{self, LayerSize};

/// Options of systemd-nspawn whose values are passed on: name, form of the value, help.
pub const PRIVILEGES: [(&str, &str, &str); 3] = [
    (
        "capability",
        "CAP,…",
        "Grant the machine these capabilities besides the default ones; as in systemd-nspawn(1)",
    ),
    (
        "drop-capability",
        "CAP,…",
        "Take these capabilities from the machine",
    ),
    (
        "system-call-filter",
        "LIST|~LIST",
        "Allow these system calls besides the default ones, or forbid those after ~; io_uring_setup opens io_uring, and \
         socketcall opens sockets to 32-bit programs that jobs install on x86-64",
    ),
];

const EPILOG: &str = "Options are read from /etc/nspawn-ci/prepare.args and /etc/nspawn-ci/images/IMAGE.args, \
    then from the environment, then from the command line. The last value wins; options that may be repeated add up.\n\n\
    Example:\n  m=$(nspawn-prepare bookworm) && nspawn-run \"$m\" make test; nspawn-cleanup \"$m\"";

/// Returns the definition of the command line.
pub fn command() -> Command {
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Creates a machine from an image, and prints its name when it accepts commands")
        .after_help(EPILOG)
        .args(image())
        .args(image_policy())
        .args(services())
        .args(files())
        .args(privileges())
        .args(network())
        .args(boot())
        .args(layer())
        .args(time_limits())
        .args(retention())
        .args(output())
        .args(command_line_only())
}

fn image() -> [Arg; 5] {
    [
        Arg::new("IMAGE").num_args(0..).help(
            "Name of the image, as machinectl list-images prints it or docker-style; --standby accepts several",
        ),
        bytes("name", "NAME")
            .visible_alias("machine")
            .short('M')
            .help("Name of the machine, which no machine in use may have"),
        values::flag("replace").help("Replace a machine of the same name even if it is in use"),
        text("image", "IMAGE").help("Name of the image, which overrides the one that a GitLab job requests"),
        text("default-image", "IMAGE").help("Name of the image if neither the command line nor the job names one"),
    ]
}

fn image_policy() -> [Arg; 3] {
    [
        list("allow-image", "GLOB").help(
            "Allow GitLab jobs only images whose names match one of these patterns, such as debian-*",
        ),
        list("map-image", "GLOB=IMAGE").help(
            "Use this image for GitLab jobs whose image name matches the pattern, such as 'ruby:3.*=ruby'",
        ),
        list("allow-service", "GLOB").help(
            "Allow services of GitLab jobs only images whose names match one of these patterns",
        ),
    ]
}

fn services() -> [Arg; 8] {
    [
        duration("service-timeout", "30s").help(
            "Time for which a GitLab job waits until a service listens; after that, the job starts anyway",
        ),
        text("service-command", "COMMAND").help(
            "Command, in shell quoting, that a machine of the image runs as a service, if the job names none",
        ),
        text("service-entrypoint", "COMMAND")
            .help("Entrypoint of a service, which gets the command as arguments, if the job names none"),
        text("service-user", "USER")
            .help("User that the command of a service runs as, if the job names none; root by default"),
        bytes("service-working-directory", "DIR")
            .help("Directory that the command of a service runs in; the user's home by default"),
        text("max-services", "N")
            .default_value("16")
            .value_parser(value_parser!(u8).range(..=253))
            .help("Maximum number of services of a GitLab job"),
        text("service-port", "PORT")
            .value_parser(value_parser!(u16).range(1..))
            .help("TCP port on which a service of the image listens when it is ready [default: any]"),
        text("cache-size", "SIZE|no")
            .default_value("10G")
            .value_parser(parsed(parse_cache_size))
            .help("Maximum size of the cache of each GitLab project; no disables caches"),
    ]
}

fn files() -> [Arg; 5] {
    [
        list("bind", "SOURCE[:DESTINATION[:OPTIONS]]").help(
            "Bind mount a file or directory of the host into the machine; as in systemd-nspawn(1), and the option nosymlinks refuses a SOURCE that leads through a symbolic link",
        ),
        list("bind-ro", "SOURCE[:DESTINATION[:OPTIONS]]").help("Same as --bind, but read-only"),
        bytes("gitlab-runner", "PATH|no").help(
            "GitLab Runner program for artifacts and caches in the machine; jobs get the calling one by default, or the one on PATH",
        ),
        list("setenv", "NAME[=VALUE]")
            .short('E')
            .help("Set a variable for every command in the machine"),
        list("property", "NAME=VALUE")
            .short('p')
            .help("Set a property of the machine's unit; as in systemd-run(1)"),
    ]
}

fn privileges() -> Vec<Arg> {
    let users = text("private-users", "pick|no|BASE[:SIZE]")
        .default_value("pick")
        .value_parser(parsed(PrivateUsers::parse))
        .help(
            "UID range of the machine: an unused one, the host's own UIDs, or the SIZE (65536) IDs from BASE on",
        );
    let rlimit = list("rlimit", "LIMIT=SOFT[:HARD]").help(
        "Resource limit of the machine's processes, as in systemd-nspawn(1); CORE=1, the default, forbids core dumps, \
         and CORE=0:infinity allows them",
    );
    let mut args = vec![users];
    args.extend(PRIVILEGES.map(|(name, form, help)| list(name, form).help(help)));
    args.extend([
        text("personality", "ARCHITECTURE")
            .value_parser(parsed(architecture::parse_personality))
            .help(
                "Architecture that uname -m prints in the machine: x86-64 or x86, arm64 or arm [default: that of the image]",
            ),
        list("allow-address-family", "FAMILY").help(
            "Let the machine create sockets of this family, such as AF_ALG, besides those of AF_UNIX, AF_INET, AF_INET6, \
             AF_NETLINK and AF_PACKET",
        ),
        list("device", "DEVICE").help(
            "Give the machine a device of the host: fuse, kvm, tun, dri, kfd, nvidia, or the path of a character device",
        ),
        rlimit,
        values::flag("no-new-privileges")
            .help("Let no process gain privileges by executing a program, as sudo does"),
        values::flag("nesting").help("Let the machine run containers of its own"),
    ]);
    args
}

fn network() -> [Arg; 2] {
    [
        text("network", "NETWORK")
            .default_value("nat")
            .value_parser(parsed(Network::parse))
            .help("nat, none, host, veth, bridge=NAME, zone=NAME or namespace=PATH"),
        list("allow-host", "ADDRESS[/PREFIX][:PORT]").help(
            "Let the machine connect to this address of the host, or only to this port of it; with --network=nat, the host \
             is closed otherwise",
        ),
    ]
}

fn boot() -> [Arg; 3] {
    [
        text("init", "INIT")
            .value_parser(EnumValueParser::<Init>::new())
            .default_value("systemd")
            .help(
                "PID 1 of the machine: the image's systemd, a stub, or no process between commands",
            ),
        list("mask", "UNIT")
            .help("Prevent the machine from starting this unit; for --init=systemd"),
        text("boot-target", "UNIT").help("Boot to this unit instead of the image's default target"),
    ]
}

fn layer() -> [Arg; 2] {
    [
        text("layer", "LAYER").default_value("disk").help(
            "Place for the machine's writes: disk, tmpfs[:SIZE], snapshot (btrfs, xfs), or none for a read-only root",
        ),
        text("layer-size", "SIZE")
            .value_parser(parsed(LayerSize::parse))
            .help(
                "Maximum size of the layer: 10G, infinity, or a percentage of the free disk space or of the memory \
                 [default: 50%]",
            ),
    ]
}

fn time_limits() -> [Arg; 2] {
    [
        duration("timeout", "90s")
            .help("Time limit for the boot, and for the wait of --max-machines: 90, 90s, 5min"),
        text("max-machines", "N")
            .value_parser(value_parser!(u32).range(1..))
            .help("Wait until the host has fewer machines than this, for --timeout at most"),
    ]
}

fn retention() -> [Arg; 2] {
    [
        text("keep", "WHEN")
            .value_parser(EnumValueParser::<Retention>::new())
            .default_value(Retention::Never.keyword())
            .help("Keep a machine that did not boot, or a GitLab job's machine after the job, for inspection"),
        duration("keep-for", "1h")
            .help("Time for which --keep keeps a machine; nspawn-cleanup --stale removes it afterwards"),
    ]
}

fn output() -> [Arg; 4] {
    [
        values::flag("dry-run").help("Print the commands that would run, without running them"),
        values::flag("json")
            .help("Print a description of the machine as JSON instead of its name"),
        values::flag("verbose")
            .short('v')
            .help("Print the commands on stderr as they run"),
        text("owner", "PID").value_parser(parsed(parse_owner)).help(
            "Process that owns the machine; when it ends, the machine is stale, and nspawn-cleanup --stale removes it",
        ),
    ]
}

fn command_line_only() -> [Arg; 2] {
    let standby = text("standby", "N").value_parser(value_parser!(u16)).help(
        "Keep N machines of each IMAGE started, for requests with the same options; 0 removes them",
    );
    let config =
        values::flag("config").help("Print the configuration for GitLab Runner's config stage");
    [standby, config].map(|arg| arg.help_heading(sources::COMMAND_LINE_ONLY))
}

fn text(name: &'static str, form: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(form)
}

fn bytes(name: &'static str, form: &'static str) -> Arg {
    text(name, form).value_parser(value_parser!(OsString))
}

fn list(name: &'static str, form: &'static str) -> Arg {
    bytes(name, form).action(ArgAction::Append)
}

fn duration(name: &'static str, default: &'static str) -> Arg {
    text(name, "TIME")
        .default_value(default)
        .value_parser(values::duration)
}

// clap prints errors by Display without their causes.
fn parsed<T>(parse: fn(&str) -> Result<T>) -> ValueParser
where
    T: Clone + Send + Sync + 'static,
{
    ValueParser::new(move |text: &str| parse(text).map_err(|error: Error| format!("{error:#}")))
}

fn parse_owner(text: &str) -> Result<ProcessId> {
    ProcessId::from_pid(text.parse()?)
}

// Returns the size in bytes, or `None` for no caches.
fn parse_cache_size(text: &str) -> Result<Option<u64>> {
    match text {
        "no" => Ok(None),
        _ => size::parse_bytes(text).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn parses_every_kind_of_cache_size() {
        assert_eq!(parse_cache_size("no").unwrap(), None);
        assert_eq!(parse_cache_size("1G").unwrap(), Some(1 << 30));
        for bad in ["", "0", "1M", "9T", "yes", "50%"] {
            assert!(parse_cache_size(bad).is_err(), "{bad}");
        }
    }
}
