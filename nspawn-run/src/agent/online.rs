//! Waits until the host has connected the machine to its network.
//!
//! This takes the place of services that wait until a program of the image has configured the
//! network. The host configures it, so these programs may never do so.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc::{RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// Time limit. On a host without a network, a machine never gets a default route.
const LIMIT: Duration = Duration::from_secs(5);

/// Waits until the machine has a default route, for the time limit at most.
pub fn wait() -> Result<()> {
    let end = Instant::now() + LIMIT;
    // The kernel reports changes from here on, so none is missed.
    let changes = watch_routes().context("can't watch the machine's routes")?;
    while !has_default_route() && is_changed(&changes, end)? {}
    Ok(())
}

/// Opens a socket of rtnetlink(7) that receives changes of routes.
fn watch_routes() -> nix::Result<OwnedFd> {
    let changes = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let groups = (RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE) as u32;
    bind(changes.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(changes)
}

/// Waits for a change. Returns `false` if there is none until `end`.
fn is_changed(changes: &OwnedFd, end: Instant) -> Result<bool> {
    let limit = end.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::try_from(limit)?)? == 0 {
        return Ok(false);
    }
    // The content does not matter, and the kernel may have discarded some of it (ENOBUFS).
    let _ = recv(
        changes.as_raw_fd(),
        &mut [0; 64],
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
    );
    Ok(true)
}

fn has_default_route() -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    read("route").lines().any(is_ipv4_default) || read("ipv6_route").lines().any(is_ipv6_default)
}

/// Returns whether a line of /proc/net/route has the destination and the mask 0.0.0.0.
fn is_ipv4_default(line: &str) -> bool {
    let fields: Vec<_> = line.split_whitespace().collect();
    let zero = Some(&"00000000");
    fields.get(1) == zero && fields.get(7) == zero
}

/// Returns whether a line of /proc/net/ipv6_route has the destination ::/0. The kernel has such a
/// line for the loopback interface, by which it refuses packets.
fn is_ipv6_default(line: &str) -> bool {
    let fields: Vec<_> = line.split_whitespace().collect();
    let destination = "00000000000000000000000000000000 00";
    line.starts_with(destination) && fields.last().is_some_and(|interface| *interface != "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_default_routes_count() {
        let route = |destination: &str, mask: &str| {
            is_ipv4_default(&format!(
                "eth0\t{destination}\t0300A8C0\t0003\t0\t0\t0\t{mask}\t0\t0\t0"
            ))
        };
        assert!(route("00000000", "00000000"));
        assert!(!route("0000A8C0", "00FFFFFF"));
        assert!(!route("00000000", "0000FFFF"));
        assert!(!is_ipv4_default(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask"
        ));
        assert!(!is_ipv4_default(""));
        let route = |destination: &str, length: &str, interface: &str| {
            let zero = "0".repeat(32);
            is_ipv6_default(&format!(
                "{destination} {length} {zero} 00 {zero} 00000400 00000001 00000000 00200200 {interface}"
            ))
        };
        let zero = "0".repeat(32);
        assert!(route(&zero, "00", "eth0"));
        assert!(!route(&zero, "00", "lo") && !route(&zero, "40", "eth0"));
        assert!(!route(&"f".repeat(32), "00", "eth0"));
    }
}
