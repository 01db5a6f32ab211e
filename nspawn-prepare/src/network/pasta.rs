//! A machine's network to the outside: pasta, which carries the machine's connections over sockets of the host, in a
//! unit of its own that ends with the machine's.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nspawn_common::command;
use nspawn_common::command::argv;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::{MachinePaths, SLICE};
use nspawn_common::systemd::machined;

use crate::create::step::Step;
use crate::network::egress;
use crate::network::egress::Destination;
use crate::network::resolv_conf;
use crate::network::uplink::Uplink;
use nspawn_common::sys::namespace;

/// The argument that asks for it: `--connect MACHINE [DESTINATION…]`.
pub const OPTION: &str = "--connect";

/// Time limit for systemd-nspawn to make the network namespace; the unit's own time limit is shorter.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(3600);
/// Time limit for looking up the GitLab server, which begins before the machine is made.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);
/// Time limit for configuring the interface.
const CONFIGURATION_LIMIT: Duration = Duration::from_secs(20);

/// Properties of the unit, beside its dependency on the machine's.
const PROPERTIES: [&str; 10] = [
    "PrivateMounts=yes", // the machine's namespaces are mounted where no other process sees them
    "IgnoreSIGPIPE=no",  // passt of 2023 handles that signal itself, or fails
    "KillMode=control-group",
    "TasksMax=16", // what pasta does for the machine is bounded by itself
    "MemoryMax=256M",
    "MemorySwapMax=0",
    "CPUQuota=100%",
    // A second wall behind the filter of `egress`, for all packets: a cloud's secrets are at 169.254.169.254.
    "IPAddressDeny=link-local",
    "IPAddressDeny=multicast",
    "IPAddressDeny=localhost",
];

/// Options of pasta(1): the machine reaches neither ports nor the loopback of the host. pasta need not watch for the
/// end of the namespace, since its unit ends with the machine's.
const PASTA: &str = "--quiet --no-netns-quit --runas 0 --no-map-gw -t none -u none -T none -U none";

/// Directory where both AppArmor profiles that Debian's passt has had allow it to open namespaces.
const NAMESPACES: &str = "/run/user/0/netns";

/// Returns the command that connects the machine, and ends when it is connected. `allowed` is what of the host the
/// machine may connect to.
pub fn command(
    name: &MachineName,
    timeout: Duration,
    allowed: &[Destination],
) -> Result<Vec<OsString>> {
    let program = command::own_program()?;
    let paths = MachinePaths::named(name);
    let mut argv: Vec<OsString> = ["systemd-run", "--collect", "--service-type=forking"]
        .map(OsString::from)
        .into();
    argv.push(format!("--unit={}", paths.network_unit()).into());
    argv.push(format!("--slice={SLICE}").into());
    argv.push(format!("--description=Network of CI machine {name}").into());
    argv.push(format!("--property=BindsTo={}", paths.unit()).into());
    argv.extend(PROPERTIES.map(|property| format!("--property={property}").into()));
    argv.push(format!("--property=TimeoutStartSec={}s", timeout.as_secs()).into());
    let resolvers = resolv_conf::resolvers()
        .into_iter()
        .filter(egress::is_special)
        .map(|resolver| Destination::new(resolver, None));
    let open = resolvers.chain(allowed.iter().copied());
    argv.extend(
        open.map(|destination| {
            format!("--property=IPAddressAllow={}", destination.network()).into()
        }),
    );
    argv.extend([
        "--".into(),
        program.into(),
        OPTION.into(),
        name.as_str().into(),
    ]);
    argv.extend(
        allowed
            .iter()
            .map(|destination| destination.to_string().into()),
    );
    Ok(argv)
}

/// Explains a failure of the command.
pub const FAILURE: &str =
    "the machine can't be connected to the host's network (--network=none needs none)";

/// Returns whether the step runs [`command`].
pub fn is_its(step: &Step) -> bool {
    matches!(step, Step::Run(command, _) if command.iter().any(|word| word == OPTION))
}

// The host's resolvers on the host itself or its links, which pasta asks for the machine.
fn resolvers_nearby() -> Result<Vec<Destination>> {
    let mut nearby = Vec::new();
    for resolver in resolv_conf::resolvers() {
        if egress::is_near(&resolver)? {
            nearby.push(Destination::new(resolver, Some(53)));
        }
    }
    Ok(nearby)
}

/// Returns the machine's resolv.conf(5): that of the host, but with pasta's own address for resolvers that only the host
/// reaches.
pub fn resolv_conf() -> Result<String> {
    let near: Vec<_> = resolvers_nearby()?
        .iter()
        .map(Destination::address)
        .collect();
    Ok(resolv_conf::resolv_conf(
        Uplink::look()?.gateway(),
        |resolver| near.contains(resolver),
    ))
}

/// A look for a server whose address is the host's own, which goes on while the machine is made.
pub struct ServerLookup {
    name: String,
    getent: command::Running,
}

impl ServerLookup {
    /// Starts to look for the server `name`.
    pub fn start(name: String) -> Result<Self> {
        let getent =
            command::Running::start(Stdio::null(), &argv(["getent", "ahosts", "--", &name]))?;
        Ok(Self { name, getent })
    }

    /// Returns a warning if the server is on this host and is not `allowed`.
    pub fn warning(self, allowed: &[Destination]) -> Result<Option<String>> {
        let found = self.getent.finish(LOOKUP_LIMIT)?.stdout;
        let addresses = found
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse::<IpAddr>().ok());
        for address in addresses.filter(|address| {
            !allowed
                .iter()
                .any(|destination| destination.contains(address))
        }) {
            if egress::is_near(&address)? {
                let name = self.name;
                return Ok(Some(format!(
                    "the GitLab server {name} is this host itself ({address}), to which its machines can't connect; the \
                     administrator can open it: --allow-host={address}"
                )));
            }
        }
        Ok(None)
    }
}

/// Waits until the machine has a network namespace, starts pasta for it, and configures the machine's interface.
pub fn connect(arguments: &[OsString]) -> Result<()> {
    let [name, allowed @ ..] = arguments else {
        bail!("{OPTION} is for the unit of a machine's network alone")
    };
    let allowed = allowed
        .iter()
        .map(|word| Destination::parse(word.to_str().unwrap_or_default()));
    let mut allowed = allowed.collect::<Result<Vec<_>>>()?;
    let resolvers = resolvers_nearby()?;
    allowed.extend(&resolvers);
    let paths = MachinePaths::named(&MachineName::new(name)?);
    egress::restrict(&allowed)?;
    let leader = machined::wait_for_leader(&paths, REGISTRATION_LIMIT)?;
    let [network, users] = namespace::open(&paths, leader, ["ns/net", "ns/user"])?;
    let uplink = Uplink::look()?;
    // pasta asks the host's first resolver for the machine, see `resolv_conf`.
    let resolver = resolv_conf::resolvers()
        .into_iter()
        .next()
        .filter(|_| !resolvers.is_empty());
    if let Err(error) = start_pasta(&uplink, resolver, &network, &users) {
        // passt of 2023 can't use the loopback interface, and there is nothing that the machine could reach.
        return if uplink.is_loopback() {
            Ok(())
        } else {
            Err(error)
        };
    }
    // The tool configures the namespace that this process is in.
    setns(&network, CloneFlags::CLONE_NEWNET)
        .context("can't enter the machine's network namespace")?;
    let commands = command::input(&uplink.configuration())?;
    command::run_ok_with_stdin(commands, &argv(["ip", "-batch", "-"]), CONFIGURATION_LIMIT)
        .map(drop)
        .context("can't configure the machine's network interface")
}

// pasta returns when it is ready, and goes on in the background.
fn start_pasta(
    uplink: &Uplink,
    resolver: Option<IpAddr>,
    network: &File,
    users: &File,
) -> Result<()> {
    mount_directory().with_context(|| format!("can't mount on {NAMESPACES}"))?;
    if let Some(resolver) = resolver {
        show_resolver(resolver).context("can't show pasta the host's resolver")?;
    }
    let mut pasta = Command::new("pasta");
    pasta
        .args(PASTA.split(' '))
        .args(uplink.options(resolver.is_some()));
    if !namespace::is_ours(users, "user")? {
        pasta.arg("--userns").arg(mounted(users, "user")?);
    }
    let status = pasta
        .arg("--netns")
        .arg(mounted(network, "net")?)
        .status()
        .context("can't start pasta; install the package passt, or make machines with --network=none or host")?;
    if !status.success() {
        bail!("pasta failed ({status}); its own words are above");
    }
    Ok(())
}

// Where /etc/resolv.conf is a link, the AppArmor profile of Debian 12 keeps pasta from reading it. In this unit's mount
// namespace it is a file of its own, and the only one in /etc that pasta needs.
fn show_resolver(resolver: IpAddr) -> Result<()> {
    mount(
        Some("nspawn-ci"),
        "/etc",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755,size=64k"),
    )?;
    Ok(fs::write(
        resolv_conf::RESOLV_CONF,
        format!("nameserver {resolver}\n"),
    )?)
}

fn mount_directory() -> Result<()> {
    let root = Path::new("/run/user");
    fs::create_dir_all(root)?;
    mount(
        Some("nspawn-ci"),
        root,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755,size=64k"),
    )?;
    Ok(fs::create_dir_all(NAMESPACES)?)
}

// By the time that pasta opens a namespace, it may no longer do so in /proc.
fn mounted(namespace: &File, name: &str) -> Result<PathBuf> {
    let target = Path::new(NAMESPACES).join(name);
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    File::create(&target)
        .map_err(anyhow::Error::from)
        .and_then(|_| {
            Ok(mount(
                Some(&*source),
                &target,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?)
        })
        .with_context(|| format!("can't mount on {}", target.display()))?;
    Ok(target)
}
