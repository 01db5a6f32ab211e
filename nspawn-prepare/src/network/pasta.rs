//! pasta, which connects a machine to the host's network.
//!
//! pasta carries the machine's connections over sockets of the host. It runs in a unit of its own,
//! which ends with the machine's unit.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nspawn_common::command;
use nspawn_common::command::argv;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::namespaces;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::fs::bind_mount;
use nspawn_common::sys::namespace;
use nspawn_common::systemd::machined;
use nspawn_common::systemd::transient_unit::TransientUnit;

use crate::internal_form::Internal;
use crate::network::destination::Destination;
use crate::network::egress;
use crate::network::resolvers::{self, RESOLV_CONF, Resolvers};
use crate::network::uplink::Uplink;

/// Time limit for systemd-nspawn to create the network namespace.
///
/// The unit's own time limit is shorter.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(3600);
/// Time limit for configuring the interface.
const CONFIGURATION_LIMIT: Duration = Duration::from_secs(20);
/// Port of DNS.
const DNS_PORT: u16 = 53;

/// Properties of the unit, besides its dependency on the machine's unit.
const PROPERTIES: [&str; 14] = [
    "PrivateMounts=yes", // no other process sees the mounts of the machine's namespaces
    "IgnoreSIGPIPE=no",  // passt of 2023 handles that signal itself, or fails
    "KillMode=control-group",
    "SuccessExitStatus=SIGKILL", // nspawn-cleanup kills pasta, which is no failure
    "TasksMax=16",               // limits of its own, because the machine's do not apply to pasta
    "MemoryMax=256M",
    "MemorySwapMax=0",
    "CPUQuota=100%",
    // Each connection has one or two descriptors, and a port of the host, which has 28,000.
    "LimitNOFILE=16384",
    "LogRateLimitIntervalSec=30s",
    "LogRateLimitBurst=200", // a machine's traffic can make pasta write messages
    // A second filter behind that of `egress`, for all packets: clouds reveal secrets at
    // 169.254.169.254.
    "IPAddressDeny=link-local",
    "IPAddressDeny=multicast",
    "IPAddressDeny=localhost",
];

/// Options of pasta(1).
///
/// The machine reaches neither ports nor the loopback of the host. pasta need not watch for the end
/// of the namespace, because its unit ends with the machine's unit.
const PASTA: &str = "--quiet --no-netns-quit --runas 0 --no-map-gw -t none -u none -T none -U none";

/// Algorithm by which the machine's TCP reacts to lost packets (ip-sysctl of the kernel).
///
/// passt of 2025 loses packets at the beginning of an upload. The host's algorithm is made for networks,
/// and not for the link to pasta, which has no delay: with BBR, uploads of 3 MB took up to 27
/// seconds, and with Reno up to 1.3. pasta's own connections keep the host's algorithm.
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Directory in which pasta may open namespaces.
///
/// Both AppArmor profiles that Debian's passt has had allow it.
const NAMESPACES: &str = "/run/user/0/netns";

/// Context of an error of [`command`].
pub const FAILURE: &str =
    "can't connect the machine to the host's network (--network=none needs no connection)";

/// Returns the command that starts the machine's network unit.
///
/// The command returns when the machine is connected. `allowed` are the destinations on the host
/// that the machine may connect to.
pub fn command(
    name: &MachineName,
    timeout: Duration,
    allowed: &[Destination],
) -> Result<Vec<OsString>> {
    let paths = MachinePaths::named(name);
    let exempt = exempt_networks(allowed).into_iter();
    let unit = TransientUnit::new("forking")
        .named(&paths.network_unit())
        .in_slice_of_machines()
        .described(&format!("Network of CI machine {name}"))
        .properties([format!("BindsTo={}", paths.unit())])
        .properties(PROPERTIES)
        .properties([format!("TimeoutStartSec={}s", timeout.as_secs())])
        .properties(exempt.map(|network| format!("IPAddressAllow={network}")));
    let form = Internal::Network {
        machine: name.clone(),
        allowed: allowed
            .iter()
            .map(|destination| destination.to_string().into())
            .collect(),
    };
    Ok(unit.command(form.argv()?))
}

/// Returns the networks to which the unit's `IPAddressDeny=` must not apply.
fn exempt_networks(allowed: &[Destination]) -> Vec<String> {
    let resolvers = resolvers::addresses()
        .into_iter()
        .filter(egress::is_local)
        .map(|resolver| Destination::new(resolver, None));
    resolvers
        .chain(allowed.iter().copied())
        .map(|destination| destination.network())
        .collect()
}

/// Returns the resolv.conf(5) of a machine that is connected by pasta.
pub fn resolv_conf() -> Result<String> {
    let gateway = Uplink::detect()?.gateway();
    Ok(Resolvers::read()?.machine_resolv_conf(gateway))
}

/// Connects the machine by pasta, and configures the machine's interface.
///
/// Waits until the machine has a network namespace. `allowed` are the destinations on the host that
/// the machine may connect to.
pub fn connect(machine: &MachineName, allowed: &[OsString]) -> Result<()> {
    let resolvers = Resolvers::read()?;
    egress::restrict(&open_destinations(allowed, &resolvers)?)?;
    let nesting = State::read(machine)?.nesting;
    let paths = State::paths_of(machine);
    let leader = machined::wait_for_leader(&paths, REGISTRATION_LIMIT)?;
    let [network, users] = namespaces::open(&paths, leader, ["ns/net", "ns/user"])?;
    let uplink = Uplink::detect()?;
    if let Err(error) = start_pasta(&uplink, resolvers.forwarded(), &network, &users) {
        // passt of 2023 can't use the loopback interface. The machine could not reach anything by
        // it anyway.
        return if uplink.is_loopback() {
            Ok(())
        } else {
            Err(error)
        };
    }
    configure_interface(&uplink.configuration(nesting), &network)
}

/// Returns the destinations on the host that the machine may connect to.
///
/// These are the `allowed` ones, and the resolvers that the machine can't reach without pasta.
fn open_destinations(allowed: &[OsString], resolvers: &Resolvers) -> Result<Vec<Destination>> {
    let mut open = Vec::new();
    for word in allowed {
        open.push(Destination::parse(word.to_str().unwrap_or_default())?);
    }
    for resolver in resolvers.near() {
        open.push(Destination::new(*resolver, Some(DNS_PORT)));
    }
    Ok(open)
}

fn configure_interface(configuration: &str, network: &File) -> Result<()> {
    // ip(8) configures the namespace of its caller.
    setns(network, CloneFlags::CLONE_NEWNET)
        .context("can't enter the machine's network namespace")?;
    // A kernel without IPv4 has no such file.
    let _ = fs::write(CONGESTION_CONTROL, "reno");
    let commands = command::memory_file(configuration)?;
    command::run_checked_with_stdin(commands, &argv(["ip", "-batch", "-"]), CONFIGURATION_LIMIT)
        .map(drop)
        .context("can't configure the machine's network interface")
}

/// Runs pasta, which returns when it is ready and continues in the background.
fn start_pasta(
    uplink: &Uplink,
    resolver: Option<IpAddr>,
    network: &File,
    users: &File,
) -> Result<()> {
    mount_namespace_directory().with_context(|| format!("can't mount on {NAMESPACES}"))?;
    if let Some(resolver) = resolver {
        replace_etc(resolver).context("can't make the host's resolver known to pasta")?;
    }
    let mut pasta = Command::new("pasta");
    pasta
        .args(PASTA.split(' '))
        .args(uplink.options(resolver.is_some()));
    if !namespace::is_own(users, "user")? {
        pasta.arg("--userns").arg(mount_namespace(users, "user")?);
    }
    let status = pasta
        .arg("--netns")
        .arg(mount_namespace(network, "net")?)
        .status()
        .context("can't start pasta; install the package passt, or make machines with --network=none or host")?;
    if !status.success() {
        bail!("pasta failed ({status}); its message is above");
    }
    Ok(())
}

/// Replaces /etc in this unit's mount namespace by a directory with a resolv.conf(5).
///
/// That is the only file in /etc that pasta needs. The AppArmor profile of Debian 12 does not let
/// pasta read /etc/resolv.conf if that is a link.
fn replace_etc(resolver: IpAddr) -> Result<()> {
    mount_tmpfs(Path::new("/etc"))?;
    fs::write(RESOLV_CONF, format!("nameserver {resolver}\n"))?;
    Ok(())
}

fn mount_namespace_directory() -> Result<()> {
    let root = Path::new("/run/user");
    fs::create_dir_all(root)?;
    mount_tmpfs(root)?;
    fs::create_dir_all(NAMESPACES)?;
    Ok(())
}

fn mount_tmpfs(target: &Path) -> Result<()> {
    let options = "mode=0755,size=64k";
    mount(
        Some("nspawn-ci"),
        target,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )?;
    Ok(())
}

/// Mounts a namespace in [`NAMESPACES`] and returns its path.
///
/// When pasta opens a namespace, it may no longer open it in /proc.
fn mount_namespace(namespace: &File, name: &str) -> Result<PathBuf> {
    let target = Path::new(NAMESPACES).join(name);
    bind_namespace(namespace, &target)
        .with_context(|| format!("can't mount on {}", target.display()))?;
    Ok(target)
}

fn bind_namespace(namespace: &File, target: &Path) -> Result<()> {
    File::create(target)?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    bind_mount(Path::new(&source), target)?;
    Ok(())
}
