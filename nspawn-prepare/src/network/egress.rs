//! Decides which addresses a machine may connect to: a BPF program on the cgroup of its pasta, since all of the
//! machine's connections are pasta's own.
//!
//! The kernel calls the program for each `connect(2)` and each `sendmsg(2)` with an address. systemd's own
//! `IPAddressDeny=` knows no ports, and a unit starts without it where it can't be loaded; here that is an error.

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::SockaddrStorage;

/// Networks whose hosts a machine must not reach: the host itself, its links, and groups of hosts.
const CLOSED: [&str; 9] = [
    "127.0.0.0/8",
    "::1",
    "0.0.0.0/8", // a connection to 0.0.0.0 reaches the loopback
    "::",
    "169.254.0.0/16", // clouds tell an instance's secrets at 169.254.169.254
    "fe80::/10",
    "224.0.0.0/4",
    "ff00::/8",
    "255.255.255.255",
];

/// Addresses beside 169.254.169.254 where clouds tell an instance's secrets: Amazon's and Alibaba's.
const CLOUDS: [&str; 2] = ["fd00:ec2::254", "100.100.100.200"];

/// An address or a network, and all its ports or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    address: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

impl Destination {
    /// All ports, or one, of a single address.
    pub fn new(address: IpAddr, port: Option<u16>) -> Self {
        Self {
            address,
            prefix: bits(&address),
            port,
        }
    }

    /// Parses `ADDRESS[/PREFIX][:PORT]`, where an IPv6 address with a port stands in brackets.
    pub fn parse(text: &str) -> Result<Self> {
        let (network, port) = match text.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .map(|(network, port)| (network, port.strip_prefix(':'))),
            // A second colon makes it an IPv6 address.
            None if text.matches(':').count() == 1 => text
                .split_once(':')
                .map(|(network, port)| (network, Some(port))),
            None => Some((text, None)),
        }
        .unwrap_or_default();
        let (address, prefix) = network
            .split_once('/')
            .map_or((network, None), |(address, prefix)| (address, Some(prefix)));
        let parsed = || {
            let address: IpAddr = address.parse().ok()?;
            let prefix = prefix.map_or(Some(bits(&address)), |prefix| prefix.parse().ok())?;
            let port = port
                .map(|port| port.parse().ok().filter(|port| *port != 0))
                .map_or(Some(None), |port| port.map(Some))?;
            (prefix <= bits(&address)).then_some(Self {
                address,
                prefix,
                port,
            })
        };
        parsed().with_context(|| {
            format!("{text:?} is not ADDRESS[/PREFIX][:PORT], such as 192.0.2.7:443 or [2001:db8::7]:443")
        })
    }

    /// Returns the address, or the first of the network.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns whether the address is in the network.
    pub fn contains(&self, address: &IpAddr) -> bool {
        let words = |destination: &Self| destination.words().map(|(value, _)| value);
        let masked = Self {
            address: *address,
            ..*self
        };
        self.address.is_ipv4() == address.is_ipv4() && words(&masked) == words(self)
    }

    /// Returns the network as `IPAddressAllow=` of a unit takes it.
    pub fn network(&self) -> String {
        format!("{}/{}", self.address, self.prefix)
    }

    // Four words and their masks in the order of the network's bytes; an IPv4 address as IPv6 sockets have it.
    fn words(&self) -> [(u32, u32); 4] {
        let (address, prefix) = match self.address {
            IpAddr::V4(address) => (address.to_ipv6_mapped(), u32::from(self.prefix) + 96),
            IpAddr::V6(address) => (address, u32::from(self.prefix)),
        };
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        let word = |number: u128, index: u32| ((number >> (96 - 32 * index)) as u32).to_be();
        [0, 1, 2, 3].map(|index| (word(u128::from(address) & mask, index), word(mask, index)))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(out, "[{}/{}]:{port}", self.address, self.prefix),
            None => write!(out, "{}/{}", self.address, self.prefix),
        }
    }
}

fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns whether an address is the host's own or one of its links'.
pub fn is_near(address: &IpAddr) -> Result<bool> {
    Ok(is_special(address) || own_addresses()?.contains(address))
}

/// Returns whether an address means the host itself, or one of its links, on every host.
pub fn is_special(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_link_local() || address.is_unspecified()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
        }
    }
}

fn own_addresses() -> Result<Vec<IpAddr>> {
    let all = getifaddrs()
        .context("can't list the host's addresses")?
        .filter_map(|interface| interface.address);
    let ip = |address: SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6())
    {
        (Some(address), _) => Some(IpAddr::from(address.ip())),
        (_, Some(address)) => Some(IpAddr::from(address.ip())),
        _ => None,
    };
    Ok(all.filter_map(ip).collect())
}

/// Keeps the processes of this process's cgroup from connecting to the host and to its links, except to what is
/// `allowed`.
///
/// # Errors
/// The kernel has no BPF for cgroups, or refuses it to this process.
pub fn restrict(allowed: &[Destination]) -> Result<()> {
    let closed = CLOSED
        .iter()
        .chain(&CLOUDS)
        .map(|text| Destination::parse(text))
        .collect::<Result<Vec<_>>>()?;
    let own = own_addresses()?
        .into_iter()
        .map(|address| Destination::new(address, None));
    let denied: Vec<_> = closed.into_iter().chain(own).collect();
    let attached = || -> Result<()> {
        let cgroup = own_cgroup()?;
        for hook in &HOOKS {
            attach(
                &cgroup,
                hook,
                &load(hook, &program(hook.is_ipv6, allowed, &denied))?,
            )?;
        }
        Ok(())
    };
    attached().context(
        "the kernel can't filter the machine's connections (it needs CONFIG_CGROUP_BPF), so that the host would be \
         open to it; choose --network=none, or --network=host for jobs that may reach the host",
    )
}

fn own_cgroup() -> Result<File> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    // Version 2 has one line, with nothing between two colons (cgroups(7)).
    let path = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("there is no cgroup of version 2")?;
    Ok(File::open(Path::new("/sys/fs/cgroup").join(path))?)
}

/// An occasion at which the kernel calls a program (`linux/bpf.h`).
struct Hook {
    attach_type: u32,
    is_ipv6: bool,
}

const HOOKS: [Hook; 4] = [
    Hook {
        attach_type: libc_bpf::CGROUP_INET4_CONNECT,
        is_ipv6: false,
    },
    Hook {
        attach_type: libc_bpf::CGROUP_INET6_CONNECT,
        is_ipv6: true,
    },
    Hook {
        attach_type: libc_bpf::CGROUP_UDP4_SENDMSG,
        is_ipv6: false,
    },
    Hook {
        attach_type: libc_bpf::CGROUP_UDP6_SENDMSG,
        is_ipv6: true,
    },
];

/// Numbers of `linux/bpf.h`, which the libc crate lacks.
mod libc_bpf {
    pub const PROG_LOAD: u32 = 5;
    pub const PROG_ATTACH: u32 = 8;
    pub const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    pub const CGROUP_INET4_CONNECT: u32 = 10;
    pub const CGROUP_INET6_CONNECT: u32 = 11;
    pub const CGROUP_UDP4_SENDMSG: u32 = 14;
    pub const CGROUP_UDP6_SENDMSG: u32 = 15;
    /// `BPF_F_ALLOW_MULTI`
    pub const ALLOW_MULTI: u32 = 2;

    /// Offsets in `struct bpf_sock_addr`.
    pub const USER_IP4: i16 = 4;
    pub const USER_IP6: i16 = 8;
    pub const USER_PORT: i16 = 24;
}

/// One instruction (`struct bpf_insn`, on a little-endian processor).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// Registers: the context at first, the port, a copy to work on, and the four words of the address.
const CONTEXT: u8 = 1;
const PORT: u8 = 3;
const WORK: u8 = 4;
const ADDRESS: u8 = 6;

impl Instruction {
    fn new(code: u8, target: u8, source: u8, offset: i16, value: u32) -> Self {
        Self {
            code,
            registers: target | source << 4,
            offset,
            value: i32::from_ne_bytes(value.to_ne_bytes()),
        }
    }

    fn load(target: u8, offset: i16) -> Self {
        Self::new(0x61, target, CONTEXT, offset, 0)
    }

    fn copy(target: u8, source: u8) -> Self {
        Self::new(0xbc, target, source, 0, 0)
    }

    fn and(target: u8, mask: u32) -> Self {
        Self::new(0x54, target, 0, 0, mask)
    }

    /// Skips `count` instructions unless the register has the value.
    fn skip_unless(register: u8, value: u32, count: usize) -> Self {
        Self::new(
            0x56,
            register,
            0,
            i16::try_from(count).unwrap_or(i16::MAX),
            value,
        )
    }

    /// The two that end the program with 1, which allows, or 0.
    fn answer(is_allowed: bool) -> [Self; 2] {
        [
            Self::new(0xb7, 0, 0, 0, is_allowed.into()),
            Self::new(0x95, 0, 0, 0, 0),
        ]
    }
}

// The first destination that matches decides; what matches none is allowed.
fn program(is_ipv6: bool, allowed: &[Destination], denied: &[Destination]) -> Vec<Instruction> {
    let mut program = vec![Instruction::load(PORT, libc_bpf::USER_PORT)];
    if is_ipv6 {
        program.extend((0_u8..4).map(|word| {
            Instruction::load(ADDRESS + word, libc_bpf::USER_IP6 + 4 * i16::from(word))
        }));
    } else {
        program.push(Instruction::load(ADDRESS + 3, libc_bpf::USER_IP4));
    }
    let all = allowed
        .iter()
        .map(|destination| (destination, true))
        .chain(denied.iter().map(|destination| (destination, false)));
    for (destination, is_allowed) in
        all.filter(|(destination, _)| is_ipv6 || destination.address.is_ipv4())
    {
        let rule = rule(is_ipv6, destination, is_allowed);
        let matches_all = rule == Instruction::answer(is_allowed);
        program.extend(rule);
        // The kernel refuses a program with instructions that are never reached.
        if matches_all {
            return program;
        }
    }
    program.extend(Instruction::answer(true));
    program
}

fn rule(is_ipv6: bool, destination: &Destination, is_allowed: bool) -> Vec<Instruction> {
    let mut tests = Vec::new();
    let words = destination.words();
    for word in if is_ipv6 { 0..4_u8 } else { 3..4 } {
        let (value, mask) = words[usize::from(word)];
        match mask {
            0 => {}
            u32::MAX => tests.push(vec![(ADDRESS + word, None, value)]),
            mask => tests.push(vec![(ADDRESS + word, Some(mask), value)]),
        }
    }
    let mut tests: Vec<_> = tests.concat();
    tests.extend(
        destination
            .port
            .map(|port| (PORT, None, u32::from(port.to_be()))),
    );
    // From the end on, since a test that fails skips all that comes after it.
    let mut rule = Instruction::answer(is_allowed).to_vec();
    for (register, mask, value) in tests.into_iter().rev() {
        let (tested, copies) = match mask {
            Some(mask) => (
                WORK,
                vec![
                    Instruction::copy(WORK, register),
                    Instruction::and(WORK, mask),
                ],
            ),
            None => (register, Vec::new()),
        };
        let test = Instruction::skip_unless(tested, value, rule.len());
        rule = [copies, vec![test], rule].concat();
    }
    rule
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads here.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn load(hook: &Hook, program: &[Instruction]) -> Result<OwnedFd> {
    const LICENSE: &CStr = c"MIT";
    let attributes = LoadAttributes {
        prog_type: libc_bpf::PROG_TYPE_CGROUP_SOCK_ADDR,
        insn_cnt: u32::try_from(program.len())?,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attach_type: hook.attach_type,
        ..LoadAttributes::default()
    };
    let fd = bpf(libc_bpf::PROG_LOAD, &attributes)
        .map_err(|error| anyhow!("bpf(BPF_PROG_LOAD): {error}"))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(cgroup: &File, hook: &Hook, program: &OwnedFd) -> Result<()> {
    let attributes = AttachAttributes {
        target_fd: u32::try_from(cgroup.as_raw_fd())?,
        attach_bpf_fd: u32::try_from(program.as_raw_fd())?,
        attach_type: hook.attach_type,
        attach_flags: libc_bpf::ALLOW_MULTI,
    };
    bpf(libc_bpf::PROG_ATTACH, &attributes)
        .map(drop)
        .map_err(|error| anyhow!("bpf(BPF_PROG_ATTACH): {error}"))
}

fn bpf<Attributes>(command: u32, attributes: &Attributes) -> io::Result<i32> {
    // SAFETY: bpf(2) reads a struct of the size that it is told; the pointers in it outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<Attributes>()) };
    i32::try_from(Errno::result(done)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn destination(text: &str) -> Destination {
        Destination::parse(text).unwrap()
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], address: IpAddr, port: u16) -> bool {
        let words = match address {
            IpAddr::V4(address) => [0, 0, 0, u32::from(address).to_be()],
            IpAddr::V6(address) => {
                [0, 1, 2, 3].map(|word| ((u128::from(address) >> (96 - 32 * word)) as u32).to_be())
            }
        };
        let mut registers = [0_u32; 11];
        let mut place = 0;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                value,
            } = program[place];
            let (target, source) = (usize::from(both & 15), usize::from(both >> 4));
            place += 1;
            match code {
                0x61 => {
                    registers[target] = match offset {
                        libc_bpf::USER_IP4 => words[3],
                        libc_bpf::USER_PORT => u32::from(port.to_be()),
                        ip6 => words[usize::try_from((ip6 - libc_bpf::USER_IP6) / 4).unwrap()],
                    }
                }
                0xbc => registers[target] = registers[source],
                0x54 => registers[target] &= u32::from_ne_bytes(value.to_ne_bytes()),
                0x56 if registers[target] != u32::from_ne_bytes(value.to_ne_bytes()) => {
                    place += usize::try_from(offset).unwrap()
                }
                0x56 => {}
                0xb7 => registers[target] = u32::from_ne_bytes(value.to_ne_bytes()),
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn destinations_are_read() {
        for (text, address, prefix, port) in [
            ("192.0.2.7", "192.0.2.7", 32, None),
            ("192.0.2.7:443", "192.0.2.7", 32, Some(443)),
            ("192.0.2.0/24", "192.0.2.0", 24, None),
            ("192.0.2.0/24:80", "192.0.2.0", 24, Some(80)),
            ("2001:db8::7", "2001:db8::7", 128, None),
            ("[2001:db8::7]:443", "2001:db8::7", 128, Some(443)),
            ("[2001:db8::/32]:443", "2001:db8::", 32, Some(443)),
            ("::1", "::1", 128, None),
        ] {
            let read = destination(text);
            assert_eq!(
                (read.address, read.prefix, read.port),
                (address.parse().unwrap(), prefix, port),
                "{text}"
            );
            assert_eq!(destination(&read.to_string()), read, "{text}");
        }
        for bad in [
            "",
            "x",
            "192.0.2.7:",
            "192.0.2.7:0",
            "192.0.2.7:65536",
            "192.0.2.7/33",
            "[::1",
            "::1/129",
            "gitlab:443",
        ] {
            assert!(Destination::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn allowed_ports_are_open_and_all_else_of_the_host_is_closed() {
        let allowed = [
            "192.0.2.1:443",
            "127.0.0.53:53",
            "[fe80::1]:53",
            "10.1.0.0/16",
        ]
        .map(destination);
        let denied = [
            "127.0.0.0/8",
            "192.0.2.1",
            "fe80::/10",
            "10.0.0.0/8",
            "2001:db8::1",
        ]
        .map(destination);
        for (address, port, is_allowed) in [
            ("192.0.2.1", 443, true),
            ("192.0.2.1", 22, false),
            ("192.0.2.2", 22, true),
            ("127.0.0.53", 53, true),
            ("127.0.0.53", 80, false),
            ("127.1.2.3", 53, false),
            ("10.1.2.3", 1, true),
            ("10.2.2.3", 1, false),
        ] {
            let address: Ipv4Addr = address.parse().unwrap();
            let four = program(false, &allowed, &denied);
            assert_eq!(
                run(&four, address.into(), port),
                is_allowed,
                "{address} {port}"
            );
            let six = program(true, &allowed, &denied);
            assert_eq!(
                run(&six, address.to_ipv6_mapped().into(), port),
                is_allowed,
                "mapped {address} {port}"
            );
        }
        for (address, port, is_allowed) in [
            ("fe80::1", 53, true),
            ("fe80::1", 54, false),
            ("febf::1", 53, false),
            ("fec0::1", 53, true),
            ("2001:db8::1", 80, false),
            ("2001:db8::2", 80, true),
        ] {
            let address: Ipv6Addr = address.parse().unwrap();
            assert_eq!(
                run(&program(true, &allowed, &denied), address.into(), port),
                is_allowed,
                "{address} {port}"
            );
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, expected) in [
            ("192.0.2.0/24", "192.0.2.9", true),
            ("192.0.2.0/24", "192.0.3.9", false),
            ("192.0.2.7:443", "192.0.2.7", true),
            ("2001:db8::/32", "2001:db8::9", true),
            ("0.0.0.0/0", "::1", false),
        ] {
            assert_eq!(
                destination(network).contains(&address.parse().unwrap()),
                expected,
                "{network} {address}"
            );
        }
    }

    #[test]
    fn a_rule_for_everything_matches_everything() {
        let all = [destination("0.0.0.0/0")];
        let loads = 2;
        assert_eq!(
            program(false, &all, &all).len(),
            loads + Instruction::answer(true).len()
        );
        assert!(!run(
            &program(false, &[], &all),
            "198.51.100.1".parse().unwrap(),
            1
        ));
        assert!(run(
            &program(true, &[], &all),
            "2001:db8::1".parse().unwrap(),
            1
        ));
    }
}
