//! A machine's way to the outside: pasta, which carries its connections over sockets of the host's, in a unit
//! of its own that ends with the machine's.

use std::ffi::OsString;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::ifaddrs::getifaddrs;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::SockaddrStorage;
use nspawn_common::name::MachineName;
use nspawn_common::paths::{MachinePaths, SLICE};
use nspawn_common::{network, registration, tool};

use crate::namespaces;
use crate::plan::Step;

/// The argument that asks for it: `--connect MACHINE`.
pub const OPTION: &str = "--connect";

/// How long systemd-nspawn may take to have a network namespace that can be connected; the unit's own time is
/// over before.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(3600);

/// What the unit has, beside its dependency on the machine's.
const PROPERTIES: [&str; 10] = [
    "PrivateMounts=yes", // the machine's namespaces are mounted where nobody else sees them
    "IgnoreSIGPIPE=no",  // passt of 2023 handles that signal itself, or fails
    "KillMode=control-group",
    "TasksMax=16", // what it does for the machine is bounded by itself
    "MemoryMax=256M",
    "MemorySwapMax=0",
    "CPUQuota=100%",
    // Of the host's services, those for its own link alone: a cloud's secrets are at 169.254.169.254.
    "IPAddressDeny=link-local",
    "IPAddressDeny=multicast",
    "IPAddressDeny=localhost",
];

/// Where clouds tell their secrets, beside the link-local 169.254.169.254: Amazon's and Alibaba's.
const CLOUDS: [&str; 2] = ["fd00:ec2::254", "100.100.100.200"];

/// The options of pasta(1): nothing of the host's is forwarded, its loopback is out of reach. It does not
/// watch for the namespace's end, since its unit ends with the machine's.
const PASTA: &str = "--quiet --no-netns-quit --runas 0 --config-net --no-map-gw -t none -u none -T none -U none";

/// The command that connects the machine, and returns when it is connected.
pub fn command(name: &MachineName, timeout: Duration) -> Result<Vec<OsString>> {
    let program = tool::own_program()?;
    let paths = MachinePaths::new(name);
    let mut argv: Vec<OsString> = ["systemd-run", "--collect", "--service-type=forking"].map(OsString::from).into();
    argv.push(format!("--unit={}", paths.network_unit()).into());
    argv.push(format!("--slice={SLICE}").into());
    argv.push(format!("--description=Network of CI machine {name}").into());
    argv.push(format!("--property=BindsTo={}", paths.unit()).into());
    argv.extend(PROPERTIES.map(|property| format!("--property={property}").into()));
    argv.push(format!("--property=TimeoutStartSec={}s", timeout.as_secs()).into());
    // Those of its links, which come and go, are denied above.
    let denied = own_addresses()?.into_iter().filter(|address| !is_near(address)).map(|address| address.to_string());
    let denied = denied.chain(CLOUDS.map(str::to_owned));
    argv.extend(denied.map(|address| format!("--property=IPAddressDeny={address}").into()));
    argv.extend(["--".into(), program.into(), OPTION.into(), name.as_str().into()]);
    Ok(argv)
}

/// Whether the host has resolvers, and all are out of a machine's reach.
pub fn has_no_resolver() -> Result<bool> {
    let own = own_addresses()?;
    let resolvers = network::resolvers();
    Ok(!resolvers.is_empty() && resolvers.iter().all(|resolver| is_near(resolver) || own.contains(resolver)))
}

fn is_near(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}

// Where the host's own services listen.
fn own_addresses() -> Result<Vec<IpAddr>> {
    let all = getifaddrs().context("can't tell the host's addresses")?.filter_map(|interface| interface.address);
    let of = |address: SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(address), _) => Some(IpAddr::from(address.ip())),
        (_, Some(address)) => Some(IpAddr::from(address.ip())),
        _ => None,
    };
    Ok(all.filter_map(of).collect())
}

/// What its failure means. A host without any network may have no route for pasta to follow.
pub const FAILURE: &str = "the machine can't be connected to the host's network (--network=none needs none)";

/// Whether the step runs [`command`].
pub fn is_its(step: &Step) -> bool {
    matches!(step, Step::Run(command, _) if command.iter().any(|word| word == OPTION))
}

/// Waits until the machine has a network namespace, and becomes pasta for it.
pub fn connect(arguments: &[OsString]) -> Result<()> {
    let [name] = arguments else { bail!("{OPTION} is for the unit of a machine's network alone") };
    let paths = MachinePaths::new(&MachineName::new(name)?);
    let leader = registration::wait_for_leader(&paths, REGISTRATION_LIMIT)?;
    let [network, users] = namespaces::open(&paths, leader, ["ns/net", "ns/user"])?;
    let mut pasta = Command::new("pasta");
    pasta.args(PASTA.split(' '));
    if !namespaces::is_ours(&users, "user")? {
        pasta.arg("--userns").arg(mounted(&paths, &users, "user")?);
    }
    let error = pasta.arg("--netns").arg(mounted(&paths, &network, "net")?).exec();
    Err(error).context("can't start pasta; install the package passt, or make machines with --network=none or host")
}

// By the time that pasta opens a namespace, it may no longer do so in /proc.
fn mounted(paths: &MachinePaths, namespace: &File, kind: &str) -> Result<PathBuf> {
    let target = paths.state_dir().join(format!("{kind}-namespace"));
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    File::create(&target)
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(mount(Some(&*source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?))
        .with_context(|| format!("can't mount on {}", target.display()))?;
    Ok(target)
}
